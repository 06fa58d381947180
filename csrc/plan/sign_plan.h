// How an activation is cut for the GPU's loops over it, the same for CUDA and Triton: host only, no torch, no CUDA.
//
// Samples may be counted in any order, so their dimensions are first sorted by stride and joined. Then
//   columns  channels are contiguous (channels-last), or images of short runs are dense: walk rows of C * run columns;
//   runs     long contiguous runs of one channel (channels-first);
//   strided  anything else, one entry per load.
//
// The work of a part is `strips` times `chunks` units of one tile (2 KB; of runs 16 KB). A strip is what one set of
// counters is for. Every block takes as many units, in order: its range may end one strip, or one part, and begin
// the next, so that as many blocks as are resident at once share any sizes evenly; no wave of a few is left over.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <variant>
#include <vector>

#include "../layout.h"
#include "vector.h"

namespace lc::plan {

constexpr int kStridedDims = 4;       // sample dimensions that the strided loop walks
constexpr int64_t kMostRows = 65535;  // values that one packed counter takes: it has 16 bits

// What the kernels were made for; tests lower them, so that small tensors take every path.
struct SignLimits {
  int64_t block = 512;       // words of a tile: 16 bytes for each of 128 threads
  int64_t unroll = 8;        // tiles that are loaded before the first is counted
  int64_t long_run = 32768;  // bytes of a run from which tiles that end with it waste less than 1 part in 8
  // Entries of a row or a run, and rows of a part, above which it is cut into several: within a part, the kernels
  // index by 32 bits.
  int64_t largest = int64_t(1) << 30;
};

struct Units {
  int64_t strips, chunks;
  int64_t most;  // chunks that one set of counters takes
};

// Rows of `width` contiguous entries, outer.size groups of inner.size, each on a vector; column i is of channel
// i / run % C. A strip is `cols` words (a power of two), a chunk `block / cols` rows.
struct Columns {
  int64_t start;  // entries from the first of x
  int64_t width, run;
  Dim outer, inner;
  int64_t cols;
  Units units;
};

// For each channel, which is a strip, outer.size contiguous runs of `width` entries, each on a vector. A chunk is
// `block * unroll` words of a run, or the rest of it.
struct Runs {
  int64_t start;
  int64_t width, channel_stride;
  Dim outer;
  Units units;
};

// Samples of any stride. A strip is `cols` channels, a chunk `tile` samples.
struct Strided {
  int64_t start;
  std::array<Dim, kStridedDims> dims;
  int64_t channel_stride;
  int64_t cols, tile;
  Units units;
};

using SignPart = std::variant<Columns, Runs, Strided>;

// What to read, together all of x once; every value read counts `repeat` times (dimensions of stride 0).
struct SignPlan {
  std::vector<SignPart> parts;
  int64_t repeat = 1;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t power_of_two(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 2;
  return power;
}

namespace sign {

class Planner {
 public:
  Planner(Dim channels, int64_t width, uint64_t address, const SignLimits& limits)
      : channels_(channels), vector_(kVector / width), width_(width), address_(address), limits_(limits) {}

  SignPlan plan(const std::vector<Dim>& dims) {
    std::vector<Dim> samples;
    for (Dim dim : dims) {
      if (dim.size == 0) return {};
      if (dim.size > 1 && dim.stride == 0) plan_.repeat *= dim.size;
      if (dim.size == 1 || dim.stride == 0) continue;
      if (dim.stride < 0) {  // walk it the other way
        first_ += (dim.size - 1) * dim.stride;
        dim.stride = -dim.stride;
      }
      samples.push_back(dim);
    }
    if (channels_.size == 0) return {};
    std::stable_sort(samples.begin(), samples.end(), [](const Dim& a, const Dim& b) { return a.stride > b.stride; });
    choose(coalesce(samples));
    return plan_;
  }

 private:
  bool aligned(std::initializer_list<int64_t> entries) const {
    return (address_ + uint64_t(first_ * width_)) % kVector == 0 &&
           std::all_of(entries.begin(), entries.end(), [&](int64_t entry) { return entry % vector_ == 0; });
  }

  void choose(const std::vector<Dim>& samples) {
    const bool contiguous = !samples.empty() && samples.back().stride == 1;
    const int64_t run = contiguous ? samples.back().size : 1;
    const std::vector<Dim> rows(samples.begin(), samples.end() - contiguous);
    const Dim last = rows.empty() ? Dim{1, 0} : rows.back();
    const int64_t channel_stride = channels_.size > 1 ? channels_.stride : run;
    if (run * width_ >= limits_.long_run && rows.size() <= 1 && aligned({run, channel_stride, last.stride})) {
      for (int64_t at = 0; at < run; at += limits_.largest) {
        add_runs(at, std::min(limits_.largest, run - at), channel_stride, last);
      }
      return;
    }
    const int64_t row = channels_.size * run;
    const int64_t joined = vector_ / std::gcd(row, vector_);  // rows that end on a vector together
    // A row that is too long for a part is cut between channels by the strided loop, which indexes by 64 bits.
    if (channel_stride == run && rows.size() <= 2 && aligned({}) && row * joined <= limits_.largest) {
      const Dim outer = rows.size() == 2 ? rows[0] : Dim{1, 0};
      if (aligned({row, outer.stride, last.stride})) return add_columns(row, run, outer, last);
      if (rows.size() == 1 && last.stride == row && last.size >= joined) {
        const int64_t count = last.size / joined, rest = last.size - count * joined;
        add_columns(row * joined, run, {1, 0}, {count, row * joined});
        if (rest > 0) {
          std::vector<Dim> tail = samples;
          tail.front() = {rest, row};
          add_strided(count * joined * row, tail, channel_stride);
        }
        return;
      }
    }
    add_strided(0, samples, channel_stride);
  }

