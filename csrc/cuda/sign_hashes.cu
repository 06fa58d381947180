// sign_hashes on the GPU: one read of x, 8 bytes written per row.
//
//   hash[r] = Σ_w mix(mix(word_w) + (w + 1) · kPhi),  word_w: the signs of channels 64 w ... 64 w + 63 of row r
//
// Where channels lie side by side, a team of lanes reads the 64 channels of a word as vectors of 16 bytes, eight words
// before it looks at the first, and each lane mixes one of them. Else a thread owns a row (two of 16 bits, where they are
// a 32-bit word of memory) and shifts the signs of 64 channels into registers. Words of a row that are in several
// teams or blocks are added by 64-bit atomics to zeros: sums of integers, so no order of arrival can show.
#include <algorithm>
#include <type_traits>

#include "../dtypes.h"
#include "../plan/arguments.h"
#include "../plan/hash_plan.h"
#include "../plan/vector.h"
#include "../sign_hash.h"
#include "bits.cuh"
#include "device.cuh"
#include "launch.h"

namespace lc::cuda {
namespace {

constexpr int kThreads = 128, kUnroll = 8, kResident = 8;  // blocks of a multiprocessor

struct Hash {
  const void* x;
  int64_t* out;
  uint32_t infinity;
  int64_t words, total;       // of a row, of all rows
  int64_t each;               // words of a row that one block of hash_positions takes
  int step_words;             // from a team's word to its next
  int64_t step_rows;
  int64_t step, wrap;         // the same in memory, where rows are one stride apart, and when it ends a row; in vectors
  plan::HashRows rows;
};

__device__ __forceinline__ uint64_t mix(uint64_t z) {
  z = (z ^ z >> kMixShift1) * kMixFactor1;
  z = (z ^ z >> kMixShift2) * kMixFactor2;
  return z ^ z >> kMixShift3;
}

__device__ __forceinline__ uint64_t hash_word(uint64_t bits, int64_t word) {
  return mix(mix(bits) + static_cast<uint64_t>(word + 1) * kPhi);
}

__device__ __forceinline__ void add(int64_t* place, uint64_t hash, bool alone) {
  if (alone) {
    *place = static_cast<int64_t>(hash);
  } else {
    atomicAdd(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(hash));
  }
}

// Which values of a word are positive and no NaN, in their sign bits; other bits are anything.
template <int kWidth>
__device__ __forceinline__ uint32_t positives(uint32_t word, uint32_t nan_gap) {
  const uint32_t magnitude = word & Format<kWidth>::kMagnitude;
  return (magnitude + Format<kWidth>::kMagnitude) & ~word & ~(magnitude + nan_gap);
}

// Offset in entries of a row. Index: of 32 bits where they do, as a division by 64 costs several times more.
template <class Index>
__device__ __forceinline__ int64_t offset_of(const plan::HashRows& rows, Index row) {
  int64_t offset = 0;
#pragma unroll 1
  for (int64_t d = rows.ndim - 1; d > 0; --d) {
    const auto size = static_cast<Index>(rows.sizes[d]);
    offset += static_cast<int64_t>(row % size) * rows.strides[d];
    row /= size;
  }
  return offset + static_cast<int64_t>(row) * rows.strides[0];
}

__device__ int64_t offset_of(const plan::HashRows& rows, int64_t row) {
  return rows.count <= 0xffffffffll ? offset_of(rows, static_cast<uint32_t>(row))
                                    : offset_of(rows, static_cast<uint64_t>(row));
}

__device__ __forceinline__ int64_t row_of(const Hash& h, int64_t word) {
  return h.total <= 0xffffffffll ? static_cast<uint32_t>(word) / static_cast<uint32_t>(h.words) : word / h.words;
}

// Block b: kUnroll words for each team from word b · kTeams · kUnroll of all, teams side by side. kRegular: rows are all
// one stride apart, so that the loads follow each other without a branch.
template <int kWidth, bool kRegular>
__global__ void __launch_bounds__(kThreads, 7) hash_rows_kernel(const Hash h) {
  using F = Format<kWidth>;
  constexpr int kVector = 16 / kWidth, kLanes = kHashWord / kVector, kTeams = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, team = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t first = int64_t(blockIdx.x) * (kTeams * kUnroll) + team;
  const int left = static_cast<int>(min(h.total - first, int64_t(kTeams * kUnroll)));
  const int words = static_cast<int>(h.words), channels = static_cast<int>(h.rows.channels);
  int64_t row = row_of(h, first);
  int word = static_cast<int>(first - row * h.words);
  const int64_t stride = h.rows.strides[0];
  const uint4* place = static_cast<const uint4*>(h.x) + (row * stride + word * kHashWord) / kVector + lane;
  uint4 values[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    values[u] = make_uint4(0, 0, 0, 0);
    if (u * kTeams < left && word * kHashWord + lane * kVector < channels) {
      if constexpr (kRegular) {
        values[u] = __ldcs(place);
      } else {
        values[u] = __ldcs(static_cast<const uint4*>(h.x) + (offset_of(h.rows, row) + word * kHashWord) / kVector + lane);
      }
    }
    word += h.step_words;
    row += h.step_rows;
    place += h.step;
    if (word >= words) {
      word -= words;
      ++row;
      place += h.wrap;
    }
  }

  // Signs of this lane's channels in each word; then lanes exchange halves, so that lane u has the whole of word u.
  uint32_t parts[kUnroll], low = 0, high = 0;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const uint32_t v[4] = {values[u].x, values[u].y, values[u].z, values[u].w};
    parts[u] = 0;
    if constexpr (kWidth == 2) {
      uint32_t on[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) on[w] = positives<2>(v[w], F::gap(h.infinity + 1));
      parts[u] = signs<2>(on);
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w) parts[u] |= v[w] - 1 < h.infinity ? 1u << w : 0u;
    }
  }
#pragma unroll
  for (int round = 0; round < 3; ++round) {
    const bool upper = lane >> round & 1;
#pragma unroll
    for (int i = 0; i < kUnroll / 2 >> round; ++i) {
      const uint32_t sent = upper ? parts[2 * i] : parts[2 * i + 1], kept = upper ? parts[2 * i + 1] : parts[2 * i];
      const uint32_t other = __shfl_xor_sync(0xffffffffu, sent, 1 << round);
      low = upper ? other : kept;
      high = upper ? kept : other;
      if (kVector << round < 32) parts[i] = low | high << (kVector << round & 31);
    }
  }
  if constexpr (kWidth == 4) {  // 16 lanes: the other half of the word is 8 lanes away
    low = parts[0];
    high = __shfl_xor_sync(0xffffffffu, low, 8);
  }
  if (lane >= kUnroll || lane * kTeams >= left) return;
  const int64_t mine = first + lane * kTeams, my_row = row_of(h, mine);
  add(h.out + my_row, hash_word(uint64_t(high) << 32 | low, mine - my_row * h.words), words == 1);
}

