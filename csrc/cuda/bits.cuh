// Signs and magnitudes on raw bits: for the device, and for tests/cuda/emulate.h on the host. A word holds one float32
// or two 16-bit values; no sum below carries from one value into the next.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LC_BOTH __host__ __device__ __forceinline__
#else
#define LC_BOTH inline
#endif

namespace lc::cuda {

template <int kWidth>  // bytes of a value
struct Format {
  static constexpr int kPerWord = 4 / kWidth;
  static constexpr int kWords = 8 / kPerWord;  // words of an octet: 8 values, one byte of a mask
  static constexpr uint32_t kPair = kWidth == 2 ? 0x00010001u : 1u;
  static constexpr uint32_t kTop = 1u << (8 * kWidth - 1);
  static constexpr uint32_t kSign = kTop * kPair, kMagnitude = ~kSign;
  static constexpr int kShift = 8 * kWidth - 1;
  // What to add to a magnitude so that its sign bit tells whether it is at least `bound` (at most kTop).
  static LC_BOTH uint32_t gap(uint32_t bound) { return (kTop - bound) * kPair; }
};

// The order of `code` in csrc/dtypes.h; kinds of kernels/topk_plan.py that are not Wide have 16 bits.
enum Kind { kWide, kNarrow, kCommonBfloat16, kCommonFloat16 };

LC_BOTH uint32_t half_to_common(uint32_t magnitude) {
  if (magnitude >= 0x7c00u) return 0x7f800000u | (magnitude - 0x7c00u) << 13;  // infinity, NaN
  if (magnitude >= 0x0400u) return (magnitude << 13) + (112u << 23);           // 112: difference of exponent biases
  uint32_t exponent = 113;
  if (magnitude == 0) return 0;
  for (; magnitude < 0x0400u; magnitude <<= 1) --exponent;  // a subnormal
  return ((magnitude & 0x03ffu) << 13) + (exponent << 23);
}

// Magnitude of a value of this kind as a key, and the smallest magnitude whose key is at least `key`.
LC_BOTH uint32_t to_key(int kind, uint32_t magnitude) {
  if (kind == kCommonBfloat16) return magnitude << 16;
  if (kind == kCommonFloat16) return half_to_common(magnitude);
  return magnitude;
}

LC_BOTH uint32_t from_key(int kind, uint32_t key) {
  if (kind == kCommonBfloat16) return (key >> 16) + ((key & 0xffffu) != 0);
  if (kind != kCommonFloat16) return key;
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

// ---- octets: a bit per value, the first in bit 0 ------------------------------------------------------------------

// The sign bits of an octet's words.
template <int kWidth>
LC_BOTH uint32_t signs(const uint32_t (&words)[Format<kWidth>::kWords]) {
  uint32_t bits = 0;
  if constexpr (kWidth == 4) {
    for (int i = 0; i < 8; ++i) bits |= (words[i] >> 31) << i;
    return bits;
  } else {
    for (int i = 0; i < 4; ++i) bits |= (words[i] >> (15 - 2 * i)) & (0x00010001u << 2 * i);
    return (bits | bits >> 15) & 0xffu;
  }
}

// Which magnitudes are at least the bound that made `gap`.
template <int kWidth>
LC_BOTH uint32_t at_least(const uint32_t (&magnitudes)[Format<kWidth>::kWords], uint32_t gap) {
  uint32_t sums[Format<kWidth>::kWords];
  for (int i = 0; i < Format<kWidth>::kWords; ++i) sums[i] = magnitudes[i] + gap;
  return signs<kWidth>(sums);
}

// The words with every value zeroed whose bit is not set.
template <int kWidth>
LC_BOTH uint32_t keep_only(uint32_t word, uint32_t bits, int index) {
  if constexpr (kWidth == 4) {
    return (bits >> index & 1u) ? word : 0u;
  } else {
    const uint32_t pair = bits >> (2 * index);
    return word & ((pair & 1u ? 0x0000ffffu : 0u) | (pair & 2u ? 0xffff0000u : 0u));
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
