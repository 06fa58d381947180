// apply_mask_ on the GPU: one read of the weights and their masks, a write of the vectors that change; one launch.
//
//   w[i] = 0 where bit i of the mask is 0
//
// The table of the weights (plan/mask_plan.h) is an argument of the kernel: nothing is copied to the device before it, a
// CUDA graph holds its own, and no memory is needed. A block does one tile; all of a thread's loads, 64 bytes, are issued
// before the first is looked at.
#include <type_traits>

#include "../plan/arguments.h"
#include "../plan/mask_plan.h"
#include "bits.cuh"
#include "device.cuh"
#include "launch.h"

namespace lc::cuda {
namespace {

using plan::MaskTable;

constexpr int kThreads = 256;
constexpr int64_t kTile = 8192;  // entries

// Arguments of a kernel: 4 KB, or 32 KB from CUDA 12.1 on.
template <int kWords>
struct Table {
  int64_t words[kWords];
  int rows;
};
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
constexpr int kMostWords = 4000;
#else
constexpr int kMostWords = 500;
#endif

template <int kWidth>
using BitsOf = typename std::conditional<kWidth == 2, uint16_t, uint32_t>::type;

template <int kWidth>
struct Octet {  // 8 values
  static constexpr int kVectors = kWidth / 2;
  uint32_t words[Format<kWidth>::kWords];

  __device__ __forceinline__ void load(const uint4* place) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const uint4 value = __ldca(place + v);  // the next forward pass reads the weights again: no hint to drop them
      words[4 * v] = value.x;
      words[4 * v + 1] = value.y;
      words[4 * v + 2] = value.z;
      words[4 * v + 3] = value.w;
    }
  }
  __device__ __forceinline__ void store(uint4* place, uint32_t keep) const {
    uint32_t all[Format<kWidth>::kWords];
#pragma unroll
    for (int w = 0; w < Format<kWidth>::kWords; ++w) all[w] = words[w];
    keep_only<kWidth>(keep, all);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const uint32_t* kept = all + 4 * v;
      uint32_t gone = 0;
#pragma unroll
      for (int w = 0; w < 4; ++w) gone |= kept[w] ^ words[4 * v + w];
      if (gone != 0) __stwb(place + v, make_uint4(kept[0], kept[1], kept[2], kept[3]));
    }
  }
};

// Entries [begin, begin + kTile) of a weight whose keep-bits have the order of its values.
template <int kWidth>
__device__ __forceinline__ void apply_plain(void* values, const uint8_t* mask, int64_t count, int64_t begin) {
  constexpr int kUnroll = 8 / kWidth, kStep = kUnroll * kThreads;  // octets
  auto* x = static_cast<uint4*>(values) + begin / 8 * Octet<kWidth>::kVectors;
  mask += begin / 8;
  const int64_t left = count - begin;
  if (left >= kTile) {
#pragma unroll 1
    for (int octet = static_cast<int>(threadIdx.x); octet < kTile / 8; octet += kStep) {
      Octet<kWidth> o[kUnroll];
      uint32_t keep[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) keep[u] = __ldca(mask + octet + u * kThreads);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) o[u].load(x + (octet + u * kThreads) * Octet<kWidth>::kVectors);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) o[u].store(x + (octet + u * kThreads) * Octet<kWidth>::kVectors, keep[u]);
    }
    return;
  }
  const int octets = static_cast<int>(left) / 8;
  for (int octet = static_cast<int>(threadIdx.x); octet < octets; octet += kThreads) {
    Octet<kWidth> o;
    o.load(x + octet * Octet<kWidth>::kVectors);
    o.store(x + octet * Octet<kWidth>::kVectors, mask[octet]);
  }
  const int last = static_cast<int>(left) % 8;
  if (static_cast<int>(threadIdx.x) < last && !(mask[octets] >> threadIdx.x & 1u)) {
    auto* place = reinterpret_cast<BitsOf<kWidth>*>(x + octets * Octet<kWidth>::kVectors) + threadIdx.x;
    if (*place != 0) *place = 0;
  }
}

struct Place {
  int64_t entry, bit;  // of the first: in memory, and in the mask
};

// Where the entry of this number in the order of memory is. Index: of 32 bits where they do, as a division by 64 costs
// several times more.
template <class Index, class Words>
__device__ __forceinline__ Place place_of(const Words& words, int dims, int64_t end, Index index) {
  Place place{0, 0};
#pragma unroll 1
  for (int64_t dim = end - plan::kDimWords; dims > 0; --dims, dim -= plan::kDimWords) {
    const auto size = static_cast<Index>(words[dim]), at = index % size;
    index /= size;
    place.entry += int64_t(at) * words[dim + 1];
    place.bit += int64_t(at) * words[dim + 2];
  }
  return place;
}

