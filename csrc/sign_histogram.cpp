// sign_histogram on the CPU: one read of x, N bytes; nothing else in memory traffic but the counters.
//
//   out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c
//
// Samples may be counted in any order, so their dimensions are first sorted by stride and joined. Then
//   runs:  samples are contiguous (channels-first): register counters along each run;
//   rows:  channels are contiguous (channels-last), or runs are so short that whole images (C · L values) make
//          better rows: a counter per column stays in cache, eight rows are read at a time;
//   other strides: rows are gathered into a buffer first.
// Work is split into boxes of channels or samples; each box has counters of its own and adds them once at its end.
#include "sign_histogram.h"

#include <algorithm>
#include <cstring>
#include <cstdlib>

#include "kernels.h"
#include "parallel.h"

namespace lc {
namespace {

constexpr int64_t kSmall = 32768;       // values below which waking a thread costs more than it saves
constexpr int64_t kLongRun = 256;       // values of a run from which its horizontal sum does not show
constexpr int64_t kWideRow = 16384;     // values of a joined row: eight long streams are what the prefetchers follow
constexpr int64_t kStrip = 4096;        // columns whose counters stay near; half of it took 15 % longer
constexpr int kBoxesPerThread = 4;      // slack for threads that start late

struct Task {
  std::vector<Dim> samples;  // by falling stride, joined, without stride 0
  Dim channels;
  int64_t repeat;            // times that each value counts: dimensions of stride 0
  int64_t* out;
  int columns;               // of out
  int threads;
};

void add(const Task& task, int64_t channel, int64_t values, const SignCounts& counts) {
  const int64_t negative = values - counts.zero - counts.positive - counts.nan;
  const int64_t row[5] = {negative, counts.zero, counts.positive, counts.nan, counts.upper};
  for (int j = 0; j < task.columns; ++j) {
    if (row[j] == 0) continue;
    // Integers: the sum does not depend on the order in which threads arrive.
    __atomic_fetch_add(task.out + channel * task.columns + j, row[j] * task.repeat, __ATOMIC_RELAXED);
  }
}

int64_t share(int64_t total, int64_t boxes, int64_t index) {
  return total / boxes * index + std::min(index, total % boxes);
}

// ---- runs -----------------------------------------------------------------------------------------------------

template <class U>
void count_runs(const U* x, const Task& task, U infinity, U upper) {
  const auto& kernel = kernels().of<U>();
  std::vector<Dim> outer = task.samples;
  const int64_t length = outer.empty() ? 1 : outer.back().size;
  const int64_t step = outer.empty() ? 1 : outer.back().stride;
  if (!outer.empty()) outer.pop_back();
  const int64_t runs = product(outer), channels = task.channels.size;

  // Split the longest of: channels, runs of a channel, values of a run.
  const int64_t boxes_wanted = int64_t(task.threads) * kBoxesPerThread;
  const int axis = task.threads == 1 || channels >= boxes_wanted ? 0 : runs >= boxes_wanted || runs >= length ? 1 : 2;
  const int64_t extent = axis == 0 ? channels : axis == 1 ? runs : length;
  const int64_t boxes = task.threads == 1 ? 1 : std::min(extent, boxes_wanted);

  // Memory order within a box: dimensions with a larger stride than the channels go around them.
  std::size_t around = 0;
  while (around < outer.size() && std::abs(outer[around].stride) >= std::abs(task.channels.stride)) ++around;
  if (axis == 1) around = 0;  // few channels: the split is over all runs
  const std::vector<Dim> before(outer.begin(), outer.begin() + around), after(outer.begin() + around, outer.end());

  const int64_t most = axis == 0 ? (channels + boxes - 1) / boxes : channels;
  std::vector<SignCounts> table(static_cast<std::size_t>(most * std::min<int64_t>(task.threads, boxes)));
  constexpr int64_t kTile = 1024;
  std::vector<U> tiles(step == 1 ? 0 : static_cast<std::size_t>(kTile * task.threads));

  parallel_for(task.threads, boxes, [&](int64_t box, int worker) {
    const int64_t begin = share(extent, boxes, box), end = share(extent, boxes, box + 1);
    const int64_t first = axis == 0 ? begin : 0, last = axis == 0 ? end : channels;
    const int64_t run_begin = axis == 1 ? begin : 0, run_end = axis == 1 ? end : product(after);
    const int64_t value_begin = axis == 2 ? begin : 0, value_end = axis == 2 ? end : length;
    SignCounts* counts = table.data() + worker * most;
    std::fill(counts, counts + (last - first), SignCounts{});
    U* tile = tiles.data() + worker * kTile;

    Walker outside(before, 0);
    for (int64_t b = 0, images = product(before); b < images; ++b, outside.next()) {
      for (int64_t c = first; c < last; ++c) {
        const U* base = x + outside.offset() + c * task.channels.stride;
        Walker inside(after, run_begin);
        for (int64_t r = run_begin; r < run_end; ++r, inside.next()) {
          const U* run = base + inside.offset();
          if (step == 1) {
            kernel.count_run(run + value_begin, value_end - value_begin, infinity, upper, &counts[c - first]);
            continue;
          }
          for (int64_t i = value_begin; i < value_end; i += kTile) {
            const int64_t n = std::min(kTile, value_end - i);
            for (int64_t j = 0; j < n; ++j) tile[j] = run[(i + j) * step];
            kernel.count_run(tile, n, infinity, upper, &counts[c - first]);
          }
        }
      }
    }
    const int64_t values = product(before) * (run_end - run_begin) * (value_end - value_begin);
    for (int64_t c = first; c < last; ++c) add(task, c, values, counts[c - first]);
  });
}

// ---- rows -----------------------------------------------------------------------------------------------------

// Column i of a row belongs to channel i / run % channels. Rows of the last group of a dimension may be shorter.
struct Rows {
  std::vector<Dim> outer;   // of the rows
  int64_t width;            // columns
  int64_t run;              // neighbouring columns of one channel
  int64_t step;             // stride of the columns; not 1: gather
  int64_t tail_every;       // every tail_every-th row has tail_width columns only; 0: none
  int64_t tail_width;
};

// How many of the columns [first, first + width) are of channel c, where channels follow each other.
int64_t columns_of(int64_t c, int64_t first, int64_t width, int64_t channels) {
  const int64_t before = (c - first % channels + channels) % channels;  // columns until the first of them
  return before < width ? (width - before - 1) / channels + 1 : 0;
}

template <class U>
void count_rows(const U* x, const Task& task, const Rows& rows, U infinity, U upper) {
  const auto& kernel = kernels().of<U>();
  const int64_t total = product(rows.outer);
  const int64_t boxes_wanted = int64_t(task.threads) * kBoxesPerThread;
  // Wide rows are cut into column ranges, which share no counters; else the rows are dealt out.
  const bool by_column = rows.width >= boxes_wanted * kStrip || total < boxes_wanted * kRowGroup;
  const int64_t extent = by_column ? rows.width : total;
  const int64_t most_boxes = by_column ? std::max<int64_t>(1, rows.width / 64) : total;
  const int64_t boxes = task.threads == 1 ? 1 : std::min(most_boxes, boxes_wanted);
  const int64_t most = by_column ? (rows.width + boxes - 1) / boxes : rows.width;
  const int64_t rows_per_flush = sizeof(U) == 2 ? 65528 : int64_t(1) << 31;  // counters are as wide as the values

  const int kinds = task.columns == 5 ? 4 : 3;
  const int workers = static_cast<int>(std::min<int64_t>(task.threads, boxes));
  std::vector<U> counters(static_cast<std::size_t>(most * kinds * workers));
  std::vector<U> tiles(rows.step == 1 ? 0 : static_cast<std::size_t>(most * kRowGroup * workers));
  const int64_t channels = task.channels.size;
  const bool joined = rows.width > channels * rows.run;
  std::vector<SignCounts> table(static_cast<std::size_t>(joined ? channels * workers : workers));

  parallel_for(task.threads, boxes, [&](int64_t box, int worker) {
    // Whole groups of rows: a row by itself costs three times its share.
    const int64_t unit = by_column ? 1 : kRowGroup, units = (extent + unit - 1) / unit;
    const int64_t begin = std::min(extent, share(units, boxes, box) * unit);
    const int64_t end = std::min(extent, share(units, boxes, box + 1) * unit);
    const int64_t first = by_column ? begin : 0, width = by_column ? end - begin : rows.width;
    const int64_t row_begin = by_column ? 0 : begin, row_end = by_column ? total : end;
    U* zero = counters.data() + worker * most * kinds;
    U *positive = zero + most, *nan = positive + most, *above = kinds == 4 ? nan + most : nullptr;
    U* tile = tiles.data() + worker * most * kRowGroup;

    Walker walker(rows.outer, row_begin);
    for (int64_t r = row_begin; r < row_end;) {
      std::memset(zero, 0, static_cast<std::size_t>(most * kinds) * sizeof(U));
      const int64_t flush = std::min(row_end, r + rows_per_flush);
      int64_t full = 0, tails = 0;
      while (r < flush) {
        const U* group[kRowGroup];
        int n = 0;
        bool tail = false;
        for (; n < kRowGroup && r < flush && !tail; ++n, ++r, walker.next()) {
          tail = rows.tail_every != 0 && (r + 1) % rows.tail_every == 0;
          if (tail && n > 0) break;  // a short row goes alone
          group[n] = x + walker.offset() + first * rows.step;
          if (rows.step == 1) continue;
          U* gathered = tile + n * most;
          const int64_t columns = std::max<int64_t>(0, std::min(width, (tail ? rows.tail_width : rows.width) - first));
          for (int64_t i = 0; i < columns; ++i) gathered[i] = group[n][i * rows.step];
          group[n] = gathered;
        }
        const bool only_tail = n == 1 && rows.tail_every != 0 && r % rows.tail_every == 0;
        const int64_t columns = only_tail ? std::max<int64_t>(0, std::min(width, rows.tail_width - first)) : width;
        (only_tail ? tails : full) += n;
        for (int64_t s = 0; s < columns; s += kStrip) {
          const U* strip[kRowGroup];
          for (int j = 0; j < n; ++j) strip[j] = group[j] + s;
          kernel.count_rows(strip, n, std::min(kStrip, columns - s), infinity, upper, zero + s, positive + s, nan + s,
                            above == nullptr ? nullptr : above + s);
        }
      }
      // Add up the columns of one channel, then the channel. Joined rows first into a table: an atomic addition per
      // column cost up to a millisecond.
      SignCounts* counts = table.data() + worker * (joined ? channels : 1);
      std::fill(counts, counts + (joined ? channels : 1), SignCounts{});
      for (int64_t i = 0, column = first; i < width; column = first + i) {
        const int64_t channel = column / rows.run % channels, same = std::min(width - i, rows.run - column % rows.run);
        SignCounts& sum = counts[joined ? channel : 0];
        if (!joined) sum = SignCounts{};
        for (const int64_t end = i + same; i < end; ++i) {
          sum.zero += zero[i];
          sum.positive += positive[i];
          sum.nan += nan[i];
          if (above != nullptr) sum.upper += above[i];
        }
        if (!joined) add(task, channel, full * same, sum);
      }
      for (int64_t c = 0; joined && c < channels; ++c) {
        const int64_t in_full = columns_of(c, first, width, channels);
        const int64_t in_tail = columns_of(c, first, std::min(width, rows.tail_width - first), channels);
        add(task, c, full * in_full + tails * in_tail, counts[c]);
      }
    }
  });
}

// ---- choice ---------------------------------------------------------------------------------------------------

template <class U>
void count(const U* x, const Task& task, U infinity, U upper) {
  const std::vector<Dim>& samples = task.samples;
  const int64_t channels = task.channels.size, stride = task.channels.stride;
  const bool runs_contiguous = !samples.empty() && samples.back().stride == 1;
  const int64_t run = samples.empty() ? 1 : samples.back().size;

  if (channels > 1 && runs_contiguous && run < kLongRun && stride == run && product(samples) / run >= kRowGroup) {
    // Short runs in dense images: the image is a row.
    return count_rows(x, task, {{samples.begin(), samples.end() - 1}, channels * run, run, 1, 0, 0}, infinity, upper);
  }
  const bool channels_inside = channels > 1 && stride > 0 && (samples.empty() || stride < samples.back().stride);
  if (!channels_inside) return count_runs(x, task, infinity, upper);

  Rows rows{samples, channels, 1, stride, 0, 0};
  if (!samples.empty() && channels < kWideRow && samples.back().stride == channels * stride) {
    // Few channels in dense rows: join rows. The last joined row of the dimension may be short.
    // An odd number: rows a power of two apart would meet in the same few sets of the cache.
    const int64_t join = std::max<int64_t>(1, std::min(kWideRow / channels, run / kRowGroup) - 1) | 1;
    const int64_t joined = (run + join - 1) / join;
    rows.outer.back() = {joined, join * channels * stride};
    rows.width = join * channels;
    if (run % join != 0) {
      rows.tail_every = joined;
      rows.tail_width = run % join * channels;
    }
  }
  count_rows(x, task, rows, infinity, upper);
}

}  // namespace

void sign_histogram(const void* x, Dtype dtype, Dim channels, std::vector<Dim> samples, float upper, int64_t* out,
                    int threads) {
  if (channels.size == 0 || product(samples) == 0) return;
  Task task{{}, channels, 1, out, upper > 0 ? 5 : 4, 1};
  int64_t shift = 0;
  for (Dim& dim : samples) {
    if (dim.stride == 0) {
      task.repeat *= dim.size;
      dim.size = 1;
    } else if (dim.stride < 0) {  // walk it the other way
      shift += (dim.size - 1) * dim.stride;
      dim.stride = -dim.stride;
    }
  }
  std::stable_sort(samples.begin(), samples.end(), [](const Dim& a, const Dim& b) { return a.stride > b.stride; });
  task.samples = coalesce(samples);
  task.threads = product(task.samples) * channels.size < kSmall ? 1 : std::max(1, threads);

  uint32_t bits = 0;
  if (upper > 0) {
    std::memcpy(&bits, &upper, sizeof bits);
    bits = from_common(dtype, bits);
  }
  if (dtype == Dtype::float32) {
    count(static_cast<const uint32_t*>(x) + shift, task, infinity(dtype), bits);
  } else {
    count(static_cast<const uint16_t*>(x) + shift, task, static_cast<uint16_t>(infinity(dtype)),
          static_cast<uint16_t>(bits));
  }
}

}  // namespace lc
