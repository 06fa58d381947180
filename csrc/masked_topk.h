#pragma once

#include <cstdint>
#include <vector>

#include "dtypes.h"
#include "layout.h"

namespace lc {

struct Weight {
  void* values;
  uint8_t* keep;          // ceil(size / 8) bytes; bit i is the entry at row-major position i
  Dtype dtype;
  int64_t size;           // entries
  std::vector<Dim> dims;  // row-major, coalesced; empty: contiguous
  std::vector<Dim> outer; // dims without the last
};

// Gives a weight with entries its layout: row-major dimensions.
inline void set_dims(Weight& weight, const std::vector<Dim>& dims) {
  weight.dims = coalesce(dims);
  if (weight.dims.size() == 1 && weight.dims[0].stride == 1) weight.dims.clear();
  if (!weight.dims.empty()) weight.outer.assign(weight.dims.begin(), weight.dims.end() - 1);
}

// Why nothing was changed: which weight holds a NaN, or which group keeps fewer entries than it should lose.
struct TopkResult {
  enum Code { done, nan, too_many } code = done;
  int64_t index = 0;
  int64_t kept = 0;
};

// Clears the k smallest magnitudes of each group among the entries kept: of each weight by itself (k.size() ==
// weights.size()), or of all together (k.size() == 1 and global). Then zeroes every entry without a keep-bit.
// thresholds: one per k, the bits of the largest magnitude cleared as a float32, 0 if none. Weights must not
// overlap. All or nothing: throws std::bad_alloc, or returns another code than done, with nothing changed.
TopkResult masked_topk(std::vector<Weight>& weights, const std::vector<int64_t>& k, bool global, int threads,
                       uint32_t* thresholds);

}  // namespace lc
