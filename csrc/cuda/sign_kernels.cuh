// sign_histogram on the GPU: one read of x, N bytes, 16 at a time; besides it only counters.
//
//   out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c
//
// csrc/plan/sign_plan.h cuts activations into columns, runs and strided parts; one launch takes many parts, as one line
// of units that all blocks share evenly. A thread owns one vector of a row (columns) or every 128th of a run (runs),
// loads eight before it counts the first, and keeps packed counters (bits.cuh) in registers. NaNs are only noticed in
// the loop: a block that met one reads its part again. A block adds up its channels in shared memory, then gives each
// one 64-bit atomic per counter; zeros are what is left of the values. Sums of integers: no order of arrival can show.
#pragma once

#include <type_traits>

#include "../plan/sign_plan.h"
#include "bits.cuh"
#include "device.cuh"

namespace lc::cuda {
namespace {

constexpr int kThreads = 128, kUnroll = 8;
static_assert(plan::SignLimits{}.block == 4 * kThreads && plan::SignLimits{}.unroll == kUnroll, "as planned for");
// Blocks of a multiprocessor, for which the compiler may use 72 registers a thread, or 80, so that nothing spills. Six
// have 96 KiB in flight.
constexpr int resident(bool upper) { return upper ? 6 : 7; }
constexpr unsigned kWarp = 0xffffffffu;

// ---- what a launch gets: parts, in the kernel's own arguments ---------------------------------------------------

// Strides and widths in vectors of 16 bytes; gaps are what F::gap makes of `upper` and of infinity + 1; end: units of
// this part and those before it. 80 bytes: 50 parts fit the 4 KiB of a kernel's arguments.
struct ColumnsPart {
  const uint4* x;
  int64_t* out;
  int64_t repeat, end, outer_stride, inner_stride;
  uint32_t rows, width, inner_size, run, channels, cols;  // cols: vectors of a strip
  uint32_t upper_gap, nan_gap;
};

struct RunsPart {
  const uint4* x;
  int64_t* out;
  int64_t repeat, end, channel_stride, outer_stride, pieces;
  uint32_t width, upper_gap, nan_gap;
};

struct StridedPart {
  const void* x;
  int64_t* out;
  int64_t repeat, end, channel_stride, channels, samples, sizes[plan::kStridedDims - 1], strides[plan::kStridedDims];
  uint32_t cols, tile, upper_gap, nan_gap;
};

template <class Part, int kParts>
struct Table {
  int64_t count;
  Part parts[kParts];
};
template <class Part>
constexpr int kMany = (4096 - 8) / sizeof(Part);
static_assert(kMany<ColumnsPart> >= 49, "the sites of a ResNet-50 in one launch");

// Calls body(part, first, last) for the units of this block, which are those of several parts or a piece of one; body
// takes as many as one set of counters does, and returns the first that it left.
template <class Part, int kParts, class Body>
__device__ __forceinline__ void for_units(const Table<Part, kParts>& table, const Body& body) {
  const int64_t units = table.parts[kParts == 1 ? 0 : table.count - 1].end;
  int64_t unit = units * blockIdx.x / gridDim.x;
  const int64_t last = units * (blockIdx.x + 1) / gridDim.x;
  int index = 0;
  if (kParts > 1) {
    for (int high = static_cast<int>(table.count) - 1; index < high;) {
      const int middle = (index + high) / 2;
      if (table.parts[middle].end <= unit) {
        index = middle + 1;
      } else {
        high = middle;
      }
    }
  }
  while (unit < last) {
    const Part& part = table.parts[kParts == 1 ? 0 : index];
    const int64_t begin = kParts == 1 || index == 0 ? 0 : table.parts[index - 1].end;
    unit = begin + body(part, unit - begin, min(last, part.end) - begin);
    if (unit == part.end) ++index;
    if (unit < last) __syncthreads();  // the counters in shared memory are free again
  }
}

template <int kCounters>
__device__ __forceinline__ void add_to(int64_t* out, int64_t repeat, int64_t channel, int counter, uint32_t count) {
  auto* place = reinterpret_cast<unsigned long long*>(out + channel * kCounters + counter);
  if (count != 0) atomicAdd(place, static_cast<unsigned long long>(count * repeat));
}

// Counts the words of a vector in a tally of each, or all in one.
template <bool kUpper, int kWidth, int kTallies>
__device__ __forceinline__ void count_vector(const uint4& value, uint32_t upper_gap, uint32_t nan_gap,
                                             Tally<kWidth> (&tally)[kTallies], uint32_t& suspect) {
  const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    tally[w % kTallies].add(words[w], kUpper, upper_gap);
    suspect |= nans<kWidth>(words[w], nan_gap);
  }
}

// ---- columns ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ int64_t place_of(const ColumnsPart& p, uint32_t row) {
  if (p.inner_size >= p.rows) return row * p.inner_stride;
  return row / p.inner_size * p.outer_stride + row % p.inner_size * p.inner_stride;
}

