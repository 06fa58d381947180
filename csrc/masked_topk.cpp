// masked_topk_ on the CPU. Memory traffic for B bytes of weights and their keep-bits: B to find the thresholds, then
// B read and what changes written; at most B / 34 + 12 MiB of memory besides.
//
//   threshold T of a group: its k-th smallest kept magnitude. Cleared: magnitudes < T, and of those equal to T the
//   first k - #(magnitude < T) in row-major order, earlier weights first.
//
// 1. A random sample brackets T. 2. One read counts what lies below the bracket and collects the few inside (and finds
// any NaN). 3. T is selected among these. 4. A second read clears. Weights are cut into chunks; counts of ties per
// chunk, summed in order, make the result independent of threads. A bracket that missed, or that holds too much to
// collect (many equal values), is replaced by counting passes over all keys: exact for any data. Weights small
// enough for one chunk are solved by one thread each. Nothing is written before every threshold is proven.
#include "masked_topk.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "kernels.h"
#include "parallel.h"
#include "select.h"

namespace lc {
namespace {

constexpr int64_t kChunk = 65536;           // entries per unit of work: 8 KiB of keep-bits, so no two share a byte
constexpr int64_t kPiece = 4096;            // entries per kernel call; a gathered piece stays in the first-level cache
constexpr int64_t kDraw = 4;                // neighbours drawn together
constexpr int64_t kUnsampled = 8192;        // entries up to which selecting among all beats sampling
constexpr int64_t kFewBins = 2048, kManyBins = 65536;
constexpr int64_t kAllTies = std::numeric_limits<int64_t>::max();

struct Chunk {
  int64_t weight = 0, group = 0, begin = 0, size = 0;
  int64_t kept = 0, below = 0, inside = 0;  // `inside` magnitudes lie in the group's range
  int64_t ties = 0;                         // to clear
  char* found = nullptr;                    // the magnitudes inside, in order, in the weight's own width
  bool nan = false, overflow = false;
};

struct Group {
  int64_t k = 0, first_chunk = 0, last_chunk = 0, size = 0, kept = 0;
  int64_t longest = 0;  // entries of the longest chunk
  Range range;
  int64_t below = 0, inside = 0;
  uint32_t threshold = 0;
};

struct Worker {
  std::unique_ptr<char[]> found;
  int64_t used = 0;
  std::unique_ptr<uint32_t[]> keys;  // kChunk + 1
  alignas(64) uint32_t piece[kPiece];
};

uint64_t random(uint64_t i) {  // splitmix64: fixed, so that equal input takes equal time
  i = (i + 1) * 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9u;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
  return i ^ (i >> 31);
}

// Copies entries between row-major order and a strided weight. Of a channels-last weight, neighbouring channels lie
// next to each other and their few places far apart: so rows of one block are copied place by place, which reads
// memory in order (and spares a step of the walker per row: 9 entries for a 3 x 3 filter).
template <bool kGather, class U>
void transfer(const Weight& weight, int64_t begin, int64_t count, U* piece) {
  const Dim inner = weight.dims.back(), rows = weight.outer.empty() ? Dim{1, 0} : weight.outer.back();
  const auto copy = [](U* value, U* entry) {
    if constexpr (kGather) {
      *entry = *value;
    } else {
      *value = *entry;
    }
  };
  while (count > 0) {
    const int64_t row = begin / inner.size, at = begin % inner.size;
    U* values = static_cast<U*>(weight.values) + offset_of(weight.outer, row) + at * inner.stride;
    const int64_t whole = at == 0 ? std::min(count / inner.size, rows.size - row % rows.size) : 0;
    const int64_t n = whole > 0 ? whole * inner.size : std::min(count, inner.size - at);
    if (whole > 1 && rows.stride < inner.stride) {
      for (int64_t i = 0; i < inner.size; ++i) {
        U* from = values + i * inner.stride;
        for (int64_t r = 0; r < whole; ++r) copy(from + r * rows.stride, piece + r * inner.size + i);
      }
    } else {
      for (int64_t r = 0; r < std::max<int64_t>(whole, 1); ++r) {
        U* from = values + r * rows.stride;
        const int64_t length = whole > 0 ? inner.size : n;
        for (int64_t i = 0; i < length; ++i) copy(from + i * inner.stride, piece + r * inner.size + i);
      }
    }
    piece += n;
    begin += n;
    count -= n;
  }
}

class Topk {
 public:
  Topk(std::vector<Weight>& weights, const std::vector<int64_t>& k, bool global, int threads)
      : weights_(weights), threads_(std::max(1, threads)) {
    int64_t bytes = 0;
    for (std::size_t w = 0; w < weights.size(); ++w) {
      if (!global || w == 0) {
        groups_.emplace_back();
        groups_.back().k = k[w];
        groups_.back().first_chunk = int64_t(chunks_.size());
      }
      Group& group = groups_.back();
      const int64_t size = weights[w].size;
      for (int64_t begin = 0; begin < size; begin += kChunk) {
        chunks_.emplace_back();
        Chunk& chunk = chunks_.back();
        chunk.weight = int64_t(w);
        chunk.group = int64_t(groups_.size()) - 1;
        chunk.begin = begin;
        chunk.size = std::min(kChunk, size - begin);
      }
      group.longest = std::max(group.longest, std::min(kChunk, size));
      group.last_chunk = int64_t(chunks_.size());
      group.size += size;
      bytes += size * width(weights[w].dtype);
    }
    if (bytes < 128 * 1024) threads_ = 1;  // below, waking a thread costs more than it saves
    capacity_ = std::max<int64_t>((bytes / 34 + (int64_t(12) << 20)) / threads_ & ~int64_t(63), (kChunk + 64) * 4);
    workers_.resize(static_cast<std::size_t>(threads_));
    for (Worker& worker : workers_) {
      worker.found.reset(new char[static_cast<std::size_t>(capacity_)]);
      worker.keys.reset(new uint32_t[kChunk + 1]);
    }
  }

