// apply_mask_ on the CPU: one read of masks and weights (but for 64 entries that are all kept), and a store of the
// vectors that change. Weights are cut into chunks of whole bytes of keep-bits, so threads share nothing.
#include "apply_mask.h"

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "strided.h"

namespace lc {
namespace {

struct Chunk {
  const Weight* weight;
  int64_t begin, size;
};

template <class U>
void apply(const Chunk& chunk) {
  alignas(64) U gathered[kPiece];
  for_pieces<U>(*chunk.weight, chunk.begin, chunk.size, gathered,
                [](U* x, const uint8_t* keep, int64_t n) { return kernels().of<U>().mask(x, keep, n); });
}

}  // namespace

void apply_mask(const std::vector<Weight>& weights, int threads) {
  std::vector<Chunk> chunks;
  int64_t bytes = 0;
  for (const Weight& weight : weights) {
    for (int64_t begin = 0; begin < weight.size; begin += kChunk) {
      chunks.push_back({&weight, begin, std::min(kChunk, weight.size - begin)});
    }
    bytes += weight.size * width(weight.dtype);
  }
  if (bytes < 128 * 1024) threads = 1;  // below, waking a thread costs more than it saves
  parallel_for(threads, int64_t(chunks.size()), [&](int64_t c, int) {
    chunks[c].weight->dtype == Dtype::float32 ? apply<uint32_t>(chunks[c]) : apply<uint16_t>(chunks[c]);
  });
}

}  // namespace lc