// The counters of a strip in shared memory. Neighbouring threads have neighbouring vectors: with one column a channel,
// value i of vector v is at [i][v], so that no two threads of a warp meet in a bank, and negative and positive share a
// word, which a strip of at most kMostRows rows does not overflow.
template <int kWidth, bool kUpper>
struct StripCounts {
  static constexpr int kValues = 4 * Format<kWidth>::kPerWord, kMost = kThreads * kValues;  // channels
  uint32_t signs[2][kMost], nan[kMost], above[kUpper ? kMost : 1];
};

// Sums over the lanes of a warp that have the same columns, of rows `cols` lanes apart.
__device__ __forceinline__ void sum_rows(uint32_t& packed, int lanes) {
  packed += __shfl_xor_sync(kWarp, packed, lanes);
}

template <int kWidth, bool kUpper, int kParts>
__global__ void __launch_bounds__(kThreads, resident(kUpper))
    columns_kernel(const __grid_constant__ Table<ColumnsPart, kParts> table) {
  using F = Format<kWidth>;
  using Counts = StripCounts<kWidth, kUpper>;
  constexpr uint32_t kValues = Counts::kValues;
  constexpr int kCounters = kUpper ? 5 : 4;
  __shared__ Counts counts;
  for_units(table, [&](const ColumnsPart& p, int64_t unit, int64_t end) {
    const uint32_t cols = p.cols, lanes = kThreads / cols, column = threadIdx.x % cols, lane = threadIdx.x / cols;
    const uint32_t chunks = (p.rows + lanes - 1) / lanes;
    const auto strip = static_cast<uint32_t>(unit / chunks);
    const auto chunk = static_cast<uint32_t>(unit - int64_t(strip) * chunks);
    const auto taken = static_cast<uint32_t>(
        min(min(end - unit, int64_t(chunks - chunk)), static_cast<int64_t>(plan::kMostRows / lanes)));
    const uint32_t first = chunk * lanes, last = min((chunk + taken) * lanes, p.rows);
    const uint32_t vector = strip * cols + column;
    const bool valid = vector < p.width;
    const uint32_t begin = strip * cols * kValues, stop = min((strip + 1) * cols, p.width) * kValues;  // columns
    const uint32_t channel0 = begin / p.run, channels = (stop - 1) / p.run - channel0 + 1;
    const uint4* x = p.x + vector;
    for (uint32_t i = threadIdx.x; i < (p.run == 1 ? cols * kValues : channels); i += kThreads) {
      counts.signs[0][i] = counts.signs[1][i] = counts.nan[i] = 0;
      if (kUpper) counts.above[i] = 0;
    }

    Tally<kWidth> tally[4];
    uint32_t suspect = 0;
    uint32_t row = valid ? first + lane : last;
    if (p.inner_size >= p.rows) {
      const int64_t step = lanes * p.inner_stride;
      for (; row + (kUnroll - 1) * lanes < last; row += kUnroll * lanes) {
        const uint4* place = x + row * p.inner_stride;
        uint4 values[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u, place += step) values[u] = __ldcs(place);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) count_vector<kUpper>(values[u], p.upper_gap, p.nan_gap, tally, suspect);
      }
    }
    // Rows in groups, where each takes a division; and the last few.
    for (; row < last; row += kUnroll / 2 * lanes) {
      uint4 values[kUnroll / 2];
#pragma unroll
      for (int u = 0; u < kUnroll / 2; ++u) {
        values[u] = make_uint4(0, 0, 0, 0);  // counts as nothing
        if (row + u * lanes < last) values[u] = __ldcs(x + place_of(p, row + u * lanes));
      }
#pragma unroll
      for (int u = 0; u < kUnroll / 2; ++u) count_vector<kUpper>(values[u], p.upper_gap, p.nan_gap, tally, suspect);
    }

    const bool any_nan = __syncthreads_or((suspect & F::kSign) != 0);
    uint32_t nan[4] = {0, 0, 0, 0};
    if (any_nan) {
      for (row = valid ? first + lane : last; row < last; row += lanes) {
        const uint4 value = x[place_of(p, row)];
        const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const uint32_t bits = nans<kWidth>(words[w], p.nan_gap) & F::kSign;
          const uint32_t plus = (bits & ~words[w]) >> F::kShift, all = bits >> F::kShift;
          tally[w].negative -= all - plus;
          tally[w].positive -= plus;
          if (kUpper) tally[w].above -= plus;
          nan[w] += all;
        }
      }
    }
    for (uint32_t apart = cols; apart < 32; apart *= 2) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        sum_rows(tally[w].negative, apart);
        sum_rows(tally[w].positive, apart);
        if (kUpper) sum_rows(tally[w].above, apart);
        if (any_nan) sum_rows(nan[w], apart);
      }
    }
    const bool mine = valid && threadIdx.x % 32 < cols;
    const auto half = [](uint32_t packed, uint32_t i) {
      return kWidth == 2 ? packed >> 16 * (i % F::kPerWord) & 0xffffu : packed;
    };

    if (p.run == 1) {
      if (mine) {
#pragma unroll
        for (uint32_t i = 0; i < kValues; ++i) {
          const uint32_t w = i / F::kPerWord, place = i * cols + column;
          atomicAdd(&counts.signs[0][place], half(tally[w].negative, i) | half(tally[w].positive, i) << 16);
          if (any_nan) atomicAdd(&counts.nan[place], half(nan[w], i));
          if (kUpper) atomicAdd(&counts.above[place], half(tally[w].above, i));
        }
      }
    } else {
      // Values of a thread that share a channel are summed first, then those of neighbouring lanes.
      constexpr int kSums = kUpper ? 4 : 3;
      uint32_t sums[kSums] = {};
      uint32_t channel = vector * kValues / p.run, left = p.run - vector * kValues % p.run;
      channel -= channel0;
      const auto give = [&] {
        atomicAdd(&counts.signs[0][channel], sums[0]);
        atomicAdd(&counts.signs[1][channel], sums[1]);
        if (any_nan) atomicAdd(&counts.nan[channel], sums[2]);
        if (kUpper) atomicAdd(&counts.above[channel], sums[kSums - 1]);
      };
#pragma unroll
      for (uint32_t i = 0; i < kValues; ++i) {
        if (left == 0) {
          if (mine) give();
          for (uint32_t& sum : sums) sum = 0;
          ++channel;
          left = p.run;
        }
        const uint32_t w = i / F::kPerWord;
        sums[0] += half(tally[w].negative, i);
        sums[1] += half(tally[w].positive, i);
        sums[2] += half(nan[w], i);
        if (kUpper) sums[kSums - 1] += half(tally[w].above, i);
        --left;
      }
      if (!mine) channel = ~0u;  // these lanes are the last of their warp
      const uint32_t own = threadIdx.x % 32;
#pragma unroll
      for (uint32_t apart = 1; apart < 32; apart *= 2) {
        const bool same = __shfl_up_sync(kWarp, channel, apart) == channel && own >= apart;
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
          if (j == 2 && !any_nan) continue;
          const uint32_t before = __shfl_up_sync(kWarp, sums[j], apart);
          if (same) sums[j] += before;
        }
      }
      const bool ends = __shfl_down_sync(kWarp, channel, 1) != channel || own == 31;
      if (mine && ends) give();
    }
    __syncthreads();

    for (uint32_t i = threadIdx.x; i < channels * kCounters; i += kThreads) {
      const uint32_t channel = i / kCounters, counter = i % kCounters;
      // Its columns in this strip: a channel may lie in two.
      const uint32_t width = min((channel0 + channel + 1) * p.run, stop) - max((channel0 + channel) * p.run, begin);
      const uint32_t place = p.run == 1 ? channel % kValues * cols + channel / kValues : channel;
      const uint32_t word = counts.signs[0][place];
      const uint32_t negative = p.run == 1 ? word & 0xffffu : word;
      const uint32_t positive = p.run == 1 ? word >> 16 : counts.signs[1][place];
      const uint32_t zero = width * (last - first) - negative - positive - counts.nan[place];
      const uint32_t count = counter == 0   ? negative
                             : counter == 1 ? zero
                             : counter == 2 ? positive
                             : counter == 3 ? counts.nan[place]
                                            : counts.above[kUpper ? place : 0];
      add_to<kCounters>(p.out, p.repeat, (channel0 + channel) % p.channels, counter, count);
    }
    return unit + taken;
  });
}