  TopkResult run(uint32_t* thresholds) {
    parallel_for(threads_, int64_t(chunks_.size()), [&](int64_t c, int) {
      chunks_[c].kept = kernels().popcount(weight_of(chunks_[c]).keep + chunks_[c].begin / 8, chunks_[c].size);
    });
    std::vector<int64_t> small, large;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      Group& group = groups_[g];
      for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) group.kept += chunks_[c].kept;
      if (group.k > group.kept) return {TopkResult::too_many, int64_t(g), group.kept};
      (group.last_chunk - group.first_chunk <= 1 ? small : large).push_back(int64_t(g));
    }
    parallel_for(threads_, int64_t(small.size()),
                 [&](int64_t i, int worker) { solve_small(groups_[small[i]], worker); });
    bracket_all(large);
    std::vector<int64_t> missed;
    for (std::vector<int64_t> pending = large; !pending.empty();) {
      const std::vector<int64_t> overflowed = scan_and_select(pending, &missed);
      for (const Chunk& chunk : chunks_) {
        if (chunk.nan) return {TopkResult::nan, chunk.weight};
      }
      if (overflowed.size() == pending.size()) {  // they do not fit even without the others
        missed.insert(missed.end(), overflowed.begin(), overflowed.end());
        break;
      }
      pending = overflowed;
    }
    for (const Chunk& chunk : chunks_) {
      if (chunk.nan) return {TopkResult::nan, chunk.weight};
    }
    for (const int64_t g : missed) count_all(groups_[g]);
    parallel_for(threads_, int64_t(chunks_.size()), [&](int64_t c, int worker) { apply(chunks_[c], worker); });
    for (std::size_t g = 0; g < groups_.size(); ++g) thresholds[g] = groups_[g].threshold;
    return {};
  }