  void add_runs(int64_t start, int64_t width, int64_t channel_stride, Dim outer) {
    const int64_t pieces = outer.size * ceil_div(width / vector_ * 4, limits_.block * limits_.unroll);
    plan_.parts.push_back(Runs{first_ + start, width, channel_stride, outer,
                               {channels_.size, pieces, std::max<int64_t>(kMostRows / limits_.unroll, 1)}});
  }

  // Cuts so that no part has more than `largest` rows.
  void add_columns(int64_t width, int64_t run, Dim outer, Dim inner) {
    if (outer.size * inner.size <= limits_.largest) return add_rows(0, width, run, outer, inner);
    if (inner.size <= limits_.largest) {
      const int64_t groups = limits_.largest / inner.size;
      for (int64_t at = 0; at < outer.size; at += groups) {
        add_rows(at * outer.stride, width, run, {std::min(groups, outer.size - at), outer.stride}, inner);
      }
      return;
    }
    for (int64_t group = 0; group < outer.size; ++group) {
      for (int64_t at = 0; at < inner.size; at += limits_.largest) {
        const Dim some{std::min(limits_.largest, inner.size - at), inner.stride};
        add_rows(group * outer.stride + at * inner.stride, width, run, {1, 0}, some);
      }
    }
  }

  void add_rows(int64_t start, int64_t width, int64_t run, Dim outer, Dim inner) {
    const int64_t words = width / vector_ * 4;
    int64_t cols = limits_.block;  // as few lanes as possible past the end of a row
    for (const int64_t size : {limits_.block / 2, limits_.block / 4}) {
      if (ceil_div(words, size) * size < ceil_div(words, cols) * cols) cols = size;
    }
    if (words < cols) cols = power_of_two(words);
    const int64_t lanes = limits_.block / cols;
    const Units units{ceil_div(words, cols), ceil_div(outer.size * inner.size, lanes),
                      std::max<int64_t>(kMostRows / lanes, 1)};
    plan_.parts.push_back(Columns{first_ + start, width, run, outer, inner, cols, units});
  }

  // Cuts more than kStridedDims dimensions into several parts along the shortest.
  void add_strided(int64_t start, std::vector<Dim> dims, int64_t channel_stride) {
    if (dims.size() > kStridedDims) {
      const auto shortest =
          std::min_element(dims.begin(), dims.end(), [](const Dim& a, const Dim& b) { return a.size < b.size; });
      const Dim cut = *shortest;
      dims.erase(shortest);
      for (int64_t i = 0; i < cut.size; ++i) add_strided(start + i * cut.stride, dims, channel_stride);
      return;
    }
    Strided part{first_ + start, {}, channel_stride, 0, 0, {}};
    part.dims.fill({1, 0});
    std::copy(dims.begin(), dims.end(), part.dims.end() - static_cast<std::ptrdiff_t>(dims.size()));
    // Tiles are wide where memory is.
    const bool inside = std::abs(channel_stride) < std::max<int64_t>(1, part.dims.back().stride);
    part.cols = std::min<int64_t>(inside ? 64 : 2, power_of_two(channels_.size));
    part.tile = 2 * limits_.block / part.cols;
    part.units = {ceil_div(channels_.size, part.cols), ceil_div(product(dims), part.tile),
                  std::max<int64_t>(limits_.largest / part.tile, 1)};
    plan_.parts.push_back(part);
  }

  const Dim channels_;
  const int64_t vector_, width_;  // entries of a vector, bytes of an entry
  const uint64_t address_;
  const SignLimits limits_;
  int64_t first_ = 0;  // entries from the first of x to the one with the lowest address
  SignPlan plan_;
};

}  // namespace sign

// Chooses the loops for an activation. samples: every dimension but the channels', in any order, strides of either
// sign, 0 included; width: bytes of an entry; address: of the first entry, for its alignment.
inline SignPlan sign_plan(Dim channels, const std::vector<Dim>& samples, int64_t width, uint64_t address,
                          const SignLimits& limits = {}) {
  return sign::Planner(channels, width, address, limits).plan(samples);
}

// Blocks for this many units: `resident` at most, and none with less than `least` of them while there are several.
inline int64_t block_count(int64_t units, int64_t resident, int64_t least) {
  return std::clamp<int64_t>(ceil_div(units, least), 1, std::max<int64_t>(resident, 1));
}

}  // namespace lc::plan
