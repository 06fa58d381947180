// Steps 2 and 3 of masked_topk: one read against the brackets, then the exact thresholds among what it collected.
#include <algorithm>

#include "parallel.h"
#include "topk.h"

namespace lc {
namespace {

constexpr int64_t kFewBins = 2048, kManyBins = 65536;

// Whether the threshold, which the range did not hold, may be the magnitude next to it; that is then the range.
bool step_aside(Group& group) {
  Bracket& bracket = group.bracket;
  const int64_t rank = group.k - group.below;
  if (rank < 1 && bracket.below) {
    bracket = {{bracket.range.lo - 1, bracket.range.lo}};
  } else if (rank > group.inside && bracket.above) {
    bracket = {{bracket.range.hi, bracket.range.hi + 1}};
  } else {
    return false;
  }
  return true;
}

}  // namespace

void Topk::solve_small(Group& group, int worker) {
  if (group.size == 0) return;
  Chunk& chunk = chunks_[group.first_chunk];
  if (group.k == 0) {
    group.bracket.range = {0, 0};
    return scan(chunk, worker, false);
  }
  if (group.size > kUnsampled) bracket_small(group, workers_[worker].keys.get());
  for (;;) {
    workers_[worker].used = 0;
    scan(chunk, worker, group.bracket.range.several());
    sum_up(group);
    if (chunk.nan || select(group, worker, 1)) return;
    if (!step_aside(group)) group.bracket = {};
  }
}

void Topk::solve_large(const std::vector<int64_t>& large) {
  bracket_all(large);
  std::vector<int64_t> missed;
  for (std::vector<int64_t> pending = large; !pending.empty();) {
    const std::vector<Outcome> outcomes = scan_and_select(pending);
    for (const Chunk& chunk : chunks_) {
      if (chunk.nan) return;
    }
    std::vector<int64_t> again;
    bool progress = false;
    for (std::size_t i = 0; i < pending.size(); ++i) {
      const bool overflowed = outcomes[i] == Outcome::overflowed;
      if (overflowed || (outcomes[i] == Outcome::missed && step_aside(groups_[pending[i]]))) {
        again.push_back(pending[i]);
      } else if (outcomes[i] == Outcome::missed) {
        missed.push_back(pending[i]);
      }
      progress |= !overflowed;
    }
    pending = again;
    if (!progress) {  // they do not fit even without the others
      missed.insert(missed.end(), pending.begin(), pending.end());
      break;
    }
  }
  for (const int64_t g : missed) count_all(groups_[g]);
}

// One read of the groups' weights, and the selection among what it collected.
std::vector<Topk::Outcome> Topk::scan_and_select(const std::vector<int64_t>& pending) {
  std::vector<int64_t> todo;
  for (const int64_t g : pending) {
    for (int64_t c = groups_[g].first_chunk; c < groups_[g].last_chunk; ++c) todo.push_back(c);
  }
  for (Worker& worker : workers_) worker.used = 0;
  parallel_for(threads_, int64_t(todo.size()), [&](int64_t i, int worker) {
    Chunk& chunk = chunks_[todo[i]];
    scan(chunk, worker, groups_[chunk.group].bracket.range.several());
  });
  std::vector<Outcome> outcomes(pending.size(), Outcome::selected);
  const auto finish = [&](int64_t i, int worker, int threads) {
    Group& group = groups_[pending[i]];
    sum_up(group);
    for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
      if (chunks_[c].overflow) outcomes[i] = Outcome::overflowed;
    }
    if (outcomes[i] == Outcome::selected && !select(group, worker, threads)) outcomes[i] = Outcome::missed;
  };
  if (int64_t(pending.size()) < threads_) {  // few groups: each by all threads
    for (int64_t i = 0; i < int64_t(pending.size()); ++i) finish(i, 0, threads_);
  } else {
    parallel_for(threads_, int64_t(pending.size()), [&](int64_t i, int worker) { finish(i, worker, 1); });
  }
  return outcomes;
}

