// How sign_hashes reads an activation on a GPU. Host only, no torch, no CUDA; nothing here allocates or throws.
#pragma once

#include <cstdint>

#include "../python/include/layercollapse.h"

namespace lc::plan {

// The rows of an activation: all its dimensions but that of the channels.
struct HashRows {
  int64_t channels, channel_stride;  // in entries
  int64_t count;                     // rows
  int64_t ndim;                      // 1 at least
  int64_t sizes[LC_MAX_DIMS], strides[LC_MAX_DIMS];  // row-major, as few as describe the same memory
};

inline HashRows hash_rows(const lc_activation& a) {
  HashRows rows{a.sizes[a.channel_dim], a.strides[a.channel_dim], 1, 0, {}, {}};
  const int64_t *sizes = a.sizes, *strides = a.strides;
  for (int64_t d = 0; d < a.dims; ++d) {
    if (d == a.channel_dim) continue;
    rows.count *= sizes[d];
    if (sizes[d] == 1) continue;
    const int64_t last = rows.ndim - 1;
    if (last >= 0 && rows.strides[last] == sizes[d] * strides[d]) {
      rows.sizes[last] *= sizes[d];
      rows.strides[last] = strides[d];
    } else {
      rows.sizes[rows.ndim] = sizes[d];
      rows.strides[rows.ndim++] = strides[d];
    }
  }
  if (rows.ndim == 0) {
    rows.sizes[0] = 1;
    rows.ndim = 1;
  }
  return rows;
}

// Whether every row is whole vectors of `entries` entries, side by side and aligned.
inline bool whole_rows(const HashRows& rows, bool aligned, int64_t entries) {
  bool whole = aligned && rows.channel_stride == 1 && rows.channels % entries == 0 && rows.channels < 1 << 30;
  for (int64_t d = 0; d < rows.ndim; ++d) whole &= rows.strides[d] % entries == 0;
  return whole;
}

// Whether `entries` neighbouring rows are always aligned words of each channel.
inline bool whole_words(const HashRows& rows, bool aligned, int64_t entries) {
  const int64_t last = rows.ndim - 1;
  bool whole = aligned && rows.strides[last] == 1 && rows.sizes[last] % entries == 0;
  whole &= rows.channel_stride % entries == 0;
  for (int64_t d = 0; d < last; ++d) whole &= rows.strides[d] % entries == 0;
  return whole;
}

}  // namespace lc::plan
