// One read of the weights: the scan of masked_topk_ collects what lies in the range, piece by piece, for the bins.
#include "topk_count.h"

#include <algorithm>
#include <memory>

#include "kernels.h"
#include "parallel.h"
#include "select.h"
#include "strided.h"

namespace lc {
namespace {

struct Part {
  std::size_t weight;
  int64_t begin, size;
};

struct Tally {
  std::unique_ptr<char[]> found;  // what one piece has inside
  std::vector<int64_t> counts;
  alignas(64) uint32_t gathered[kPiece];
};

template <class U>
bool count(const Weight& weight, const Part& part, const Bins& bins, Tally& tally) {
  const Dtype dtype = weight.dtype;
  const U lo = U(from_common(dtype, bins.range.lo)), hi = U(from_common(dtype, bins.range.hi));
  auto* found = reinterpret_cast<U*>(tally.found.get());
  int64_t* counts = tally.counts.data();
  bool nan = false;
  for_pieces<U>(weight, part.begin, part.size, reinterpret_cast<U*>(tally.gathered),
                [&](U* x, const uint8_t* keep, int64_t n) {
                  Scan total;
                  kernels().of<U>().scan(x, keep, n, lo, hi, U(infinity(dtype)), found, &total);
                  counts[kCountKept] += kernels().popcount(keep, n);
                  counts[kCountBelow] += total.below;
                  for (int64_t i = 0; i < total.inside; ++i) ++counts[kCountFirst + bins.of(to_common(dtype, found[i]))];
                  nan |= total.nan;
                  return false;
                });
  return nan;
}

}  // namespace

void topk_count(const std::vector<Weight>& weights, uint32_t lo, uint32_t hi, int threads, int64_t* counts) {
  std::vector<Part> parts;
  for (std::size_t index = 0; index < weights.size(); ++index) {
    for (int64_t begin = 0; begin < weights[index].size; begin += kChunk) {
      parts.push_back({index, begin, std::min(kChunk, weights[index].size - begin)});
    }
  }
  const Bins bins({lo, hi}, kCountBins);
  std::vector<Tally> tallies(static_cast<std::size_t>(workers_for(threads, static_cast<int64_t>(parts.size()))));
  for (Tally& tally : tallies) {
    tally.found.reset(new char[(kChunk + 64) * sizeof(uint32_t)]);
    tally.counts.resize(kCountFirst + kCountBins);
  }
  std::vector<char> nan(parts.size());
  parallel_for(threads, static_cast<int64_t>(parts.size()), [&](int64_t i, int worker) {
    const Part& part = parts[static_cast<std::size_t>(i)];
    const Weight& weight = weights[part.weight];
    Tally& tally = tallies[static_cast<std::size_t>(worker)];
    nan[static_cast<std::size_t>(i)] = weight.dtype == Dtype::float32 ? count<uint32_t>(weight, part, bins, tally)
                                                                      : count<uint16_t>(weight, part, bins, tally);
  });
  for (const char found : nan) counts[kCountNan] += found;
  for (const Tally& tally : tallies) {
    for (int64_t i = 0; i < kCountFirst + kCountBins; ++i) counts[i] += tally.counts[static_cast<std::size_t>(i)];
  }
}

}  // namespace lc
