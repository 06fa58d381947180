// sign_histogram on the CPU: one read of x, N bytes; nothing else in memory traffic but the counters.
//
//   out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c
//
// Samples may be counted in any order, so their dimensions are first sorted by stride and joined. Then
//   runs:  samples are contiguous (channels-first): register counters along each run;
//   rows:  channels are contiguous (channels-last), or runs are so short that whole images (C · L values) make
//          better rows: a counter per column stays in cache, kRowGroup rows are read at a time;
//   other strides: a tile is gathered first.
// Work is split into boxes of channels or samples, those of all activations into one loop over the threads; counters
// belong to a worker and are added once they are full, or when it goes on to another activation.
#include "sign_histogram.h"

#include <algorithm>
#include <cstring>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

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
  bool shared;               // whether other threads may add to out
};

// What one worker has: memory for the counters of one job at a time, and how far they are filled.
struct Worker {
  char* memory = nullptr;
  int64_t job = -1;
  int64_t used = 0;              // columns with counters
  int64_t most = 0;              // rows that one counter has counted, at most
  int64_t rows = 0;              // rows of the tensor
  int64_t first = 0, width = 0;  // the columns of the tensor that these are
};

// One activation: boxes that any worker may count, in any order.
class Job {
 public:
  virtual ~Job() = default;
  virtual int64_t boxes() const = 0;
  virtual int64_t memory() const = 0;  // bytes that a worker needs
  virtual void start(Worker& worker) const = 0;
  virtual void count(int64_t box, Worker& worker) const = 0;
  virtual void finish(Worker& worker) const = 0;
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
class RunsJob final : public Job {
 public:
  RunsJob(const U* x, Task task, U infinity, U upper) : x_(x), task_(std::move(task)), infinity_(infinity), upper_(upper) {
    std::vector<Dim> outer = task_.samples;
    length_ = outer.empty() ? 1 : outer.back().size;
    step_ = outer.empty() ? 1 : outer.back().stride;
    if (!outer.empty()) outer.pop_back();
    const int64_t runs = product(outer), channels = task_.channels.size, threads = task_.threads;

    // Split the longest of: channels, runs of a channel, values of a run.
    const int64_t boxes_wanted = threads * kBoxesPerThread;
    axis_ = threads == 1 || channels >= boxes_wanted ? 0 : runs >= boxes_wanted || runs >= length_ ? 1 : 2;
    extent_ = axis_ == 0 ? channels : axis_ == 1 ? runs : length_;
    boxes_ = threads == 1 ? 1 : std::min(extent_, boxes_wanted);

    // Memory order within a box: dimensions with a larger stride than the channels go around them.
    std::ptrdiff_t around = 0;
    const auto wider = [&](const Dim& dim) { return std::abs(dim.stride) >= std::abs(task_.channels.stride); };
    if (axis_ != 1) around = std::find_if_not(outer.begin(), outer.end(), wider) - outer.begin();
    before_.assign(outer.begin(), outer.begin() + around);  // with few channels, the split is over all runs
    after_.assign(outer.begin() + around, outer.end());
    most_ = axis_ == 0 ? (channels + boxes_ - 1) / boxes_ : channels;
  }

  int64_t boxes() const override { return boxes_; }
  int64_t memory() const override {
    return most_ * int64_t(sizeof(SignCounts)) + (step_ == 1 ? 0 : kTile * int64_t(sizeof(U)));
  }
  void start(Worker&) const override {}
  void finish(Worker&) const override {}

