// Which activations and weights of layercollapse.h exist, as far as that needs no look at their memory: the same for the
// CPU and CUDA. Host only, no torch, no CUDA; nothing here allocates or throws.
#pragma once

#include <cstdint>
#include <limits>

#include "../dtypes.h"
#include "../python/include/layercollapse.h"

namespace lc::plan {

// Number of entries of an array of these sizes; -1 if there is no such array.
inline int64_t entries_of(int64_t dims, const int64_t* sizes, const int64_t* strides) {
  if (dims < 0 || dims > LC_MAX_DIMS || (dims > 0 && (sizes == nullptr || strides == nullptr))) return -1;
  int64_t count = 1;
  bool empty = false;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] < 0) return -1;
    empty |= sizes[d] == 0;
    if (sizes[d] > 1 && count > std::numeric_limits<int64_t>::max() / sizes[d]) return -1;  // also of an empty one
    if (sizes[d] > 1) count *= sizes[d];
  }
  return empty ? 0 : count;
}

inline bool known(int64_t dtype) { return dtype >= 0 && dtype < kDtypes; }

inline bool well_formed(const lc_activation& a) {
  const int64_t entries = entries_of(a.dims, a.sizes, a.strides);
  if (entries < 0 || !known(a.dtype) || a.channel_dim < 0 || a.channel_dim >= a.dims) return false;
  return entries == 0 || (a.x != nullptr && a.out != nullptr);
}

inline bool well_formed(const lc_weight& weight) {
  const int64_t entries = entries_of(weight.dims, weight.sizes, weight.strides);
  return entries >= 0 && known(weight.dtype) && (entries == 0 || (weight.values != nullptr && weight.mask != nullptr));
}

// Whether all of an array of them exist.
template <class T>
bool well_formed(const T* all, int64_t count) {
  if (count < 0 || (count > 0 && all == nullptr)) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (!well_formed(all[i])) return false;
  }
  return true;
}

// The same, and their bounds, which sign_hashes does not look at: 0, or one that does not round to 0, which means none.
inline bool well_bounded(const lc_activation* all, int64_t count) {
  if (!well_formed(all, count)) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (all[i].upper != 0 && !(all[i].upper > 0x1p-150)) return false;  // a NaN, too
  }
  return true;
}

}  // namespace lc::plan
