// Step 4 of masked_topk: the second read, and the only writes. Every threshold is proven.
#include "topk.h"

namespace lc {

void Topk::apply(const Chunk& chunk, int worker) {
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

}  // namespace lc