  void count(int64_t box, Worker& worker) const override {
    const auto& kernel = kernels().of<U>();
    const int64_t begin = share(extent_, boxes_, box), end = share(extent_, boxes_, box + 1);
    const int64_t first = axis_ == 0 ? begin : 0, last = axis_ == 0 ? end : task_.channels.size;
    const int64_t run_begin = axis_ == 1 ? begin : 0, run_end = axis_ == 1 ? end : product(after_);
    const int64_t value_begin = axis_ == 2 ? begin : 0, value_end = axis_ == 2 ? end : length_;
    auto* counts = reinterpret_cast<SignCounts*>(worker.memory);
    auto* tile = reinterpret_cast<U*>(counts + most_);
    std::fill(counts, counts + (last - first), SignCounts{});

    Walker outside(before_, 0);
    for (int64_t b = 0, images = product(before_); b < images; ++b, outside.next()) {
      for (int64_t c = first; c < last; ++c) {
        const U* base = x_ + outside.offset() + c * task_.channels.stride;
        Walker inside(after_, run_begin);
        for (int64_t r = run_begin; r < run_end; ++r, inside.next()) {
          const U* run = base + inside.offset();
          if (step_ == 1) {
            kernel.count_run(run + value_begin, value_end - value_begin, infinity_, upper_, &counts[c - first]);
            continue;
          }
          for (int64_t i = value_begin; i < value_end; i += kTile) {
            const int64_t n = std::min(kTile, value_end - i);
            for (int64_t j = 0; j < n; ++j) tile[j] = run[(i + j) * step_];
            kernel.count_run(tile, n, infinity_, upper_, &counts[c - first]);
          }
        }
      }
    }
    const int64_t values = product(before_) * (run_end - run_begin) * (value_end - value_begin);
    for (int64_t c = first; c < last; ++c) add(task_, c, values, counts[c - first], axis_ != 0 || task_.shared);
  }

 private:
  static constexpr int64_t kTile = 1024;
  const U* x_;
  const Task task_;
  const U infinity_, upper_;
  int64_t length_, step_, extent_, boxes_, most_;
  int axis_;
  std::vector<Dim> before_, after_;
};

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
class RowsJob final : public Job {
 public:
  RowsJob(const U* x, Task task, Rows rows, U infinity, U upper)
      : x_(x), task_(std::move(task)), rows_(std::move(rows)), infinity_(infinity), upper_(upper) {
    total_ = product(rows_.outer) * rows_.block.size;
    const int64_t most = (rows_.step == 1 ? kStrip : kGathered) / int64_t(sizeof(U)), threads = task_.threads;

    // A box: a range of columns (whole vectors) times a range of rows (whole groups).
    strips_ = (rows_.width + most - 1) / most;
    strip_ = ((rows_.width + strips_ - 1) / strips_ + 63) / 64 * 64;
    groups_ = (total_ + kRowGroup - 1) / kRowGroup;
    const int64_t wanted = std::max(threads, std::min(threads * kBoxesPerThread, total_ * rows_.width / kWorthABox));
    parts_ = threads == 1 ? 1 : std::min(groups_, (wanted + strips_ - 1) / strips_);
    shared_ = parts_ > 1 || rows_.run > 1 || task_.shared;  // or a channel may lie in two strips
    const bool dense = rows_.block.stride == rows_.width * rows_.step;
    // An odd number: rows a power of two apart would meet in the same few sets of the cache.
    join_ = dense && strips_ == 1 ? std::max<int64_t>(0, most / rows_.width - 1) | 1 : 1;
    columns_ = std::min(strip_, rows_.width) * std::min(join_, groups_);
  }

  int64_t boxes() const override { return strips_ * parts_; }
  int64_t memory() const override {
    return counter_bytes() + 4 * std::min(strip_, rows_.width) * int64_t(sizeof(uint32_t));
  }
  void start(Worker& worker) const override {
    std::memset(worker.memory, 0, static_cast<std::size_t>(kinds() * columns_) * sizeof(U));
    worker.used = worker.most = worker.rows = worker.first = worker.width = 0;
  }