 private:
  const Weight& weight_of(const Chunk& chunk) const { return weights_[chunk.weight]; }

  // Calls body(values, keep, n) for the pieces of a chunk; body returns whether it changed the values.
  template <class U, class Body>
  void pieces(const Chunk& chunk, int worker, const Body& body) {
    const Weight& weight = weight_of(chunk);
    for (int64_t i = chunk.begin, end = chunk.begin + chunk.size; i < end; i += kPiece) {
      const int64_t n = std::min(kPiece, end - i);
      uint8_t* keep = weight.keep + i / 8;
      if (weight.dims.empty()) {
        body(static_cast<U*>(weight.values) + i, keep, n);
        continue;
      }
      U* piece = reinterpret_cast<U*>(workers_[worker].piece);
      transfer<true>(weight, i, n, piece);
      if (body(piece, keep, n)) transfer<false>(weight, i, n, piece);
    }
  }

  // Counts the chunk against its group's range; collects what is inside if there may be several magnitudes.
  template <class U>
  void scan_as(Chunk& chunk, int worker, bool collect) {
    const Range range = groups_[chunk.group].range;
    const Dtype dtype = weight_of(chunk).dtype;
    const U lo = U(from_common(dtype, range.lo)), hi = U(from_common(dtype, range.hi)), end = U(infinity(dtype));
    Worker& mine = workers_[worker];
    U* found = collect ? reinterpret_cast<U*>(mine.found.get() + mine.used) : nullptr;
    chunk.found = reinterpret_cast<char*>(found);
    Scan total;
    pieces<U>(chunk, worker, [&](U* x, const uint8_t* keep, int64_t n) {
      if (found != nullptr && mine.used + (total.inside + n + 64) * int64_t(sizeof(U)) > capacity_) found = nullptr;
      kernels().of<U>().scan(x, keep, n, lo, hi, end, found == nullptr ? nullptr : found + total.inside, &total);
      return false;
    });
    chunk.overflow = collect && found == nullptr;
    if (collect && !chunk.overflow) mine.used += (total.inside * int64_t(sizeof(U)) + 7) & ~int64_t(7);
    chunk.below = total.below;
    chunk.inside = total.inside;
    chunk.nan |= total.nan;
  }

  void scan(Chunk& chunk, int worker, bool collect) {
    if (weight_of(chunk).dtype == Dtype::float32) {
      scan_as<uint32_t>(chunk, worker, collect);
    } else {
      scan_as<uint16_t>(chunk, worker, collect);
    }
  }

  // Calls body(magnitude on the common scale) for what scan collected of the chunk.
  template <class Body>
  void found(const Chunk& chunk, const Body& body) const {
    const Dtype dtype = weight_of(chunk).dtype;
    if (dtype == Dtype::float32) {
      const auto* keys = reinterpret_cast<const uint32_t*>(chunk.found);
      for (int64_t i = 0; i < chunk.inside; ++i) body(keys[i]);
    } else {
      const auto* keys = reinterpret_cast<const uint16_t*>(chunk.found);
      for (int64_t i = 0; i < chunk.inside; ++i) body(to_common(dtype, keys[i]));
    }
  }

