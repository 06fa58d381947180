// masked_topk_ on the CPU. Memory traffic for B bytes of weights and their keep-bits: B to find the thresholds, then
// B read and what changes written; at most B / 34 + 12 MiB of memory besides.
//
//   threshold T of a group: its k-th smallest kept magnitude. Cleared: magnitudes < T, and of those equal to T the
//   first k - #(magnitude < T) in row-major order, earlier weights first.
//
// 1. A random sample brackets T. 2. One read counts what lies below the bracket and collects the few inside (and finds
// any NaN). 3. T is selected among these. 4. A second read clears. Weights are cut into chunks; counts of ties per
// chunk, summed in order, make the result independent of threads. Magnitudes that fill a good part of the sample (of
// two-valued or quantized weights) are not collected: where T is one of them, a read more counts it. A bracket that
// missed is replaced by counting passes over all keys: exact for any data. Weights small enough for one chunk are
// solved by one thread each. Nothing is written before every threshold is proven.
#include "masked_topk.h"

#include <algorithm>

#include "parallel.h"
#include "topk.h"

namespace lc {

// Cuts every weight into chunks and ranks weights in groups: each alone, or all together.
Topk::Topk(std::vector<Weight>& weights, const std::vector<int64_t>& k, bool global, int threads)
    : weights_(weights), groups_(global ? 1 : weights.size()) {
  int64_t bytes = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) groups_[g].k = k[g];
  for (std::size_t w = 0; w < weights.size(); ++w) {
    Group& group = groups_[global ? 0 : w];
    if (!global) group.first_chunk = int64_t(chunks_.size());
    const int64_t size = weights[w].size;
    for (int64_t begin = 0; begin < size; begin += kChunk) {
      chunks_.emplace_back();
      Chunk& chunk = chunks_.back();
      chunk.weight = int64_t(w);
      chunk.group = global ? 0 : int64_t(w);
      chunk.begin = begin;
      chunk.size = std::min(kChunk, size - begin);
    }
    group.longest = std::max(group.longest, std::min(kChunk, size));
    group.last_chunk = int64_t(chunks_.size());
    group.size += size;
    group.grain = group.grain == 0 ? grain(weights[w].dtype) : std::min(group.grain, grain(weights[w].dtype));
    bytes += size * width(weights[w].dtype);
  }
  threads_ = bytes < 128 * 1024 ? 1 : workers_for(threads, int64_t(chunks_.size()));  // below, waking a thread costs more than it saves
  capacity_ = std::max<int64_t>((bytes / 34 + (int64_t(12) << 20)) / threads_ & ~int64_t(63), (kChunk + 64) * 4);
  workers_.resize(static_cast<std::size_t>(threads_));
  for (Worker& worker : workers_) {
    worker.found.reset(new char[static_cast<std::size_t>(capacity_)]);
    worker.keys.reset(new uint32_t[kChunk + 1]);
  }
}

TopkResult Topk::run(uint32_t* thresholds) {
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
  solve_large(large);
  for (const Chunk& chunk : chunks_) {
    if (chunk.nan) return {TopkResult::nan, chunk.weight};
  }
  parallel_for(threads_, int64_t(chunks_.size()), [&](int64_t c, int worker) { apply(chunks_[c], worker); });
  for (std::size_t g = 0; g < groups_.size(); ++g) thresholds[g] = groups_[g].threshold;
  return {};
}

TopkResult masked_topk(std::vector<Weight>& weights, const std::vector<int64_t>& k, bool global, int threads,
                       uint32_t* thresholds) {
  return Topk(weights, k, global, threads).run(thresholds);
}

}  // namespace lc
