// Random problems for the C functions of layercollapse.h, and their answers by a plain loop and a stable sort: what
// core_test.cpp and cuda_driver.cu compare with. Every block of memory ends where its last value does, for sanitizers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../dtypes.h"
#include "../python/include/layercollapse.h"
#include "../sign_hash.h"

namespace lc::tests {

inline std::mt19937_64 generator(1);

inline int64_t pick(std::initializer_list<int64_t> values) { return *(values.begin() + generator() % values.size()); }

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

// size entries of a kind of data.
struct Block {
  Block(Dtype dtype, int64_t size, bool nan) : dtype(dtype), size(size), memory(size_t(size * width(dtype))) {
    const uint32_t largest = infinity(dtype), sign = dtype == Dtype::float32 ? 0x80000000u : 0x8000u;
    const int64_t kind = pick({0, 1, 2, 3});
    for (int64_t i = 0; i < size; ++i) {
      uint32_t magnitude = kind == 0   ? uint32_t(generator()) % (largest + 1)  // any
                           : kind == 1 ? largest / 2                            // all equal
                           : kind == 2 ? uint32_t(generator()) % 3              // zeros and subnormals
                                       : uint32_t(i * 7919 % (largest + 1));    // in order, wrapping
      if (nan && generator() % 8 == 0) magnitude = largest + 1;
      set(i, magnitude | (generator() % 2 ? sign : 0));
    }
  }
  void set(int64_t i, uint32_t bits) { std::memcpy(&memory[size_t(i * width(dtype))], &bits, size_t(width(dtype))); }
  uint32_t get(int64_t i) const {
    uint32_t bits = 0;
    std::memcpy(&bits, &memory[size_t(i * width(dtype))], size_t(width(dtype)));
    return bits;
  }
  uint32_t magnitude(int64_t i) const { return get(i) & (dtype == Dtype::float32 ? 0x7fffffffu : 0x7fffu); }

  Dtype dtype;
  int64_t size;
  std::vector<char> memory;
};

// Where entry `index` in row-major order is.
inline int64_t offset(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t index) {
  int64_t place = 0;
  for (size_t d = sizes.size(); d-- > 0;) {
    place += index % sizes[d] * strides[d];
    index /= sizes[d];
  }
  return place;
}

// An activation of two or three dimensions, in one of the layouts that are read in different ways.
struct ActivationCase {
  ActivationCase() : x(Dtype(generator() % 3), 0, false) {
    const int64_t n = pick({1, 2, 9, 40}), c = pick({1, 2, 3, 17, 64, 130, 600}), l = pick({1, 2, 49, 300, 700});
    x = Block(x.dtype, n * c * l, generator() % 2);
    const bool last = generator() % 2;  // channels last
    sizes = {n, c, l};
    strides = last ? std::vector<int64_t>{c * l, 1, c} : std::vector<int64_t>{c * l, l, 1};
    if (generator() % 4 == 0) {  // expanded
      sizes.push_back(3);
      strides.push_back(0);
    } else if (l > 1 && generator() % 4 == 0) {  // every second
      sizes[2] = (l + 1) / 2;
      strides[2] *= 2;
    }
    upper = generator() % 2 ? 6.0f : 0.0f;
    const int64_t columns = upper > 0 ? 5 : 4;
    before.assign(size_t(c * columns), 5);
    expected = before;
    uint32_t bound = 0;
    std::memcpy(&bound, &upper, 4);
    int64_t entries = 1;
    for (const int64_t size : sizes) entries *= size;
    for (int64_t i = 0; i < entries; ++i) {
      const int64_t at = offset(sizes, strides, i), channel = i / (entries / n / c) % c;
      const uint32_t m = x.magnitude(at);
      const bool nan = m > infinity(x.dtype), negative = x.get(at) != m;
      expected[size_t(channel * columns + (nan ? 3 : m == 0 ? 1 : negative ? 0 : 2))] += 1;
      if (upper > 0 && !nan && !negative && to_common(x.dtype, m) >= bound) expected[size_t(channel * columns + 4)] += 1;
    }
  }
  lc_activation at(const void* memory, int64_t* out) const {
    return {memory, out, sizes.data(), strides.data(), int64_t(sizes.size()), 1, int64_t(x.dtype), upper};
  }