  void count(int64_t box, Worker& worker) const override {
    const auto& kernel = kernels().of<U>();
    const int64_t first = box / parts_ * strip_, width = std::min(strip_, rows_.width - first), part = box % parts_;
    if (width <= 0) return;
    if (first != worker.first) finish(worker);
    worker.first = first;
    worker.width = width;
    U *nonzero = counters(worker, 0), *positive = counters(worker, 1), *nan = counters(worker, 2);
    U* above = upper_ == 0 ? nullptr : counters(worker, 3);
    U* tile = counters(worker, kinds());

    // `count` rows of n columns, `stride` apart; as many as the counters take.
    const auto feed = [&](const U* from, int64_t stride, int64_t count, int64_t n) {
      worker.used = std::max(worker.used, n);
      worker.most += count;
      if (rows_.step == 1) {
        kernel.count_rows(from, stride, count, n, infinity_, upper_, nonzero, positive, nan, above);
        return;
      }
      for (int64_t row = 0; row < count; row += kRowGroup) {
        const int64_t tall = std::min<int64_t>(kRowGroup, count - row);
        for (int64_t j = 0; j < tall; ++j) {
          for (int64_t i = 0; i < n; ++i) tile[j * n + i] = from[(row + j) * stride + i * rows_.step];
        }
        kernel.count_rows(tile, n, tall, n, infinity_, upper_, nonzero, positive, nan, above);
      }
    };

    const int64_t end = std::min(total_, share(groups_, parts_, part + 1) * kRowGroup);
    for (int64_t row = share(groups_, parts_, part) * kRowGroup; row < end;) {
      const int64_t at = row % rows_.block.size;
      const U* from = x_ + offset_of(rows_.outer, row / rows_.block.size) + at * rows_.block.stride + first * rows_.step;
      int64_t left = std::min(rows_.block.size - at, end - row);
      row += left;
      // As many joined rows as make whole groups, then fewer joined, then rows as they are.
      for (int64_t joined = join_; left > 0;) {
        joined = std::min(joined, std::max<int64_t>(1, left / kRowGroup));
        if (worker.most + kRowGroup > kMostRows) finish(worker);
        int64_t count = std::min(left / joined, kMostRows - worker.most);
        if (count > kRowGroup) count -= count % kRowGroup;
        feed(from, joined * rows_.block.stride, count, joined * width);
        from += count * joined * rows_.block.stride;
        left -= count * joined;
        worker.rows += count * joined;
      }
    }
  }

  // Adds the counters to the channels' counts and empties them.
  void finish(Worker& worker) const override {
    if (worker.rows == 0) return;
    const int64_t width = worker.width, first = worker.first;
    const int64_t begin = first / rows_.run, end = (first + width - 1) / rows_.run + 1;  // channels
    const auto fold = [&](int64_t kind) {
      // Of at most kStrip / 2 counters of kMostRows: below 2^32.
      uint32_t* sums = reinterpret_cast<uint32_t*>(worker.memory + counter_bytes()) + kind * (end - begin);
      std::fill(sums, sums + (end - begin), 0);
      if (kind >= kinds()) return sums;
      U* columns = counters(worker, kind);
      for (int64_t row = 0; row < worker.used; row += width) {
        const U* from = columns + row;
        if (rows_.run == 1) {
          for (int64_t i = 0; i < width; ++i) sums[i] += from[i];
          continue;
        }
        for (int64_t c = begin; c < end; ++c) {
          const int64_t last = std::min(width, (c + 1) * rows_.run - first);
          for (int64_t i = std::max<int64_t>(0, c * rows_.run - first); i < last; ++i) sums[c - begin] += from[i];
        }
      }
      std::fill(columns, columns + worker.used, U(0));
      return sums;
    };
    const uint32_t *nonzero = fold(0), *positive = fold(1), *nan = fold(2), *above = fold(3);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t columns = std::min(width, (c + 1) * rows_.run - first) - std::max<int64_t>(0, c * rows_.run - first);
      const int64_t i = c - begin;
      add(task_, c, worker.rows * columns, {nonzero[i], positive[i], nan[i], above[i]}, shared_);
    }
    worker.used = worker.most = worker.rows = 0;
  }

