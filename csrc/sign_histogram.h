#pragma once

#include <cstdint>
#include <vector>

#include "dtypes.h"
#include "layout.h"

namespace lc {

// Adds the signs of x to out: per channel negative, zero, positive, NaN, and with upper > 0 also x >= upper
// (a float32); int64 (C, 4) or (C, 5), contiguous. Reads x once. samples: every dimension but the channels', in
// any order; strides of either sign, 0 included.
void sign_histogram(const void* x, Dtype dtype, Dim channels, std::vector<Dim> samples, float upper, int64_t* out,
                    int threads);

}  // namespace lc
