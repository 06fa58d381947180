// sign_hashes on the CPU: one read of x, 8 bytes written per row.
//
// Where channels lie side by side, a row is hashed word by word. Else up to kPositions neighbouring positions are, with
// the bits of 64 channels shifted in one by one; positions that do not lie side by side are gathered, kGathered at a time.
#include "sign_hashes.h"

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "sign_hash.h"

namespace lc {
namespace {

constexpr int64_t kGathered = 64;
constexpr int64_t kValues = 65536;  // of a unit of work, about

template <class U>
void by_rows(const U* x, U infinity, Dim channels, const std::vector<Dim>& samples, int64_t* out, int threads) {
  const Dim inner = samples.back();
  const int64_t rows = product(samples), each = std::max<int64_t>(1, kValues / channels.size);
  parallel_for(threads, (rows + each - 1) / each, [&](int64_t unit, int) {
    for (int64_t row = unit * each, end = std::min(rows, row + each); row < end;) {
      const int64_t n = std::min(end - row, inner.size - row % inner.size);
      kernels().of<U>().hash_rows(x + offset_of(samples, row), inner.stride, n, channels.size, infinity, out + row);
      row += n;
    }
  });
}

template <class U>
void by_positions(const U* x, U infinity, Dim channels, const std::vector<Dim>& samples, int64_t* out, int threads) {
  const Dim inner = samples.back();
  const std::vector<Dim> outer(samples.begin(), samples.end() - 1);
  // Pieces of one size, in whole lines: a short last one would be read slowly.
  int64_t most = inner.stride == 1 ? kPositions : kGathered, pieces = (inner.size + most - 1) / most;
  most = ((inner.size + pieces - 1) / pieces + 63) / 64 * 64;
  pieces = (inner.size + most - 1) / most;
  parallel_for(threads, product(outer) * pieces, [&](int64_t unit, int) {
    const int64_t begin = unit % pieces * most, n = std::min(most, inner.size - begin);
    const U* first = x + offset_of(outer, unit / pieces) + begin * inner.stride;
    int64_t* hashes = out + unit / pieces * inner.size + begin;
    U gathered[kHashWord * kGathered];
    for (int64_t word = 0; word * kHashWord < channels.size; ++word) {
      const int64_t count = std::min<int64_t>(kHashWord, channels.size - word * kHashWord);
      const U* values = first + word * kHashWord * channels.stride;
      int64_t stride = channels.stride;
      if (inner.stride != 1) {
        for (int64_t c = 0; c < count; ++c) {
          for (int64_t i = 0; i < n; ++i) gathered[c * kGathered + i] = values[c * stride + i * inner.stride];
        }
        values = gathered;
        stride = kGathered;
      }
      kernels().of<U>().hash_positions(values, stride, count, n, infinity, word, hashes);
    }
  });
}

}  // namespace

void sign_hashes(const void* x, Dtype dtype, Dim channels, std::vector<Dim> samples, int64_t* out, int threads) {
  samples = coalesce(samples);
  if (samples.empty()) samples.push_back({1, 0});
  const int64_t rows = product(samples);
  if (rows == 0 || channels.size == 0) return;
  if (rows * channels.size * width(dtype) < 128 * 1024) threads = 1;  // below, waking a thread costs more than it saves
  const auto run = [&](auto bits) {
    using U = decltype(bits);
    const bool side_by_side = channels.stride == 1 && (channels.size >= 8 || samples.back().stride != 1);
    (side_by_side ? by_rows<U> : by_positions<U>)(static_cast<const U*>(x), static_cast<U>(infinity(dtype)), channels,
                                                  samples, out, threads);
  };
  dtype == Dtype::float32 ? run(uint32_t()) : run(uint16_t());
}

}  // namespace lc
