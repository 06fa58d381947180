// sign_histogram on the GPU: one read of x, N bytes, 16 at a time; besides it only counters.
//
//   out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c
//
// A thread owns one vector of a row (columns) or every 128th of a run (runs), loads eight before it counts the first,
// and keeps packed counters (bits.cuh) in registers. NaNs are only noticed in the loop: a block that met one reads its
// part again. A block adds up its channels in shared memory, then gives each one 64-bit atomic per counter. Sums of
// integers: no order of arrival can show.
#include "bits.cuh"
#include "device.cuh"
#include "launch.h"

namespace lc::cuda {
namespace {

constexpr int kThreads = 128, kUnroll = 8;  // sign_layout.BLOCK / 4 and UNROLL

// Adds the counters of `size` neighbouring channels, [counter][channel] in shared memory, to out.
__device__ void flush(const uint32_t* counts, int stride, int64_t first, int64_t size, const Signs& s) {
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size * s.columns; i += kThreads) {
    const int64_t counter = i % s.columns, channel = i / s.columns;
    const int64_t count = counts[counter * stride + channel] * s.repeat;
    auto* place = reinterpret_cast<unsigned long long*>(s.out + (first + channel) % s.channels * s.columns + counter);
    if (count != 0) atomicAdd(place, static_cast<unsigned long long>(count));
  }
}

__device__ __forceinline__ int64_t place_of(const Rows& r, int64_t row) {
  if (r.inner_size >= r.rows) return row * r.inner_stride;
  // At most sign_layout.LARGEST rows.
  const auto inner = static_cast<uint32_t>(r.inner_size), at = static_cast<uint32_t>(row);
  return at / inner * r.outer_stride + at % inner * r.inner_stride;
}

// Block (i, j): vectors [i * cols, (i + 1) * cols) of rows [j * each, (j + 1) * each).
template <int kWidth, bool kUpper>
__global__ void __launch_bounds__(kThreads) columns_kernel(const Signs s, const Rows r) {
  using F = Format<kWidth>;
  constexpr int kMost = kThreads * 4 * F::kPerWord + 1;  // channels in a strip
  __shared__ uint32_t counts[5 * kMost];
  const int cols = static_cast<int>(r.cols), lanes = kThreads / cols, lane = static_cast<int>(threadIdx.x) / cols;
  const int64_t vector = int64_t(blockIdx.x) * cols + static_cast<int>(threadIdx.x) % cols;
  const int64_t first = blockIdx.y * r.each, last = min(first + r.each, r.rows);
  const bool valid = vector < r.width;
  const auto* x = static_cast<const uint4*>(s.x) + vector;
  const uint32_t upper = F::gap(static_cast<uint32_t>(s.upper)), nan_gap = F::gap(static_cast<uint32_t>(s.infinity) + 1);

  Tally<kWidth> tally[4];
  uint32_t suspect = 0;
  const auto count = [&](const uint4& value) {
    const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      tally[w].add(words[w], kUpper, upper);
      suspect |= nans<kWidth>(words[w], nan_gap);
    }
  };
  int64_t row = first + lane;
  for (; valid && row + (kUnroll - 1) * lanes < last; row += kUnroll * lanes) {
    uint4 values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) values[u] = __ldcs(x + place_of(r, row + u * lanes));
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) count(values[u]);
  }
  for (; valid && row < last; row += lanes) count(__ldcs(x + place_of(r, row)));

  for (int i = threadIdx.x; i < 5 * kMost; i += kThreads) counts[i] = 0;
  const bool nan = __syncthreads_or((suspect & F::kSign) != 0);
  const int64_t entry = vector * 4 * F::kPerWord, strip = int64_t(blockIdx.x) * cols * 4 * F::kPerWord;
  const int64_t channel0 = strip / r.run;
  if (valid) {
    // Rows of this thread: those of its lane.
    const uint32_t mine = first + lane < last ? static_cast<uint32_t>((last - first - lane - 1) / lanes + 1) : 0u;
    Tally<kWidth> nan_tally[4];  // of the NaNs, by their sign
    if (nan) {
      for (row = first + lane; row < last; row += lanes) {
        const uint4 value = x[place_of(r, row)];
        const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const uint32_t bits = nans<kWidth>(words[w], nan_gap) & F::kSign;
          nan_tally[w].negative += (bits & words[w]) >> F::kShift;
          nan_tally[w].positive += (bits & ~words[w]) >> F::kShift;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4 * F::kPerWord; ++i) {
      const int w = i / F::kPerWord, half = 16 * (i % F::kPerWord);
      const auto part = [half](uint32_t packed) { return kWidth == 2 ? packed >> half & 0xffffu : packed; };
      const uint32_t minus = part(nan_tally[w].negative), plus = part(nan_tally[w].positive);
      const uint32_t negative = part(tally[w].negative) - minus, positive = part(tally[w].positive) - plus;
      uint32_t* place = counts + static_cast<int>((entry + i) / r.run - channel0);
      atomicAdd(place, negative);
      atomicAdd(place + kMost, mine - negative - positive - minus - plus);
      atomicAdd(place + 2 * kMost, positive);
      if (nan) atomicAdd(place + 3 * kMost, minus + plus);
      if (kUpper) atomicAdd(place + 4 * kMost, part(tally[w].above) - plus);
    }
  }
  const int64_t end = min(strip + int64_t(cols) * 4 * F::kPerWord, r.width * 4 * F::kPerWord);
  flush(counts, kMost, channel0, (end - 1) / r.run - channel0 + 1, s);
}