// Entries [begin, begin + kTile) in the order of memory, where keep-bits have another.
template <int kWidth, class Index, class Words>
__device__ __forceinline__ void apply_permuted(void* values, const uint8_t* mask, int64_t count, int64_t begin,
                                               const Words& words, int64_t info) {
  const int dims = static_cast<int>(info >> plan::kDimsShift & 0xff);
  const int64_t end = (info >> plan::kPlaceShift) + dims * plan::kDimWords, bits = words[end - 1];
  auto* x = static_cast<BitsOf<kWidth>*>(values);
  const int64_t stop = min(count, begin + kTile);
  if (info & plan::kVectorsBit) {
    for (int64_t i = begin + int64_t(threadIdx.x) * 8; i < stop; i += kThreads * 8) {
      const Place place = place_of(words, dims, end, static_cast<Index>(i));
      Octet<kWidth> o;
      auto* vector = reinterpret_cast<uint4*>(x + place.entry);
      o.load(vector);
      uint32_t keep = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int64_t bit = place.bit + j * bits;
        keep |= (static_cast<uint32_t>(__ldca(mask + bit / 8)) >> (bit % 8) & 1u) << j;
      }
      o.store(vector, keep);
    }
    return;
  }
  for (int64_t i = begin + threadIdx.x; i < stop; i += kThreads) {
    const Place place = place_of(words, dims, end, static_cast<Index>(i));
    const bool kept = __ldca(mask + place.bit / 8) >> (place.bit % 8) & 1u;
    if (!kept && __ldca(x + place.entry) != 0) __stwb(x + place.entry, BitsOf<kWidth>(0));
  }
}

template <int kWidth, class Words>
__device__ __forceinline__ void apply_row(const Words& words, int row) {
  const int64_t at = row * plan::kRowWords, count = words[at + 2], begin = (blockIdx.x - words[at + 3]) * kTile;
  auto* values = reinterpret_cast<void*>(words[at]);
  const auto* mask = reinterpret_cast<const uint8_t*>(words[at + 1]);
  const int64_t info = words[at + 4];
  if ((info >> plan::kDimsShift & 0xff) == 0) {
    apply_plain<kWidth>(values, mask, count, begin);
  } else if (count <= 0xffffffffll) {
    apply_permuted<kWidth, uint32_t>(values, mask, count, begin, words, info);
  } else {
    apply_permuted<kWidth, uint64_t>(values, mask, count, begin, words, info);
  }
}

template <int kWords>
__global__ void __launch_bounds__(kThreads, 5) apply_mask_kernel(const Table<kWords> table) {
  int row = 0;
  for (int size = table.rows; size > 1;) {  // the last row that begins at or before this tile
    const int half = size / 2;
    if (table.words[(row + half) * plan::kRowWords + 3] <= blockIdx.x) row += half;
    size -= half;
  }
  if ((table.words[row * plan::kRowWords + 4] & 0xf) == 2) {
    apply_row<2>(table.words, row);
  } else {
    apply_row<4>(table.words, row);
  }
}

// Launches for weights from `first`; returns the first that found no room.
template <int kWords>
int64_t launch(const lc_weight* weights, int64_t first, int64_t count, void* stream) {
  Table<kWords> table;
  MaskTable rows(table.words, kWords, kTile);
  while (first < count && rows.add(weights[first])) ++first;
  table.rows = static_cast<int>(rows.rows());
  if (table.rows > 0) LC_LAUNCH(apply_mask_kernel<kWords>, static_cast<unsigned>(rows.tiles()), kThreads, stream)(table);
  return first;
}

}  // namespace
}  // namespace lc::cuda

using namespace lc::cuda;

int lc_apply_mask(const lc_weight* weights, int64_t count, void* stream) {
  if (!lc::plan::well_formed(weights, count)) return cudaErrorInvalidValue;
  int64_t words = 0;
  for (int64_t i = 0; i < count; ++i) words += MaskTable::most_words(weights[i]);
  for (int64_t first = 0; first < count;) {
    first = words <= 500 ? launch<500>(weights, first, count, stream) : launch<kMostWords>(weights, first, count, stream);
  }
  return cudaGetLastError();
}
