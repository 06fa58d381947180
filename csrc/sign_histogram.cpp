// sign_histogram on the CPU: one read of x, N bytes; nothing else in memory traffic but the counters.
//
//   out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c
//
// Samples may be counted in any order, so their dimensions are first sorted by stride and joined. Then
//   runs:  samples are contiguous (channels-first): register counters along each run;
//   rows:  channels are contiguous (channels-last), or runs are so short that whole images (C · L values) make
//          better rows: a counter per column stays in cache, kRowGroup rows are read at a time;
//   other strides: a tile is gathered first.
// Work is split into boxes of channels or samples; counters belong to a worker and are added once they are full.
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
// Bytes of a row counted at a time: their counters, twice as many, stay near; and short rows are joined up to it,
// because the prefetchers follow rows of 8 KB and more: rows of 256 values as they are took twice as long.
constexpr int64_t kStrip = 16384;
constexpr int64_t kGathered = 4096;     // the same where a tile is gathered: it stays in the second-level cache
constexpr int64_t kMostRows = 65520;    // that a counter of 16 bits takes; whole groups
constexpr int64_t kWorthABox = 1 << 18; // values
constexpr int kBoxesPerThread = 4;      // slack for threads that start late

struct Task {
  std::vector<Dim> samples;  // by falling stride, joined, without stride 0
  Dim channels;
  int64_t repeat;            // times that each value counts: dimensions of stride 0
  int64_t* out;
  int columns;               // of out
  int threads;
};

void add(const Task& task, int64_t channel, int64_t values, const SignCounts& counts, bool shared) {
  const int64_t negative = counts.nonzero - counts.positive - counts.nan, zero = values - counts.nonzero;
  const int64_t row[5] = {negative, zero, counts.positive, counts.nan, counts.upper};
  int64_t* out = task.out + channel * task.columns;
  for (int j = 0; j < task.columns; ++j) {
    if (row[j] == 0) continue;
    if (shared) {  // integers: the sum does not depend on the order in which threads arrive
      __atomic_fetch_add(out + j, row[j] * task.repeat, __ATOMIC_RELAXED);
    } else {
      out[j] += row[j] * task.repeat;
    }
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
    for (int64_t c = first; c < last; ++c) add(task, c, values, counts[c - first], axis != 0);
  });
}

// ---- rows -----------------------------------------------------------------------------------------------------

// Column i of a row belongs to channel i / run.
struct Rows {
  std::vector<Dim> outer;  // of blocks of rows
  Dim block;               // rows of a block
  int64_t width;           // columns
  int64_t run;             // neighbouring columns of one channel
  int64_t step;            // stride of the columns; not 1: gather
};

template <class U>
struct Counters {
  std::vector<U> nonzero, positive, nan, above;  // per column, or per column of joined rows
  std::vector<U> tile;
  int64_t used = 0;              // columns with counters
  int64_t most = 0;              // rows that one counter has counted, at most
  int64_t rows = 0;              // rows of the tensor
  int64_t first = 0, width = 0;  // the columns of the tensor that these are

  explicit Counters(int64_t columns, int64_t tiled, bool upper)
      : nonzero(columns), positive(columns), nan(columns), above(upper ? columns : 0), tile(tiled) {}
};

// Adds the counters to the channels' counts and empties them.
template <class U>
void flush(const Task& task, const Rows& rows, bool shared, Counters<U>& counters) {
  if (counters.rows == 0) return;
  const int64_t width = counters.width, first = counters.first;
  const int64_t begin = first / rows.run, end = (first + width - 1) / rows.run + 1;  // channels
  const auto fold = [&](std::vector<U>& columns) {
    std::vector<uint32_t> sums(static_cast<std::size_t>(end - begin));  // of at most kStrip / 2 counters of kMostRows: below 2^32
    if (columns.empty()) return sums;
    for (int64_t row = 0; row < counters.used; row += width) {
      const U* from = columns.data() + row;
      if (rows.run == 1) {
        for (int64_t i = 0; i < width; ++i) sums[i] += from[i];
        continue;
      }
      for (int64_t c = begin; c < end; ++c) {
        const int64_t last = std::min(width, (c + 1) * rows.run - first);
        for (int64_t i = std::max<int64_t>(0, c * rows.run - first); i < last; ++i) sums[c - begin] += from[i];
      }
    }
    std::fill(columns.begin(), columns.begin() + counters.used, U(0));
    return sums;
  };
  const auto nonzero = fold(counters.nonzero), positive = fold(counters.positive), nan = fold(counters.nan),
             above = fold(counters.above);
  for (int64_t c = begin; c < end; ++c) {
    const int64_t columns = std::min(width, (c + 1) * rows.run - first) - std::max<int64_t>(0, c * rows.run - first);
    const int64_t i = c - begin;
    add(task, c, counters.rows * columns, {nonzero[i], positive[i], nan[i], above[i]}, shared);
  }
  counters.used = counters.most = counters.rows = 0;
}