template <int kWidth>
__device__ uint32_t halves(uint32_t packed) {
  return kWidth == 2 ? (packed & 0xffffu) + (packed >> 16) : packed;
}

// Block c * parts + j: pieces [j * each, (j + 1) * each) of channel c, a piece being up to kThreads * kUnroll vectors.
template <int kWidth, bool kUpper>
__global__ void __launch_bounds__(kThreads) runs_kernel(const Signs s, const Pieces p) {
  using F = Format<kWidth>;
  __shared__ uint32_t counts[5];
  const int64_t channel = blockIdx.x / p.parts;
  const int64_t first = blockIdx.x % p.parts * p.each, last = min(first + p.each, p.pieces);
  const int64_t per_run = (p.length + kThreads * kUnroll - 1) / (kThreads * kUnroll);
  const auto* x = static_cast<const uint4*>(s.x) + channel * p.channel_stride;
  const uint32_t upper = F::gap(static_cast<uint32_t>(s.upper)), nan_gap = F::gap(static_cast<uint32_t>(s.infinity) + 1);

  Tally<kWidth> tally;
  uint32_t suspect = 0, vectors = 0;
  const auto count = [&](const uint4& value) {
    const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      tally.add(words[w], kUpper, upper);
      suspect |= nans<kWidth>(words[w], nan_gap);
    }
    ++vectors;
  };
  const auto each_piece = [&](const auto& body) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t begin = piece % per_run * (kThreads * kUnroll) + threadIdx.x;
      body(x + piece / per_run * p.outer_stride + begin, p.length - begin);
    }
  };
  uint32_t sums[5] = {0, 0, 0, 0, 0};  // a packed counter would wrap after 65535 words: add up every piece
  each_piece([&](const uint4* run, int64_t left) {
    if (left > (kUnroll - 1) * kThreads) {
      uint4 values[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) values[u] = __ldcs(run + u * kThreads);
  #pragma unroll
      for (int u = 0; u < kUnroll; ++u) count(values[u]);
    } else {
      for (int64_t i = 0; i < left; i += kThreads) count(__ldcs(run + i));
    }
    sums[0] += halves<kWidth>(tally.negative);
    sums[2] += halves<kWidth>(tally.positive);
    if (kUpper) sums[4] += halves<kWidth>(tally.above);
    tally = {};
  });
  if (threadIdx.x < 5) counts[threadIdx.x] = 0;
  if (__syncthreads_or((suspect & F::kSign) != 0)) {
    uint32_t minus = 0, plus = 0;
    each_piece([&](const uint4* run, int64_t left) {
      for (int64_t i = 0; i < left && i < kThreads * kUnroll; i += kThreads) {
        const uint32_t words[4] = {run[i].x, run[i].y, run[i].z, run[i].w};
        for (const uint32_t word : words) {
          const uint32_t bits = nans<kWidth>(word, nan_gap) & F::kSign;
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
  sums[1] = vectors * 4 * F::kPerWord - sums[0] - sums[2] - sums[3];
#pragma unroll
  for (int j = 0; j < 5; ++j) {
    const uint32_t sum = __reduce_add_sync(0xffffffffu, sums[j]);
    if (threadIdx.x % 32 == 0) atomicAdd(&counts[j], sum);
  }
  flush(counts, 1, channel, 1, s);
}

// Block (i, j): cols channels from i * cols, samples [j * each, (j + 1) * each). One value per load.
template <class Bits>
__global__ void __launch_bounds__(kThreads) strided_kernel(const Signs s, const Samples p) {
  using F = Format<4>;  // as if the type had 32 bits: the sign on top
  constexpr int kLeft = 32 - 8 * static_cast<int>(sizeof(Bits));
  __shared__ uint32_t counts[5 * 64];
  for (int i = threadIdx.x; i < 5 * 64; i += kThreads) counts[i] = 0;
  __syncthreads();
  const int cols = static_cast<int>(p.cols), column = static_cast<int>(threadIdx.x) % cols, lanes = kThreads / cols;
  const int64_t channel0 = int64_t(blockIdx.x) * cols, channel = channel0 + column;
  const int64_t first = blockIdx.y * p.each, last = min(first + p.each, p.samples);
  // Bounds are of magnitudes: shifted like them, one below a bound stays below it.
  const uint32_t upper = F::gap(static_cast<uint32_t>(s.upper) << kLeft), nan_gap = F::gap((static_cast<uint32_t>(s.infinity) + 1) << kLeft);
  Tally<4> tally;
  uint32_t minus = 0, plus = 0, mine = 0;
  if (channel < s.channels) {
    const Bits* x = static_cast<const Bits*>(s.x) + channel * p.channel_stride;
    for (int64_t sample = first + static_cast<int>(threadIdx.x) / cols; sample < last; sample += lanes, ++mine) {
      int64_t index = sample, offset = 0;
#pragma unroll
      for (int d = 3; d > 0; --d) {
        offset += index % p.sizes[d] * p.strides[d];
        index /= p.sizes[d];
      }
      const uint32_t word = static_cast<uint32_t>(x[offset + index * p.strides[0]]) << kLeft;
      tally.add(word, s.columns == 5, upper);
      const uint32_t nan = nans<4>(word, nan_gap) & F::kSign;
      minus += (nan & word) >> 31;
      plus += (nan & ~word) >> 31;
    }
    const uint32_t negative = tally.negative - minus, positive = tally.positive - plus;
    const uint32_t row[5] = {negative, mine - negative - positive - minus - plus, positive, minus + plus,
                             tally.above - plus};
#pragma unroll
    for (int j = 0; j < 5; ++j) atomicAdd(&counts[j * 64 + column], row[j]);
  }
  flush(counts, 64, channel0, min(int64_t(cols), s.channels - channel0), s);
}

}  // namespace
}  // namespace lc::cuda

using namespace lc::cuda;

int lc_count_columns(const Signs* s, const Rows* r, void* stream) {
  const dim3 grid(static_cast<unsigned>(r->strips), static_cast<unsigned>(r->splits));
  const auto launch = [&](auto kernel) { LC_LAUNCH(kernel, grid, kThreads, stream)(*s, *r); };
  if (s->width == 2) {
    s->columns == 5 ? launch(columns_kernel<2, true>) : launch(columns_kernel<2, false>);
  } else {
    s->columns == 5 ? launch(columns_kernel<4, true>) : launch(columns_kernel<4, false>);
  }
  return cudaGetLastError();
}

int lc_count_runs(const Signs* s, const Pieces* p, void* stream) {
  const auto grid = static_cast<unsigned>(s->channels * p->parts);
  const auto launch = [&](auto kernel) { LC_LAUNCH(kernel, grid, kThreads, stream)(*s, *p); };
  if (s->width == 2) {
    s->columns == 5 ? launch(runs_kernel<2, true>) : launch(runs_kernel<2, false>);
  } else {
    s->columns == 5 ? launch(runs_kernel<4, true>) : launch(runs_kernel<4, false>);
  }
  return cudaGetLastError();
}

int lc_count_strided(const Signs* s, const Samples* p, void* stream) {
  const dim3 grid(static_cast<unsigned>(p->strips), static_cast<unsigned>(p->splits));
  const auto launch = [&](auto kernel) { LC_LAUNCH(kernel, grid, kThreads, stream)(*s, *p); };
  s->width == 2 ? launch(strided_kernel<uint16_t>) : launch(strided_kernel<uint32_t>);
  return cudaGetLastError();
}

int lc_device_count(int* count) { return cudaGetDeviceCount(count); }
const char* lc_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
