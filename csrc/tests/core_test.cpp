// The core against a sort and a plain loop, on exact-size heap blocks, for sanitizers: no Python, no torch. Thread
// counts 1, 2 and 7, the instruction sets of this CPU. Argument: cases; run by run.sh. Prints what differed and exits
// with 1.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>

#include "../apply_mask.h"
#include "../kernels.h"
#include "../masked_topk.h"
#include "../sign_hash.h"
#include "../sign_hashes.h"
#include "../sign_histogram.h"

namespace {

using lc::Dim;
using lc::Dtype;

std::mt19937_64 generator(1);

int64_t pick(std::initializer_list<int64_t> values) { return *(values.begin() + generator() % values.size()); }

// size entries of a kind of data, in a block that ends where they end.
struct Block {
  Block(Dtype dtype, int64_t size, bool nan) : dtype(dtype), size(size), bytes(new char[size_t(size * lc::width(dtype))]) {
    const uint32_t infinity = lc::infinity(dtype), sign = dtype == Dtype::float32 ? 0x80000000u : 0x8000u;
    const int64_t kind = pick({0, 1, 2, 3});
    for (int64_t i = 0; i < size; ++i) {
      uint32_t magnitude = kind == 0   ? uint32_t(generator()) % (infinity + 1)  // any
                           : kind == 1 ? infinity / 2                            // all equal
                           : kind == 2 ? uint32_t(generator()) % 3               // zeros and subnormals
                                       : uint32_t(i * 7919 % (infinity + 1));    // in order, wrapping
      if (nan && generator() % 8 == 0) magnitude = infinity + 1;
      set(i, magnitude | (generator() % 2 ? sign : 0));
    }
  }
  void set(int64_t i, uint32_t bits) { std::memcpy(&bytes[size_t(i * lc::width(dtype))], &bits, size_t(lc::width(dtype))); }
  uint32_t get(int64_t i) const {
    uint32_t bits = 0;
    std::memcpy(&bits, &bytes[size_t(i * lc::width(dtype))], size_t(lc::width(dtype)));
    return bits;
  }
  uint32_t magnitude(int64_t i) const { return get(i) & (dtype == Dtype::float32 ? 0x7fffffffu : 0x7fffu); }

  Dtype dtype;
  int64_t size;
  std::unique_ptr<char[]> bytes;
};

void require(bool condition, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

void histogram_case(int threads) {
  const auto dtype = static_cast<Dtype>(generator() % 3);
  const int64_t n = pick({1, 2, 9, 40}), c = pick({1, 2, 3, 17, 130, 600}), l = pick({1, 2, 49, 300, 700});
  const Block x(dtype, n * c * l, generator() % 2);
  const bool last = generator() % 2;  // channels last
  const Dim channels = last ? Dim{c, 1} : Dim{c, l};
  std::vector<Dim> samples = last ? std::vector<Dim>{{n, c * l}, {l, c}} : std::vector<Dim>{{n, c * l}, {l, 1}};
  if (generator() % 4 == 0) samples.push_back({3, 0});
  const float upper = generator() % 2 ? 6.0f : 0.0f;
  const int columns = upper > 0 ? 5 : 4;
  std::vector<int64_t> got(size_t(c * columns), 5), expected(got);
  uint32_t bound = 0;
  std::memcpy(&bound, &upper, 4);
  const int64_t repeat = samples.size() == 3 ? 3 : 1;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < c; ++j) {
      for (int64_t k = 0; k < l; ++k) {
        const int64_t at = i * c * l + j * channels.stride + k * samples[1].stride;
        const uint32_t m = x.magnitude(at);
        const bool nan = m > lc::infinity(dtype), negative = x.get(at) != m;
        expected[size_t(j * columns + (nan ? 3 : m == 0 ? 1 : negative ? 0 : 2))] += repeat;
        if (upper > 0 && !nan && !negative && lc::to_common(dtype, m) >= bound) expected[size_t(j * columns + 4)] += repeat;
      }
    }
  }
  lc::sign_histogram({{x.bytes.get(), dtype, channels, samples, upper, got.data()}}, threads);
  require(got == expected, "sign_histogram");
  const lc::Activation activation{x.bytes.get(), dtype, channels, samples, upper, got.data()};
  lc::sign_histogram({activation, activation, activation}, threads);  // several threads add to one out
  for (size_t i = 0; i < got.size(); ++i) expected[i] = 5 + 4 * (expected[i] - 5);
  require(got == expected, "sign_histogram: three activations");
}

uint64_t mixed(uint64_t z) {
  z = (z ^ z >> 30) * lc::kMixFactor1;
  z = (z ^ z >> 27) * lc::kMixFactor2;
  return z ^ z >> 31;
}

void hashes_case(int threads) {
  const auto dtype = static_cast<Dtype>(generator() % 3);
  const int64_t n = pick({1, 2, 9, 40}), c = pick({1, 2, 7, 64, 65, 130}), l = pick({1, 2, 49, 300, 1100});
  const Block x(dtype, n * c * l, generator() % 2);
  const bool last = generator() % 2;  // channels last
  const Dim channels = last ? Dim{c, 1} : Dim{c, l};
  const std::vector<Dim> samples = {{n, c * l}, {l, last ? c : 1}};
  std::vector<int64_t> got(size_t(n * l)), expected(got);
  for (int64_t i = 0; i < n * l; ++i) {
    uint64_t hash = 0;
    for (int64_t word = 0; word * 64 < c; ++word) {
      uint64_t bits = 0;
      for (int64_t k = word * 64; k < std::min(c, word * 64 + 64); ++k) {
        const int64_t at = i / l * c * l + i % l * samples[1].stride + k * channels.stride;
        const uint32_t m = x.magnitude(at);
        bits |= uint64_t(m > 0 && m <= lc::infinity(dtype) && x.get(at) == m) << (k % 64);
      }
      hash += mixed(mixed(bits) + uint64_t(word + 1) * lc::kPhi);
    }
    expected[size_t(i)] = int64_t(hash);
  }
  lc::sign_hashes(x.bytes.get(), dtype, channels, samples, got.data(), threads);
  require(got == expected, "sign_hashes");
}