template <class U>
void count_rows(const U* x, const Task& task, const Rows& rows, U infinity, U upper) {
  const auto& kernel = kernels().of<U>();
  const int64_t total = product(rows.outer) * rows.block.size;
  const int64_t most = (rows.step == 1 ? kStrip : kGathered) / int64_t(sizeof(U));

  // A box: a range of columns (whole vectors) times a range of rows (whole groups).
  const int64_t strips = (rows.width + most - 1) / most;
  const int64_t strip = ((rows.width + strips - 1) / strips + 63) / 64 * 64;
  const int64_t groups = (total + kRowGroup - 1) / kRowGroup;
  const int64_t wanted = std::max<int64_t>(task.threads, std::min(task.threads * int64_t(kBoxesPerThread),
                                                                  total * rows.width / kWorthABox));
  const int64_t parts = task.threads == 1 ? 1 : std::min(groups, (wanted + strips - 1) / strips);
  const bool shared = parts > 1 || rows.run > 1;  // or a channel may lie in two strips
  const bool dense = rows.block.stride == rows.width * rows.step;
  // An odd number: rows a power of two apart would meet in the same few sets of the cache.
  const int64_t join = dense && strips == 1 ? std::max<int64_t>(0, most / rows.width - 1) | 1 : 1;

  const int64_t columns = std::min(strip, rows.width) * std::min(join, groups);
  const int workers = static_cast<int>(std::min<int64_t>(task.threads, strips * parts));
  std::vector<Counters<U>> all(
      workers, Counters<U>(columns, rows.step == 1 ? 0 : columns * kRowGroup, task.columns == 5));

  parallel_for(task.threads, strips * parts, [&](int64_t box, int worker) {
    Counters<U>& counters = all[worker];
    const int64_t first = box / parts * strip, width = std::min(strip, rows.width - first), part = box % parts;
    if (width <= 0) return;
    if (first != counters.first) flush(task, rows, shared, counters);
    counters.first = first;
    counters.width = width;
    U* above = counters.above.empty() ? nullptr : counters.above.data();

    // `count` rows of n columns, `stride` apart; as many as the counters take.
    const auto feed = [&](const U* from, int64_t stride, int64_t count, int64_t n) {
      counters.used = std::max(counters.used, n);
      counters.most += count;
      if (rows.step == 1) {
        kernel.count_rows(from, stride, count, n, infinity, upper, counters.nonzero.data(), counters.positive.data(),
                          counters.nan.data(), above);
        return;
      }
      for (int64_t row = 0; row < count; row += kRowGroup) {
        const int64_t tall = std::min<int64_t>(kRowGroup, count - row);
        for (int64_t j = 0; j < tall; ++j) {
          for (int64_t i = 0; i < n; ++i) counters.tile[j * n + i] = from[(row + j) * stride + i * rows.step];
        }
        kernel.count_rows(counters.tile.data(), n, tall, n, infinity, upper, counters.nonzero.data(),
                          counters.positive.data(), counters.nan.data(), above);
      }
    };

    const int64_t end = std::min(total, share(groups, parts, part + 1) * kRowGroup);
    for (int64_t row = share(groups, parts, part) * kRowGroup; row < end;) {
      const int64_t at = row % rows.block.size;
      const U* from = x + offset_of(rows.outer, row / rows.block.size) + at * rows.block.stride + first * rows.step;
      int64_t left = std::min(rows.block.size - at, end - row);
      row += left;
      // As many joined rows as make whole groups, then fewer joined, then rows as they are.
      for (int64_t joined = join; left > 0;) {
        joined = std::min(joined, std::max<int64_t>(1, left / kRowGroup));
        if (counters.most + kRowGroup > kMostRows) flush(task, rows, shared, counters);
        int64_t count = std::min(left / joined, kMostRows - counters.most);
        if (count > kRowGroup) count -= count % kRowGroup;
        feed(from, joined * rows.block.stride, count, joined * width);
        from += count * joined * rows.block.stride;
        left -= count * joined;
        counters.rows += count * joined;
      }
    }
  });
  for (Counters<U>& counters : all) flush(task, rows, false, counters);
}

// ---- choice ---------------------------------------------------------------------------------------------------

template <class U>
void count(const U* x, const Task& task, U infinity, U upper) {
  const std::vector<Dim>& samples = task.samples;
  const int64_t channels = task.channels.size, stride = task.channels.stride;
  const bool runs_contiguous = !samples.empty() && samples.back().stride == 1;
  const int64_t run = samples.empty() ? 1 : samples.back().size;

  std::vector<Dim> outer = samples;
  if (channels > 1 && runs_contiguous && run < kLongRun && stride == run && product(samples) / run >= kRowGroup / 2) {
    // Short runs in dense images: the image is a row.
    outer.pop_back();
    const Dim images = outer.back();
    outer.pop_back();
    return count_rows(x, task, {outer, images, channels * run, run, 1}, infinity, upper);
  }
  const bool channels_inside = channels > 1 && stride > 0 && (samples.empty() || stride < samples.back().stride);
  if (!channels_inside) return count_runs(x, task, infinity, upper);

  const Dim block = samples.empty() ? Dim{1, 0} : samples.back();
  if (!samples.empty()) outer.pop_back();
  count_rows(x, task, {outer, block, channels, 1, stride}, infinity, upper);
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
