#pragma once

#include <cstdint>
#include <vector>

#include "dtypes.h"
#include "layout.h"

namespace lc {

// Adds the hash of every row's signs to out, which holds a zero for each: rows are the positions of `samples` in
// row-major order, and have the values of all channels there. Strides in entries; 0 and negative ones are fine.
void sign_hashes(const void* x, Dtype dtype, Dim channels, std::vector<Dim> samples, int64_t* out, int threads);

}  // namespace lc