// Counts the chunk against its group's range; collects what is inside if there may be several magnitudes.
template <class U>
void Topk::scan_as(Chunk& chunk, int worker, bool collect) {
  const Range range = groups_[chunk.group].bracket.range;
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

void Topk::scan(Chunk& chunk, int worker, bool collect) {
  if (weight_of(chunk).dtype == Dtype::float32) {
    scan_as<uint32_t>(chunk, worker, collect);
  } else {
    scan_as<uint16_t>(chunk, worker, collect);
  }
}

// Calls body(magnitude on the common scale) for what scan collected of the chunk.
template <class Body>
void Topk::found(const Chunk& chunk, const Body& body) const {
  const Dtype dtype = weight_of(chunk).dtype;
  if (dtype == Dtype::float32) {
    const auto* keys = reinterpret_cast<const uint32_t*>(chunk.found);
    for (int64_t i = 0; i < chunk.inside; ++i) body(keys[i]);
  } else {
    const auto* keys = reinterpret_cast<const uint16_t*>(chunk.found);
    for (int64_t i = 0; i < chunk.inside; ++i) body(to_common(dtype, keys[i]));
  }
}

// How many of them equal a magnitude of the group.
int64_t Topk::found_equal(const Chunk& chunk, uint32_t threshold) const {
  const Dtype dtype = weight_of(chunk).dtype;
  if (dtype == Dtype::float32) {
    const auto* keys = reinterpret_cast<const uint32_t*>(chunk.found);
    return std::count(keys, keys + chunk.inside, threshold);
  }
  const uint32_t key = from_common(dtype, threshold);
  if (to_common(dtype, key) != threshold) return 0;  // a magnitude that this type does not have
  const auto* keys = reinterpret_cast<const uint16_t*>(chunk.found);
  return std::count(keys, keys + chunk.inside, static_cast<uint16_t>(key));
}

void Topk::sum_up(Group& group) const {
  group.below = group.inside = 0;
  for (int64_t c = group.first_chunk; c < group.last_chunk; ++c) {
    group.below += chunks_[c].below;
    group.inside += chunks_[c].inside;
  }
}

// Finds the threshold among what scan counted and collected; false if it is not there.
bool Topk::select(Group& group, int worker, int threads) {
  if (group.k == 0) return true;
  int64_t rank = group.k - group.below, equal = group.inside;
  if (rank < 1 || rank > equal) return false;
  Range range = group.bracket.range;
  const bool counted = range.single();
  const int64_t chunks = group.last_chunk - group.first_chunk, parts = std::min<int64_t>(threads, chunks);
  // A range no longer than the grain holds one magnitude: without this, 16-bit types need another pass.
  const auto settled = [&] {
    if (group.grain > 1 && range.hi - range.lo <= group.grain) {
      range.lo = (range.lo + group.grain - 1) / group.grain * group.grain;
      range.hi = range.lo + 1;
    }
    return range.single();
  };
  while (!settled() && equal > kFewBins) {
    const Bins bins(range, kFewBins);
    std::vector<int64_t> counts(static_cast<std::size_t>(parts * kFewBins));
    parallel_for(threads, parts, [&](int64_t part, int) {
      int64_t* mine = counts.data() + part * kFewBins;
      for (int64_t c = chunks * part / parts; c < chunks * (part + 1) / parts; ++c) {
        found(chunks_[group.first_chunk + c], [&](uint32_t key) {
          if (bins.holds(key)) ++mine[bins.of(key)];
        });
      }
    });
    for (int64_t i = kFewBins; i < parts * kFewBins; ++i) counts[i % kFewBins] += counts[i];
    range = bins.find(counts.data(), &rank, &equal);
  }
  if (range.single()) {
    settle(group, range.lo, rank, equal, counted);
    return true;
  }
  uint32_t* keys = workers_[worker].keys.get();
  int64_t size = 0;
  const Chunk& only = chunks_[group.first_chunk];
  if (chunks == 1 && equal == only.inside && weight_of(only).dtype == Dtype::float32) {
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
void Topk::count_all(Group& group) {
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
  group.bracket = {range};
  if (rank < equal) {  // ties to share out: count them by chunk
    parallel_for(threads_, group.last_chunk - group.first_chunk,
                 [&](int64_t i, int worker) { scan(chunks_[group.first_chunk + i], worker, false); });
  }
  settle(group, range.lo, rank, equal, true);
}

// Fixes the threshold and deals the `rank` ties to clear, of `equal`, to the chunks in order. counted: a chunk's
// ties are all that it has inside; else they are among what it found.
void Topk::settle(Group& group, uint32_t threshold, int64_t rank, int64_t equal, bool counted) {
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
    const int64_t ties = counted ? chunk.inside : found_equal(chunk, threshold);
    chunk.ties = std::min(rank, ties);
    rank -= chunk.ties;
    equal = kAllTies;  // from here on the ties are dealt one chunk at a time
  }
}

}  // namespace lc
