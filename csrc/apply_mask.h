#pragma once

#include <vector>

#include "masked_topk.h"

namespace lc {

// Zeroes every entry without a keep-bit; masks are only read. Weights must not overlap. All or nothing: throws
// std::bad_alloc with nothing changed.
void apply_mask(const std::vector<Weight>& weights, int threads);

}  // namespace lc