// ---- runs ---------------------------------------------------------------------------------------------------------

template <int kWidth>
__device__ uint32_t halves(uint32_t packed) {
  return kWidth == 2 ? (packed & 0xffffu) + (packed >> 16) : packed;
}

template <int kWidth, bool kUpper, int kParts>
__global__ void __launch_bounds__(kThreads, resident(kUpper))
    runs_kernel(const __grid_constant__ Table<RunsPart, kParts> table) {
  using F = Format<kWidth>;
  constexpr int kCounters = kUpper ? 5 : 4, kPiece = kThreads * kUnroll;  // vectors
  __shared__ uint32_t counts[5];
  for_units(table, [&](const RunsPart& p, int64_t unit, int64_t end) {
    const int64_t channel = unit / p.pieces, first = unit - channel * p.pieces;
    const auto taken = static_cast<uint32_t>(
        min(min(end - unit, p.pieces - first), static_cast<int64_t>(plan::kMostRows / kUnroll)));
    const uint32_t per_run = (p.width + kPiece - 1) / kPiece;
    const uint4* x = p.x + channel * p.channel_stride;
    if (threadIdx.x < 5) counts[threadIdx.x] = 0;

    uint32_t suspect = 0, values_read = 0, sums[5] = {0, 0, 0, 0, 0};
    const auto each_piece = [&](const auto& body) {
      const uint4* run = x + first / per_run * p.outer_stride + threadIdx.x;
      auto begin = static_cast<uint32_t>(first % per_run) * kPiece;
      for (uint32_t piece = 0; piece < taken; ++piece) {
        body(run + begin, p.width - begin);
        begin += kPiece;
        if (begin < p.width) continue;
        begin = 0;
        run += p.outer_stride;
      }
    };
    each_piece([&](const uint4* run, uint32_t left) {
      uint4 values[kUnroll];
      if (left >= kPiece) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) values[u] = __ldcs(run + u * kThreads);
      } else {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          values[u] = make_uint4(0, 0, 0, 0);
          if (threadIdx.x + u * kThreads < left) values[u] = __ldcs(run + u * kThreads);
        }
      }
      values_read += min(left, static_cast<uint32_t>(kPiece));
      Tally<kWidth> tally[1];  // its packed counters take one piece
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) count_vector<kUpper>(values[u], p.upper_gap, p.nan_gap, tally, suspect);
      sums[0] += halves<kWidth>(tally[0].negative);
      sums[2] += halves<kWidth>(tally[0].positive);
      if (kUpper) sums[4] += halves<kWidth>(tally[0].above);
    });
    if (__syncthreads_or((suspect & F::kSign) != 0)) {
      uint32_t minus = 0, plus = 0;
      each_piece([&](const uint4* run, uint32_t left) {
        for (uint32_t i = threadIdx.x; i < min(left, static_cast<uint32_t>(kPiece)); i += kThreads, run += kThreads) {
          const uint32_t words[4] = {run->x, run->y, run->z, run->w};
          for (const uint32_t word : words) {
            const uint32_t bits = nans<kWidth>(word, p.nan_gap) & F::kSign;
            minus += __popc(bits & word);
            plus += __popc(bits & ~word);
          }
        }
      });
      sums[0] -= minus;
      sums[2] -= plus;
      sums[3] = minus + plus;
      if (kUpper) sums[4] -= plus;
    }
