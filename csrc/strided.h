// Strided weights in pieces: copied to row-major order and back, within the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "masked_topk.h"

namespace lc {

// Copies `rows` rows of n entries between memory and row-major order. Row by row, also where neighbouring rows lie next
// to each other and the entries of one far apart (channels-last): writing every ninth entry took two to four times as
// long as reading from nine places.
template <bool kGather, class U>
inline void copy_rows(U* values, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, U* piece) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (kGather) {
        piece[r * n + i] = values[r * row_stride + i * stride];
      } else {
        values[r * row_stride + i * stride] = piece[r * n + i];
      }
    }
  }
}

// Copies entries between row-major order and a strided weight: as many whole rows at once as there are, because a
// division per row (9 entries of a 3 x 3 filter) cost more than the copy.
template <bool kGather, class U>
void transfer(const Weight& weight, int64_t begin, int64_t count, U* piece) {
  const Dim inner = weight.dims.back(), rows = weight.outer.empty() ? Dim{1, 0} : weight.outer.back();
  while (count > 0) {
    const int64_t row = begin / inner.size, at = begin % inner.size;
    U* values = static_cast<U*>(weight.values) + offset_of(weight.outer, row) + at * inner.stride;
    const int64_t whole = at == 0 ? std::min(count / inner.size, rows.size - row % rows.size) : 0;
    const int64_t n = whole > 0 ? whole * inner.size : std::min(count, inner.size - at);
    if (whole > 0 && rows.stride == 1) {
      copy_rows<kGather>(values, 1, inner.stride, whole, inner.size, piece);
    } else if (whole > 0) {
      copy_rows<kGather>(values, rows.stride, inner.stride, whole, inner.size, piece);
    } else {
      copy_rows<kGather>(values, 0, inner.stride, 1, n, piece);
    }
    piece += n;
    begin += n;
    count -= n;
  }
}

constexpr int64_t kChunk = 65536;  // entries per unit of work: 8 KiB of keep-bits, so no two share a byte
constexpr int64_t kPiece = 4096;   // entries per kernel call; a gathered piece stays in the first-level cache

// Calls body(values, keep, n) for the pieces of [begin, begin + size); body returns whether it changed the values.
// gathered: kPiece entries of scratch.
template <class U, class Body>
void for_pieces(const Weight& weight, int64_t begin, int64_t size, U* gathered, const Body& body) {
  for (int64_t i = begin, end = begin + size; i < end; i += kPiece) {
    const int64_t n = std::min(kPiece, end - i);
    uint8_t* keep = weight.keep + i / 8;
    if (weight.dims.empty()) {
      body(static_cast<U*>(weight.values) + i, keep, n);
      continue;
    }
    transfer<true>(weight, i, n, gathered);
    if (body(gathered, keep, n)) transfer<false>(weight, i, n, gathered);
  }
}

}  // namespace lc