void topk_case(int threads) {
  const bool global = generator() % 2;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<uint8_t[]>> masks;
  std::vector<std::vector<char>> keep;
  std::vector<lc::Weight> weights;
  for (int64_t w = pick({1, 2, 5}); w-- > 0;) {
    const int64_t rows = pick({0, 1, 7, 64, 257}), columns = pick({1, 9, 63, 300, 700}), size = rows * columns;
    blocks.emplace_back(static_cast<Dtype>(generator() % 3), size, false);
    masks.emplace_back(new uint8_t[size_t((size + 7) / 8)]());
    keep.emplace_back(size_t(size), 0);
    const uint64_t density = uint64_t(pick({1, 2, 100}));
    for (int64_t i = 0; i < size; ++i) {
      keep.back()[size_t(i)] = generator() % density == 0 || density == 100;
      if (keep.back()[size_t(i)]) masks.back()[size_t(i / 8)] |= uint8_t(1 << i % 8);
    }
    lc::Weight weight{blocks.back().bytes.get(), masks.back().get(), blocks.back().dtype, size, {}, {}};
    if (size > 0 && generator() % 2) {
      weight.dims = lc::coalesce({{columns, 1}, {rows, columns}});  // transposed
      if (weight.dims.size() < 2) weight.dims.clear();
      if (!weight.dims.empty()) weight.outer.assign(weight.dims.begin(), weight.dims.end() - 1);
    }
    weights.push_back(weight);
  }
  struct Entry {
    uint32_t key;
    size_t weight;
    int64_t at;
  };
  std::vector<std::vector<Entry>> groups(global ? 1 : weights.size());
  for (size_t w = 0; w < weights.size(); ++w) {
    for (int64_t i = 0; i < weights[w].size; ++i) {
      if (!keep[w][size_t(i)]) continue;
      const int64_t place = weights[w].dims.empty() ? i : lc::offset_of(weights[w].dims, i);
      groups[global ? 0 : w].push_back({lc::to_common(weights[w].dtype, blocks[w].magnitude(place)), w, i});
    }
  }
  std::vector<int64_t> k;
  std::vector<uint32_t> thresholds(groups.size()), expected;
  for (auto& group : groups) {
    std::stable_sort(group.begin(), group.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
    k.push_back(int64_t(group.size()) * pick({0, 1, 2, 3}) / 3);
    for (int64_t i = 0; i < k.back(); ++i) keep[group[size_t(i)].weight][size_t(group[size_t(i)].at)] = 0;
    expected.push_back(k.back() ? group[size_t(k.back() - 1)].key : 0);
  }
  const lc::TopkResult result = lc::masked_topk(weights, k, global, threads, thresholds.data());
  require(result.code == lc::TopkResult::done, "masked_topk: result");
  require(thresholds == expected, "masked_topk: thresholds");
  for (size_t w = 0; w < weights.size(); ++w) {
    for (int64_t i = 0; i < weights[w].size; ++i) {
      require((masks[w][size_t(i / 8)] >> (i % 8) & 1) == keep[w][size_t(i)], "masked_topk: mask");
      const int64_t place = weights[w].dims.empty() ? i : lc::offset_of(weights[w].dims, i);
      if (!keep[w][size_t(i)]) require(blocks[w].get(place) == 0, "masked_topk: weight");
    }
  }
  const uint32_t value = uint32_t(generator()) % 0x8000u;  // as after an optimizer's step
  for (Block& block : blocks) {
    for (int64_t i = 0; i < block.size; ++i) block.set(i, generator() % 3 ? value : 0);
  }
  std::vector<std::vector<uint32_t>> before;
  for (const Block& block : blocks) {
    before.emplace_back();
    for (int64_t i = 0; i < block.size; ++i) before.back().push_back(block.get(i));
  }
  lc::apply_mask(weights, threads);
  for (size_t w = 0; w < weights.size(); ++w) {
    for (int64_t i = 0; i < weights[w].size; ++i) {
      const int64_t place = weights[w].dims.empty() ? i : lc::offset_of(weights[w].dims, i);
      require((masks[w][size_t(i / 8)] >> (i % 8) & 1) == keep[w][size_t(i)], "apply_mask: mask");
      require(blocks[w].get(place) == (keep[w][size_t(i)] ? before[w][size_t(place)] : 0), "apply_mask: weight");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 60;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    try {
      lc::choose_kernels(isa);
    } catch (const std::invalid_argument&) {
      continue;
    }
    for (const int threads : {1, 2, 7}) {
      for (int i = 0; i < cases; ++i) {
        histogram_case(threads);
        hashes_case(threads);
        topk_case(threads);
      }
    }
    std::printf("%s: %d cases of each op for 1, 2 and 7 threads\n", isa, cases);
  }
}
