// The counting stage of masked_topk_ by itself, for ranks that each hold a part of the weights.
#pragma once

#include <cstdint>
#include <vector>

#include "masked_topk.h"

namespace lc {

constexpr int64_t kCountBins = 2048;
enum CountField { kCountNan, kCountKept, kCountBelow, kCountFirst };

// Adds to counts[kCountFirst + kCountBins]: weights with a NaN, entries kept, those of a magnitude below lo (as a
// float32's bits), and those in [lo, hi) by bins of one width, the smallest power of two for which they are enough.
void topk_count(const std::vector<Weight>& weights, uint32_t lo, uint32_t hi, int threads, int64_t* counts);

}  // namespace lc
