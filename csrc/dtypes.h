// The float types as bit patterns. A magnitude is the pattern without its sign: as an integer it has the order of
// |x|, 0 for both zeros, and is above `infinity` exactly for a NaN. No floating-point arithmetic anywhere, so
// subnormals are exact whatever the rounding and flushing modes of the process.
#pragma once

#include <cstdint>
#include <cstring>

namespace lc {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };
constexpr int kDtypes = 3;

constexpr int64_t width(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }  // bytes

constexpr uint32_t infinity(Dtype dtype) {
  return dtype == Dtype::float32 ? 0x7f800000u : dtype == Dtype::bfloat16 ? 0x7f80u : 0x7c00u;
}

// Common scale of all types: the magnitude of the same number as a float32.
constexpr uint32_t kCommonEnd = 0x7f800001u;  // one past infinity

inline uint32_t to_common(Dtype dtype, uint32_t magnitude) {
  if (dtype == Dtype::float32) return magnitude;
  if (dtype == Dtype::bfloat16) return magnitude << 16;
  if (magnitude >= 0x7c00u) return 0x7f800000u | (magnitude - 0x7c00u) << 13;  // infinity, NaN
  if (magnitude >= 0x0400u) return (magnitude << 13) + (112u << 23);           // 112: difference of exponent biases
  if (magnitude == 0) return 0;
  const int shift = __builtin_clz(magnitude) - 21;  // a subnormal half: bring its highest bit to bit 10
  return ((magnitude << shift) << 13) + (static_cast<uint32_t>(112 - shift) << 23);
}

// Every magnitude on the common scale is a multiple of this.
constexpr uint32_t grain(Dtype dtype) {
  return dtype == Dtype::float32 ? 1u : dtype == Dtype::bfloat16 ? 1u << 16 : 1u << 13;
}

// Smallest magnitude of this type that is at least `common` (infinity + 1 if there is none): the bound that
// `magnitude < bound` needs to select what `to_common(magnitude) < common` selects.
inline uint32_t from_common(Dtype dtype, uint32_t common) {
  if (dtype == Dtype::float32) return common;
  if (dtype == Dtype::bfloat16) return static_cast<uint32_t>((static_cast<uint64_t>(common) + 0xffffu) >> 16);
  uint32_t low = 0, high = 0x7c01u;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (to_common(dtype, middle) < common) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Bits of the float32 next to `bound`, a number above 0; of two as near, of the even one. A cast would make a subnormal
// 0 in a process that flushes them.
inline uint32_t float_bits(double bound) {
  uint64_t bits = 0;
  std::memcpy(&bits, &bound, sizeof bits);
  const int exponent = static_cast<int>(bits >> 52) - 1023;
  if (exponent > 127) return 0x7f800000u;
  if (exponent < -150) return 0;
  const uint64_t mantissa = (bits & ((uint64_t(1) << 52) - 1)) | uint64_t(1) << 52;
  const int shift = exponent < -126 ? -97 - exponent : 29;
  const uint64_t half = uint64_t(1) << (shift - 1), rest = mantissa & (2 * half - 1), whole = mantissa >> shift;
  const uint64_t rounded = whole + (rest > half || (rest == half && whole % 2 == 1));
  return static_cast<uint32_t>(rounded) + (exponent < -126 ? 0u : static_cast<uint32_t>(exponent + 126) << 23);
}

// Smallest magnitude of this type that is at least the float32 next to `bound`, a number above 0; infinity + 1 if
// there is none.
inline uint32_t at_least(Dtype dtype, double bound) { return from_common(dtype, float_bits(bound)); }

}  // namespace lc
