// Signs and magnitudes on raw bits: for the device, and for tests/cuda/emulate.h on the host. A word holds one float32
// or two 16-bit values; no sum below carries from one value into the next.
#pragma once

#include <cstdint>

#include "../plan/topk_plan.h"

#if defined(__CUDACC__)
#define LC_BOTH __host__ __device__ __forceinline__
#else
#define LC_BOTH inline
#endif

namespace lc::cuda {

template <int kWidth>  // bytes of a value
struct Format {
  static constexpr int kPerWord = 4 / kWidth;
  static constexpr int kWords = 8 / kPerWord;  // of 8 values, which have one byte of a mask
  static constexpr uint32_t kPair = kWidth == 2 ? 0x00010001u : 1u;
  static constexpr uint32_t kTop = 1u << (8 * kWidth - 1);
  static constexpr uint32_t kSign = kTop * kPair, kMagnitude = ~kSign;
  static constexpr int kShift = 8 * kWidth - 1;
  // What to add to a magnitude so that its sign bit tells whether it is at least `bound` (at most kTop).
  static constexpr LC_BOTH uint32_t gap(uint32_t bound) { return (kTop - bound) * kPair; }
};

using topk::Kind;

LC_BOTH uint32_t half_to_common(uint32_t magnitude) {
  if (magnitude >= 0x7c00u) return 0x7f800000u | (magnitude - 0x7c00u) << 13;  // infinity, NaN
  if (magnitude >= 0x0400u) return (magnitude << 13) + (112u << 23);           // 112: difference of exponent biases
  uint32_t exponent = 113;
  if (magnitude == 0) return 0;
  for (; magnitude < 0x0400u; magnitude <<= 1) --exponent;  // a subnormal
  return ((magnitude & 0x03ffu) << 13) + (exponent << 23);
}

// Bytes of a value of this kind, and the magnitude of its infinity.
constexpr LC_BOTH int width_of(int kind) { return kind == topk::kWide ? 4 : 2; }
constexpr LC_BOTH uint32_t infinity_of(int kind) {
  const bool half = kind == topk::kFloat16 || kind == topk::kCommonFloat16;
  return kind == topk::kWide ? 0x7f800000u : half ? 0x7c00u : 0x7f80u;
}

// Magnitude of a value of this kind as a key, and the smallest magnitude whose key is at least `key`.
LC_BOTH uint32_t to_key(int kind, uint32_t magnitude) {
  if (kind == topk::kCommonBfloat16) return magnitude << 16;
  if (kind == topk::kCommonFloat16) return half_to_common(magnitude);
  return magnitude;
}

LC_BOTH uint32_t from_key(int kind, uint32_t key) {
  if (kind == topk::kCommonBfloat16) return (key >> 16) + ((key & 0xffffu) != 0);
  if (kind != topk::kCommonFloat16) return key;
  uint32_t low = 0, high = 0x7c01u;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (half_to_common(middle) < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// ---- a few words of values: a bit per value, the first in bit 0; of 16 bits, four words ---------------------------

// Four bytes of a (0 to 3) and b (4 to 7), by the nibbles of kBytes; with 8 added, the sign of the byte eight times.
template <uint32_t kBytes>
LC_BOTH uint32_t permute(uint32_t a, uint32_t b) {
  uint32_t result;
#if defined(__CUDA_ARCH__)
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "n"(kBytes));
#else
  result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = kBytes >> (4 * i) & 15u;
    const uint32_t byte = ((nibble & 4u) ? b : a) >> (8 * (nibble & 3u)) & 0xffu;
    result |= ((nibble & 8u) ? (byte & 0x80u ? 0xffu : 0u) : byte) << (8 * i);
  }
#endif
  return result;
}

// Adds the products of signed bytes.
LC_BOTH uint32_t dot(uint32_t a, uint32_t b, uint32_t sum) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint32_t>(__dp4a(static_cast<int>(a), static_cast<int>(b), static_cast<int>(sum)));
#else
  for (int i = 0; i < 4; ++i) {
    const int product = static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
    sum += static_cast<uint32_t>(product);
  }
  return sum;
#endif
}

// The sign bits of the values.
template <int kWidth, int kWords>
LC_BOTH uint32_t signs(const uint32_t (&words)[kWords]) {
  if constexpr (kWidth == 4) {
    uint32_t bits = 0;
    for (int i = kWords - 1; i >= 0; --i) bits = bits << 1 | words[i] >> 31;  // one funnel shift
    return bits;
  } else {
    // Bytes of 0 or -1, times -1, -2, -4 and so on.
    return dot(permute<0xfdb9>(words[2], words[3]), 0x80c0e0f0u, dot(permute<0xfdb9>(words[0], words[1]), 0xf8fcfeffu, 0));
  }
}

// Which magnitudes are at least the bound that made `gap`.
template <int kWidth, int kWords>
LC_BOTH uint32_t at_least(const uint32_t (&magnitudes)[kWords], uint32_t gap) {
  uint32_t sums[kWords];
  for (int i = 0; i < kWords; ++i) sums[i] = magnitudes[i] + gap;
  return signs<kWidth>(sums);
}

// Zeroes every value whose bit is not set.
template <int kWidth, int kWords>
LC_BOTH void keep_only(uint32_t bits, uint32_t (&words)[kWords]) {
  if constexpr (kWidth == 4) {
    for (int i = 0; i < kWords; ++i) words[i] = (bits >> i & 1u) ? words[i] : 0u;
  } else {
    // A byte for each value, its sign bit set if the value's bit is.
    const uint32_t all = permute<0>(bits, 0), low = (all & 0x08040201u) + 0x7f7f7f7fu, high = (all & 0x80402010u) + 0x7f7f7f7fu;
    words[0] &= permute<0x9988>(low, 0);
    words[1] &= permute<0xbbaa>(low, 0);
    words[2] &= permute<0x9988>(high, 0);
    words[3] &= permute<0xbbaa>(high, 0);
  }
}

// ---- signs, as if no value was NaN --------------------------------------------------------------------------------

template <int kWidth>
struct Tally {
  using F = Format<kWidth>;
  uint32_t negative = 0, positive = 0, above = 0;

  // upper: F::gap of it.
  LC_BOTH void add(uint32_t word, bool with_upper, uint32_t upper) {
    const uint32_t magnitude = word & F::kMagnitude, nonzero = magnitude + F::kMagnitude;
    negative += (nonzero & word & F::kSign) >> F::kShift;
    positive += (nonzero & ~word & F::kSign) >> F::kShift;
    if (with_upper) above += ((magnitude + upper) & ~word & F::kSign) >> F::kShift;
  }
};

// Which values of a word are NaN, in their sign bits; gap: F::gap(infinity + 1).
template <int kWidth>
LC_BOTH uint32_t nans(uint32_t word, uint32_t gap) {
  return (word & Format<kWidth>::kMagnitude) + gap;
}

}  // namespace lc::cuda
