// How apply_mask_ is cut for a GPU: one table for many weights, for one launch. Host only, no torch, no CUDA; nothing
// here allocates or throws.
//
// A weight is read in the order of memory, whatever the order of its dimensions: neighbouring threads read neighbouring
// entries, and look for each keep-bit where the row-major order has it. Weights are cut into tiles of as many entries;
// a row holds the first of its weight's tiles, so that a block finds its weight by bisection.
//
//     rows (R, 5)  addresses of the values and of the mask, entries, first tile, info
//     dims (D, 3)  size, stride of the values in entries, stride of the keep-bits; in the order of memory
//
// Rows grow from the front of the table and dims from its end. info holds, from its lowest bit, 4 bits of the width in
// bytes, one for kVectors, 8 of the number of dims, and from bit 16 the place of the first dim in the table. A weight
// without dims has its entries and its keep-bits in one order, aligned to 16 bytes.
#pragma once

#include <cstdint>

#include "../dtypes.h"
#include "../python/include/layercollapse.h"
#include "vector.h"

namespace lc::plan {

constexpr int64_t kRowWords = 5, kDimWords = 3;
constexpr int64_t kVectorsBit = 16, kDimsShift = 8, kPlaceShift = 16;

class MaskTable {
 public:
  // words: capacity of them. tile: entries, a multiple of 8.
  MaskTable(int64_t* words, int64_t capacity, int64_t tile) : words_(words), capacity_(capacity), tile_(tile) { clear(); }

  void clear() {
    rows_ = tiles_ = 0;
    end_ = capacity_;
  }
  int64_t rows() const { return rows_; }
  int64_t tiles() const { return tiles_; }

  // Words that a weight takes at most.
  static int64_t most_words(const lc_weight& weight) { return kRowWords + kDimWords * weight.dims; }

  // Returns false, and changes nothing, if there is no room. A weight without entries takes none.
  bool add(const lc_weight& weight) {
    Dim dims[LC_MAX_DIMS];
    int64_t count;
    int64_t ndim = in_memory_order(weight, dims, &count);
    if (count == 0) return true;
    bool aligned = reinterpret_cast<std::uintptr_t>(weight.values) % kVector == 0;
    if (aligned && (ndim == 0 || (ndim == 1 && dims[0].stride == 1))) {
      ndim = 0;
    } else if (ndim == 0) {
      dims[ndim++] = {1, 1, 1};
    }
    // Whether eight entries of the innermost dimension lie side by side, in whole vectors.
    for (int64_t d = 0; d < ndim; ++d) aligned &= (d + 1 < ndim ? dims[d].stride : dims[d].size) % 8 == 0;
    const bool vectors = ndim > 0 && aligned && dims[ndim - 1].stride == 1;
    if ((rows_ + 1) * kRowWords + ndim * kDimWords > end_) return false;
    for (int64_t d = ndim; d-- > 0;) {
      end_ -= kDimWords;
      words_[end_] = dims[d].size;
      words_[end_ + 1] = dims[d].stride;
      words_[end_ + 2] = dims[d].bits;
    }
    int64_t* row = words_ + rows_++ * kRowWords;
    row[0] = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(weight.values));
    row[1] = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(weight.mask));
    row[2] = count;
    row[3] = tiles_;
    row[4] = width(static_cast<Dtype>(weight.dtype)) | (vectors ? kVectorsBit : 0) | ndim << kDimsShift | end_ << kPlaceShift;
    tiles_ += (count + tile_ - 1) / tile_;
    return true;
  }

 private:
  struct Dim {
    int64_t size, stride, bits;
  };

  // Dimensions by falling stride, as few as describe the same memory and the same bits; sets the number of entries.
  static int64_t in_memory_order(const lc_weight& weight, Dim* dims, int64_t* count) {
    int64_t n = 0, bits = 1;
    *count = 1;
    for (int64_t d = weight.dims; d-- > 0;) {
      *count *= weight.sizes[d];
      if (weight.sizes[d] == 1) continue;
      const Dim dim{weight.sizes[d], weight.strides[d], bits};
      bits *= weight.sizes[d];
      int64_t place = n++;  // sorted by insertion
      for (; place > 0 && dims[place - 1].stride < dim.stride; --place) dims[place] = dims[place - 1];
      dims[place] = dim;
    }
    int64_t kept = 0;
    for (int64_t d = 0; d < n; ++d) {
      Dim* last = dims + kept - 1;
      if (kept > 0 && last->stride == dims[d].size * dims[d].stride && last->bits == dims[d].size * dims[d].bits) {
        *last = {last->size * dims[d].size, dims[d].stride, dims[d].bits};
      } else {
        dims[kept++] = dims[d];
      }
    }
    return kept;
  }

  int64_t* words_;
  int64_t capacity_, tile_, rows_ = 0, tiles_ = 0, end_ = 0;
};

}  // namespace lc::plan