 private:
  int64_t counter_bytes() const {  // of the counters, and of a tile
    return ((kinds() + (rows_.step == 1 ? 0 : kRowGroup)) * columns_ * int64_t(sizeof(U)) + 63) / 64 * 64;
  }
  int64_t kinds() const { return upper_ == 0 ? 3 : 4; }  // nonzero, positive, nan, above
  U* counters(const Worker& worker, int64_t kind) const {  // per column, or per column of joined rows
    return reinterpret_cast<U*>(worker.memory) + kind * columns_;
  }

  const U* x_;
  const Task task_;
  const Rows rows_;
  const U infinity_, upper_;
  int64_t total_, strips_, strip_, groups_, parts_, join_, columns_;
  bool shared_;
};

// ---- choice ---------------------------------------------------------------------------------------------------

template <class U>
std::unique_ptr<Job> job_for(const U* x, Task task, U infinity, U upper) {
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
    Rows rows{std::move(outer), images, channels * run, run, 1};
    return std::make_unique<RowsJob<U>>(x, std::move(task), std::move(rows), infinity, upper);
  }
  const bool channels_inside = channels > 1 && stride > 0 && (samples.empty() || stride < samples.back().stride);
  if (!channels_inside) return std::make_unique<RunsJob<U>>(x, std::move(task), infinity, upper);

  const Dim block = samples.empty() ? Dim{1, 0} : samples.back();
  if (!samples.empty()) outer.pop_back();
  Rows rows{std::move(outer), block, channels, 1, stride};
  return std::make_unique<RowsJob<U>>(x, std::move(task), std::move(rows), infinity, upper);
}

std::unique_ptr<Job> job_for(const Activation& activation, int threads, bool shared) {
  const auto [x, dtype, channels, all, upper, out] = activation;
  Task task{{}, channels, 1, out, upper > 0 ? 5 : 4, 1, shared};
  std::vector<Dim> samples = all;
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

  const uint32_t bound = upper > 0 ? at_least(dtype, upper) : 0;
  if (dtype == Dtype::float32) {
    return job_for(static_cast<const uint32_t*>(x) + shift, std::move(task), infinity(dtype), bound);
  }
  return job_for(static_cast<const uint16_t*>(x) + shift, std::move(task), static_cast<uint16_t>(infinity(dtype)),
                 static_cast<uint16_t>(bound));
}

}  // namespace

void sign_histogram(const std::vector<Activation>& activations, int threads) {
  std::vector<std::unique_ptr<Job>> jobs;
  std::vector<int64_t> ends;  // of each job's boxes in the line of all
  int64_t boxes = 0, memory = 0, values = 0;
  for (const Activation& activation : activations) {
    const int64_t count = product(activation.samples) * activation.channels.size;
    if (count == 0) continue;
    values += count;
    jobs.push_back(job_for(activation, threads, activations.size() > 1));
    ends.push_back(boxes += jobs.back()->boxes());
    memory = std::max(memory, jobs.back()->memory());
  }
  if (jobs.empty()) return;
  threads = values < kSmall ? 1 : workers_for(threads, boxes);

  // No two workers share a cache line.
  constexpr int64_t kLine = 64;
  memory = (memory + kLine - 1) / kLine * kLine;
  const std::unique_ptr<char[]> block(new char[static_cast<std::size_t>(memory * threads + kLine)]);
  char* first = block.get() + (kLine - reinterpret_cast<std::uintptr_t>(block.get()) % kLine) % kLine;
  std::vector<Worker> workers(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) workers[i].memory = first + memory * i;

  // A worker gets boxes in order: it never comes back to a job that it has left.
  parallel_for(threads, boxes, [&](int64_t box, int index) {
    Worker& worker = workers[index];
    const int64_t job = std::upper_bound(ends.begin(), ends.end(), box) - ends.begin();
    if (job != worker.job) {
      if (worker.job >= 0) jobs[worker.job]->finish(worker);
      worker.job = job;
      jobs[job]->start(worker);
    }
    jobs[job]->count(box - (job == 0 ? 0 : ends[job - 1]), worker);
  });
  for (Worker& worker : workers) {
    if (worker.job >= 0) jobs[worker.job]->finish(worker);
  }
}

}  // namespace lc