  Block x;
  std::vector<int64_t> sizes, strides, before, expected;
  float upper;
};

// An activation and the hashes of its rows' signs.
struct HashesCase {
  HashesCase() : x(Dtype(generator() % 3), 0, false) {
    const int64_t n = pick({1, 2, 9, 40}), c = pick({1, 2, 7, 64, 65, 130}), l = pick({1, 2, 49, 300, 1100});
    x = Block(x.dtype, n * c * l, generator() % 2);
    const bool last = generator() % 2;  // channels last
    sizes = {n, c, l};
    strides = {c * l, last ? 1 : l, last ? c : 1};
    for (int64_t i = 0; i < n * l; ++i) {
      uint64_t hash = 0;
      for (int64_t word = 0; word * 64 < c; ++word) {
        uint64_t bits = 0;
        for (int64_t k = word * 64; k < std::min(c, word * 64 + 64); ++k) {
          const int64_t at = i / l * strides[0] + k * strides[1] + i % l * strides[2];
          const uint32_t m = x.magnitude(at);
          bits |= uint64_t(m > 0 && m <= infinity(x.dtype) && x.get(at) == m) << (k % 64);
        }
        hash += mixed(mixed(bits) + uint64_t(word + 1) * kPhi);
      }
      expected.push_back(int64_t(hash));
    }
  }
  static uint64_t mixed(uint64_t z) {
    z = (z ^ z >> 30) * kMixFactor1;
    z = (z ^ z >> 27) * kMixFactor2;
    return z ^ z >> 31;
  }
  lc_activation at(const void* memory, int64_t* out) const {
    return {memory, out, sizes.data(), strides.data(), 3, 1, int64_t(x.dtype), 0};
  }

  Block x;
  std::vector<int64_t> sizes, strides, expected;
};

// Some weights, and what is left of them once the k smallest magnitudes are gone.
struct WeightsCase {
  struct Weight {
    Block values;
    std::vector<uint8_t> mask;
    std::vector<int64_t> sizes, strides;
    std::vector<char> keep;  // row-major

    int64_t place(int64_t i) const { return offset(sizes, strides, i); }
    lc_weight at(void* memory, uint8_t* bits) const {
      return {memory, bits, int64_t(values.dtype), int64_t(sizes.size()), sizes.data(), strides.data()};
    }
  };

  WeightsCase() : global(generator() % 2) {
    for (int64_t count = pick({1, 2, 5}); count-- > 0;) {
      const int64_t rows = pick({0, 1, 7, 64, 257}), columns = pick({1, 9, 63, 300, 700}), size = rows * columns;
      weights.push_back({Block(Dtype(generator() % 3), size, false), {}, {rows, columns}, {columns, 1}, {}});
      Weight& weight = weights.back();
      if (generator() % 2) {  // transposed
        weight.sizes = {columns, rows};
        weight.strides = {1, columns};
      }
      weight.mask.resize(size_t((size + 7) / 8));
      const uint64_t density = uint64_t(pick({1, 2, 100}));
      for (int64_t i = 0; i < size; ++i) {
        weight.keep.push_back(generator() % density == 0 || density == 100);
        if (weight.keep.back()) weight.mask[size_t(i / 8)] |= uint8_t(1 << i % 8);
      }
    }
    struct Entry {
      uint32_t key;
      size_t weight;
      int64_t at;
    };
    std::vector<std::vector<Entry>> groups(global ? 1 : weights.size());
    for (size_t w = 0; w < weights.size(); ++w) {
      const Block& values = weights[w].values;
      for (int64_t i = 0; i < values.size; ++i) {
        if (!weights[w].keep[size_t(i)]) continue;
        groups[global ? 0 : w].push_back({to_common(values.dtype, values.magnitude(weights[w].place(i))), w, i});
      }
    }
    for (auto& group : groups) {
      std::stable_sort(group.begin(), group.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
      k.push_back(int64_t(group.size()) * pick({0, 1, 2, 3}) / 3);
      for (int64_t i = 0; i < k.back(); ++i) weights[group[size_t(i)].weight].keep[size_t(group[size_t(i)].at)] = 0;
      const uint32_t bits = k.back() ? group[size_t(k.back() - 1)].key : 0;
      thresholds.emplace_back();
      std::memcpy(&thresholds.back(), &bits, 4);
    }
  }

  // Compares weights and masks, as they are now, with what should be left; `before` as the values were.
  void check(const std::vector<Weight>& before, const char* what) const {
    for (size_t w = 0; w < weights.size(); ++w) {
      const Weight& weight = weights[w];
      for (int64_t i = 0; i < weight.values.size; ++i) {
        const bool kept = weight.keep[size_t(i)];
        require((weight.mask[size_t(i / 8)] >> (i % 8) & 1) == kept, what);
        require(weight.values.get(weight.place(i)) == (kept ? before[w].values.get(weight.place(i)) : 0), what);
      }
    }
  }

  // Lets the masks be as they should become.
  void settle() {
    for (Weight& weight : weights) {
      for (int64_t i = 0; i < weight.values.size; ++i) {
        if (!weight.keep[size_t(i)]) weight.mask[size_t(i / 8)] &= uint8_t(~(1 << i % 8));
      }
    }
  }

  // Gives a part of the entries, of those without a keep-bit too, a value: as an optimizer's step does.
  void step() {
    const uint32_t value = uint32_t(generator()) % 0x8000u;
    for (Weight& weight : weights) {
      for (int64_t i = 0; i < weight.values.size; ++i) weight.values.set(i, generator() % 3 ? value : 0);
    }
  }

  bool global;
  std::vector<Weight> weights;
  std::vector<int64_t> k;
  std::vector<float> thresholds;
};

}  // namespace lc::tests
