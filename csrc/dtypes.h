// The float types as bit patterns. A magnitude is the pattern without its sign: as an integer it has the order of
// |x|, 0 for both zeros, and is above `infinity` exactly for a NaN. No floating-point arithmetic anywhere, so
// subnormals are exact whatever the rounding and flushing modes of the process.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

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

// Smallest magnitude of this type that is at least the float32 next to `bound`, a number above 0; infinity + 1 if
// there is none.
inline uint32_t at_least(Dtype dtype, double bound) {
  // Halfway from the largest float32 to the next that there would be; a cast of more is undefined.
  constexpr double kOverflow = 3.4028235677973366e38;
  const float rounded = bound >= kOverflow ? std::numeric_limits<float>::infinity() : static_cast<float>(bound);
  uint32_t bits = 0;
  std::memcpy(&bits, &rounded, sizeof bits);
  return from_common(dtype, bits);
}

}  // namespace lc