// Block (i, j): rows from i · kThreads · kRows, words [j · each, (j + 1) · each). kRows: in a 32-bit word of memory.
template <int kWidth, int kRows>
__global__ void __launch_bounds__(kThreads, 8) hash_positions_kernel(const Hash h) {
  using F = Format<kWidth>;
  using Load = typename std::conditional<kWidth * kRows == 4, uint32_t, uint16_t>::type;
  constexpr int kBatch = 16;  // channels, 32 or 64 bytes in flight
  const int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kRows;
  if (row >= h.rows.count) return;
  const uint32_t nan_gap = F::gap(h.infinity + 1);
  const int64_t stride = h.rows.channel_stride / kRows;
  int64_t channel = blockIdx.y * h.each * kHashWord;
  const auto* x = static_cast<const Load*>(h.x) + offset_of(h.rows, row) / kRows + channel * stride;
  uint64_t hashes[kRows] = {};
  const int64_t last_word = min(h.words, (blockIdx.y + 1) * h.each);
#pragma unroll 1
  for (int64_t word = blockIdx.y * h.each; word < last_word; ++word) {
    uint64_t bits[kRows] = {};
#pragma unroll 1
    for (int batch = 0; batch < kHashWord; batch += kBatch, channel += kBatch) {
      uint32_t pushed = 0;  // from the top, 16 bits for each row
      if (channel + kBatch <= h.rows.channels) {
        uint32_t values[kBatch];
#pragma unroll
        for (int c = 0; c < kBatch; ++c, x += stride) values[c] = __ldcs(x);
#pragma unroll
        for (int c = 0; c < kBatch; ++c) pushed = (pushed >> 1 & ~F::kSign) | (positives<kWidth>(values[c], nan_gap) & F::kSign);
      } else {
#pragma unroll 1
        for (int c = 0; c < kBatch; ++c, x += stride) {
          const uint32_t value = channel + c < h.rows.channels ? __ldcs(x) : 0u;
          pushed = (pushed >> 1 & ~F::kSign) | (positives<kWidth>(value, nan_gap) & F::kSign);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint32_t mine = kWidth == 4 ? pushed >> 16 : pushed >> 16 * r & 0xffffu;
        bits[r] |= static_cast<uint64_t>(mine) << batch;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) hashes[r] += hash_word(bits[r], word);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) add(h.out + row + r, hashes[r], h.each >= h.words);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// processors: multiprocessors of the device.
cudaError_t launch(const lc_activation& a, int64_t processors, void* stream) {
  const auto dtype = static_cast<Dtype>(a.dtype);
  const int64_t width = lc::width(dtype);
  Hash h{};
  h.x = a.x;
  h.out = a.out;
  h.infinity = infinity(dtype);
  h.rows = plan::hash_rows(a);
  h.words = ceil_div(h.rows.channels, kHashWord);
  h.total = h.words * h.rows.count;
  if (h.total == 0) return cudaSuccess;
  const auto address = reinterpret_cast<std::uintptr_t>(a.x);
  const int64_t vector = plan::kVector / width;
  if (plan::whole_rows(h.rows, address % plan::kVector == 0, vector)) {
    const int64_t teams = kThreads * vector / kHashWord, stride = h.rows.strides[0];
    h.step_rows = teams / h.words;
    h.step_words = static_cast<int>(teams % h.words);
    h.step = (h.step_rows * stride + h.step_words * kHashWord) / vector;
    h.wrap = (stride - h.words * kHashWord) / vector;
    const auto grid = static_cast<unsigned>(ceil_div(h.total, teams * kUnroll));
    const auto launch = [&](auto kernel) { LC_LAUNCH(kernel, grid, kThreads, stream)(h); };
    if (h.rows.ndim == 1) {
      width == 2 ? launch(hash_rows_kernel<2, true>) : launch(hash_rows_kernel<4, true>);
    } else {
      width == 2 ? launch(hash_rows_kernel<2, false>) : launch(hash_rows_kernel<4, false>);
    }
    return cudaGetLastError();
  }
  const bool pairs = width == 2 && plan::whole_words(h.rows, address % 4 == 0, 2);
  const int64_t strips = ceil_div(h.rows.count, kThreads * (pairs ? 2 : 1));
  h.each = ceil_div(h.words, std::min(h.words, ceil_div(kResident * processors, strips)));
  const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(ceil_div(h.words, h.each)));
  const auto launch = [&](auto kernel) { LC_LAUNCH(kernel, grid, kThreads, stream)(h); };
  if (width == 4) {
    launch(hash_positions_kernel<4, 1>);
  } else {
    pairs ? launch(hash_positions_kernel<2, 2>) : launch(hash_positions_kernel<2, 1>);
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace lc::cuda

int lc_sign_hashes(const lc_activation* activations, int64_t count, void* stream) {
  if (!lc::plan::well_formed(activations, count)) return cudaErrorInvalidValue;
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  for (int64_t i = 0; i < count && error == cudaSuccess; ++i) {
    error = lc::cuda::launch(activations[i], processors, stream);
  }
  return error;
}