#pragma unroll
    for (int j = 0; j < kCounters; ++j) {
      if (j == 1) continue;
      const uint32_t sum = __reduce_add_sync(kWarp, sums[j]);
      if (threadIdx.x % 32 == 0) atomicAdd(&counts[j], sum);
    }
    __syncthreads();
    if (threadIdx.x < kCounters) {
      const uint32_t known = counts[0] + counts[2] + counts[3], all = values_read * 4 * F::kPerWord;
      add_to<kCounters>(p.out, p.repeat, channel, threadIdx.x, threadIdx.x == 1 ? all - known : counts[threadIdx.x]);
    }
    return unit + taken;
  });
}

// ---- strided ------------------------------------------------------------------------------------------------------

template <int kWidth>
using Bits = std::conditional_t<kWidth == 2, uint16_t, uint32_t>;

// One value per load.
template <int kWidth, bool kUpper, int kParts>
__global__ void __launch_bounds__(kThreads, resident(kUpper))
    strided_kernel(const __grid_constant__ Table<StridedPart, kParts> table) {
  using F = Format<4>;  // as if the type had 32 bits: the sign on top
  constexpr int kLeft = 32 - 8 * kWidth, kCounters = kUpper ? 5 : 4, kMost = 64;
  __shared__ uint32_t counts[5][kMost];
  for_units(table, [&](const StridedPart& p, int64_t unit, int64_t end) {
    const int64_t chunks = (p.samples + p.tile - 1) / p.tile, strip = unit / chunks, chunk = unit - strip * chunks;
    const int64_t taken = min(min(end - unit, chunks - chunk), int64_t(1) << 20);  // of a tile of at most 1024
    const int64_t first = chunk * p.tile, last = min((chunk + taken) * p.tile, p.samples);
    const uint32_t cols = p.cols, column = threadIdx.x % cols, lanes = kThreads / cols;
    const int64_t channel0 = strip * cols, channel = channel0 + column;
    for (uint32_t i = threadIdx.x; i < 5 * kMost; i += kThreads) counts[i / kMost][i % kMost] = 0;
    __syncthreads();
    if (channel < p.channels) {
      const auto* x = static_cast<const Bits<kWidth>*>(p.x) + channel * p.channel_stride;
      Tally<4> tally;
      uint32_t minus = 0, plus = 0, mine = 0;
      for (int64_t sample = first + threadIdx.x / cols; sample < last; sample += lanes, ++mine) {
        int64_t index = sample, offset = 0;
#pragma unroll
        for (int d = plan::kStridedDims - 1; d > 0; --d) {
          offset += index % p.sizes[d - 1] * p.strides[d];
          index /= p.sizes[d - 1];
        }
        const uint32_t word = static_cast<uint32_t>(x[offset + index * p.strides[0]]) << kLeft;
        tally.add(word, kUpper, p.upper_gap);
        const uint32_t nan = nans<4>(word, p.nan_gap) & F::kSign;
        minus += (nan & word) >> 31;
        plus += (nan & ~word) >> 31;
      }
      const uint32_t negative = tally.negative - minus, positive = tally.positive - plus;
      const uint32_t row[5] = {negative, mine - negative - positive - minus - plus, positive, minus + plus,
                               tally.above - plus};
#pragma unroll
      for (int j = 0; j < kCounters; ++j) atomicAdd(&counts[j][column], row[j]);
    }
    __syncthreads();
    const auto channels = static_cast<uint32_t>(min(int64_t(cols), p.channels - channel0));
    for (uint32_t i = threadIdx.x; i < channels * kCounters; i += kThreads) {
      add_to<kCounters>(p.out, p.repeat, channel0 + i / kCounters, i % kCounters, counts[i % kCounters][i / kCounters]);
    }
    return unit + taken;
  });
}

}  // namespace
}  // namespace lc::cuda