  void sum_up(Group& group) const {
    group.below = group.inside = 0;
    for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
      group.below += chunks_[c].below;
      group.inside += chunks_[c].inside;
    }
  }

  void solve_small(Group& group, int worker) {
    if (group.size == 0) return;
    Chunk& chunk = chunks_[group.first_chunk];
    if (group.k == 0) {
      group.range = {0, 0};
      return scan(chunk, worker, false);
    }
    uint32_t* keys = workers_[worker].keys.get();
    if (group.size > kUnsampled) {
      group.range = bracket(keys, draw(group, 0, sample_size(group.size) / kDraw, keys), group.k, group.kept);
    }
    for (;;) {
      workers_[worker].used = 0;
      scan(chunk, worker, !group.range.single());
      sum_up(group);
      if (chunk.nan || select(group, worker)) return;
      group.range = Range();
    }
  }

  // Magnitudes of the kept entries at random places [begin, end) of a group, kDraw neighbours at each (a cache miss
  // costs as much as all of them); returns their number. A random place in a random chunk, dropped where the chunk
  // is shorter, is uniform and costs no search.
  int64_t draw(const Group& group, int64_t begin, int64_t end, uint32_t* keys) const {
    const auto chunks = static_cast<uint64_t>(group.last_chunk - group.first_chunk);
    int64_t size = 0;
    // Ask for many places before reading the first: one miss at a time cost more than the scan of 250,000 weights.
    constexpr int64_t kBatch = 32;
    for (; begin < end; begin += kBatch) {
      const Chunk* from[kBatch];
      int64_t place[kBatch];
      const int64_t count = std::min(kBatch, end - begin);
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t bits = random(static_cast<uint64_t>(begin + i));
        from[i] = &chunks_[group.first_chunk + static_cast<int64_t>((bits >> 32) * chunks >> 32)];
        const auto guess = static_cast<int64_t>((bits & 0xffffffffu) * static_cast<uint64_t>(group.longest) >> 32);
        place[i] = guess / kDraw * kDraw;
        const Weight& weight = weight_of(*from[i]);
        if (place[i] >= from[i]->size || !weight.dims.empty()) continue;
        const int64_t at = from[i]->begin + place[i];
        __builtin_prefetch(static_cast<const char*>(weight.values) + at * width(weight.dtype));
        __builtin_prefetch(weight.keep + at / 8);
      }
      for (int64_t i = 0; i < count; ++i) {
        const Weight& weight = weight_of(*from[i]);
        const int64_t at = from[i]->begin + place[i], last = std::min(kDraw, from[i]->size - place[i]);
        if (last <= 0) continue;
        unsigned kept = weight.keep[at / 8] >> (at % 8);  // all in one byte: kDraw divides 8 and `at`
        for (int64_t j = 0; j < last; ++j, kept >>= 1) {
          const int64_t offset = weight.dims.empty() ? at + j : offset_of(weight.dims, at + j);
          const uint32_t magnitude = weight.dtype == Dtype::float32
                                         ? static_cast<const uint32_t*>(weight.values)[offset] & 0x7fffffffu
                                         : static_cast<const uint16_t*>(weight.values)[offset] & 0x7fffu;
          keys[size] = to_common(weight.dtype, magnitude);
          size += kept & 1;  // without a branch: half of them would be mispredicted
        }
      }
    }
    return size;
  }

  void bracket_all(const std::vector<int64_t>& large) {
    // Few groups: each is sampled by all threads.
    const int64_t parts = int64_t(large.size()) < 2 * threads_ ? threads_ : 1;
    std::vector<int64_t> starts{0};
    for (const int64_t g : large) starts.push_back(starts.back() + sample_size(groups_[g].size));
    std::vector<uint32_t> keys(static_cast<std::size_t>(starts.back()));
    std::vector<int64_t> drawn(large.size() * static_cast<std::size_t>(parts));
    parallel_for(threads_, int64_t(drawn.size()), [&](int64_t i, int) {
      const int64_t start = starts[i / parts], places = (starts[i / parts + 1] - start) / kDraw, part = i % parts;
      const int64_t begin = places * part / parts, end = places * (part + 1) / parts;
      drawn[i] = draw(groups_[large[i / parts]], begin, end, keys.data() + start + begin * kDraw);
    });
    parallel_for(threads_, int64_t(large.size()), [&](int64_t i, int) {
      Group& group = groups_[large[i]];
      if (group.k == 0) {
        group.range = {0, 0};
        return;
      }
      uint32_t* sample = keys.data() + starts[i];
      const int64_t places = (starts[i + 1] - starts[i]) / kDraw;
      int64_t left = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const uint32_t* from = sample + places * part / parts * kDraw;
        std::memmove(sample + left, from, static_cast<std::size_t>(drawn[i * parts + part]) * sizeof(uint32_t));
        left += drawn[i * parts + part];
      }
      group.range = bracket(sample, left, group.k, group.kept);
    });
  }

  // One read of the groups' weights. Returns the groups that the buffers could not hold; adds to *missed those whose
  // range does not hold the threshold.
  std::vector<int64_t> scan_and_select(const std::vector<int64_t>& pending, std::vector<int64_t>* missed) {
    std::vector<int64_t> todo;
    for (const int64_t g : pending) {
      for (int64_t c = groups_[g].first_chunk; c < groups_[g].last_chunk; ++c) todo.push_back(c);
    }
    for (Worker& worker : workers_) worker.used = 0;
    parallel_for(threads_, int64_t(todo.size()), [&](int64_t i, int worker) {
      Chunk& chunk = chunks_[todo[i]];
      scan(chunk, worker, groups_[chunk.group].range.hi - groups_[chunk.group].range.lo > 1);
    });
    enum : char { kSelected, kOverflowed, kMissed };
    std::vector<char> outcome(pending.size(), kSelected);
    parallel_for(threads_, int64_t(pending.size()), [&](int64_t i, int worker) {
      Group& group = groups_[pending[i]];
      sum_up(group);
      for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
        if (chunks_[c].overflow) outcome[i] = kOverflowed;
      }
      if (outcome[i] == kSelected && !select(group, worker)) outcome[i] = kMissed;
    });
    std::vector<int64_t> overflowed;
    for (std::size_t i = 0; i < pending.size(); ++i) {
      if (outcome[i] == kOverflowed) overflowed.push_back(pending[i]);
      if (outcome[i] == kMissed) missed->push_back(pending[i]);
    }
    return overflowed;
  }

  // Finds the threshold among what scan counted and collected; false if it is not there.
  bool select(Group& group, int worker) {
    if (group.k == 0) return true;
    int64_t rank = group.k - group.below, equal = group.inside;
    if (rank < 1 || rank > equal) return false;
    Range range = group.range;
    const bool counted = range.single();
    while (!range.single() && equal > kFewBins) {
      const Bins bins(range, kFewBins);
      int64_t counts[kFewBins] = {};
      for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
        found(chunks_[c], [&](uint32_t key) {
          if (bins.holds(key)) ++counts[bins.of(key)];
        });
      }
      range = bins.find(counts, &rank, &equal);
    }
    if (range.single()) {
      settle(group, range.lo, rank, equal, counted);
      return true;
    }
    uint32_t* keys = workers_[worker].keys.get();
    int64_t size = 0;
    const Chunk& only = chunks_[group.first_chunk];
    if (group.last_chunk - group.first_chunk == 1 && equal == only.inside && weight_of(only).dtype == Dtype::float32) {
      keys = reinterpret_cast<uint32_t*>(only.found);  // nobody reads it again
      size = equal;
    } else {
      const Bins bin(range, 1);
      for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
        found(chunks_[c], [&](uint32_t key) {
          keys[size] = key;  // without a branch: half of these may miss
          size += bin.holds(key);
        });
      }
    }
    const Selected selected = select_key(keys, size, range, rank);
    settle(group, selected.key, selected.rank, selected.equal, false);
    return true;
  }

  // Exact for any data: narrows the range by counting every key until it holds one magnitude.
  void count_all(Group& group) {
    Range range;
    int64_t rank = group.k, equal = group.kept;
    while (!range.single()) {
      const Bins bins(range, kManyBins);
      std::vector<int64_t> counts(static_cast<std::size_t>(bins.count * threads_));
      parallel_for(threads_, group.last_chunk - group.first_chunk, [&](int64_t i, int worker) {
        const Chunk& chunk = chunks_[group.first_chunk + i];
        const Dtype dtype = weight_of(chunk).dtype;
        int64_t* mine = counts.data() + worker * bins.count;
        const auto tally = [&](const auto* x, const uint8_t* keep, int64_t n, auto common) {
          for (int64_t j = 0; j < n; ++j) {
            const uint32_t key = common(x[j]);
            if ((keep[j / 8] >> (j % 8) & 1) && bins.holds(key)) ++mine[bins.of(key)];
          }
          return false;
        };
        if (dtype == Dtype::float32) {
          pieces<uint32_t>(chunk, worker, [&](const uint32_t* x, const uint8_t* keep, int64_t n) {
            return tally(x, keep, n, [](uint32_t bits) { return bits & 0x7fffffffu; });
          });
        } else {
          pieces<uint16_t>(chunk, worker, [&](const uint16_t* x, const uint8_t* keep, int64_t n) {
            return tally(x, keep, n, [dtype](uint32_t bits) { return to_common(dtype, bits & 0x7fffu); });
          });
        }
      });
      for (int64_t i = bins.count; i < int64_t(counts.size()); ++i) counts[i % bins.count] += counts[i];
      range = bins.find(counts.data(), &rank, &equal);
    }
    group.range = range;
    if (rank < equal) {  // ties to share out: count them by chunk
      parallel_for(threads_, group.last_chunk - group.first_chunk,
                   [&](int64_t i, int worker) { scan(chunks_[group.first_chunk + i], worker, false); });
    }
    settle(group, range.lo, rank, equal, true);
  }

  // Fixes the threshold and deals the `rank` ties to clear, of `equal`, to the chunks in order. counted: a chunk's
  // ties are all that it has inside; else they are among what it found.
  void settle(Group& group, uint32_t threshold, int64_t rank, int64_t equal, bool counted) {
    group.threshold = threshold;
    if (group.last_chunk - group.first_chunk == 1) {
      chunks_[group.first_chunk].ties = rank;
      return;
    }
    for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
      Chunk& chunk = chunks_[c];
      if (rank == equal) {
        chunk.ties = kAllTies;
        continue;
      }
      int64_t ties = counted ? chunk.inside : 0;
      if (!counted) found(chunk, [&](uint32_t key) { ties += key == threshold; });
      chunk.ties = std::min(rank, ties);
      rank -= chunk.ties;
      equal = kAllTies;  // from here on the ties are dealt one chunk at a time
    }
  }

  void apply(const Chunk& chunk, int worker) {
    const Group& group = groups_[chunk.group];
    const Dtype dtype = weight_of(chunk).dtype;
    const uint32_t lo = group.k == 0 ? 0 : from_common(dtype, group.threshold);
    const uint32_t hi = group.k == 0 ? 0 : from_common(dtype, group.threshold + 1);
    int64_t ties = chunk.ties;
    if (dtype == Dtype::float32) {
      pieces<uint32_t>(chunk, worker, [&](uint32_t* x, uint8_t* keep, int64_t n) {
        return kernels().wide.apply(x, keep, n, lo, hi, &ties);
      });
    } else {
      pieces<uint16_t>(chunk, worker, [&](uint16_t* x, uint8_t* keep, int64_t n) {
        return kernels().narrow.apply(x, keep, n, static_cast<uint16_t>(lo), static_cast<uint16_t>(hi), &ties);
      });
    }
  }

  std::vector<Weight>& weights_;
  int threads_;
  int64_t capacity_;  // bytes that each worker may collect
  std::vector<Group> groups_;
  std::vector<Chunk> chunks_;
  std::vector<Worker> workers_;
};

}  // namespace

TopkResult masked_topk(std::vector<Weight>& weights, const std::vector<int64_t>& k, bool global, int threads,
                       uint32_t* thresholds) {
  return Topk(weights, k, global, threads).run(thresholds);
}

}  // namespace lc
