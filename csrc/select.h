// Order statistics of magnitudes on the common scale (dtypes.h): a bracket from a sample, and exact selection by
// counting. Nothing here reads a weight.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "dtypes.h"

namespace lc {

struct Range {
  uint32_t lo = 0, hi = kCommonEnd;  // [lo, hi)
  bool single() const { return hi - lo == 1; }
  bool several() const { return hi - lo > 1; }  // else counting says all
};

// Entries to draw from n. Sampling costs their number, collecting the bracket n / sqrt(number): balanced near 2 n^(2/3).
inline int64_t sample_size(int64_t n) {
  const auto size = static_cast<double>(n);
  return std::clamp<int64_t>(static_cast<int64_t>(2 * std::cbrt(size * size)), 64, 131072);
}

// Cuts a range into equal bins of a power of two, so that counting finds the bin of a rank.
struct Bins {
  Range range;
  int shift = 0;
  int64_t count;

  Bins(Range whole, int64_t most) : range(whole) {
    while ((static_cast<int64_t>(whole.hi - 1 - whole.lo) >> shift) >= most) ++shift;
    count = (static_cast<int64_t>(whole.hi - 1 - whole.lo) >> shift) + 1;
  }
  int64_t of(uint32_t key) const { return (key - range.lo) >> shift; }
  bool holds(uint32_t key) const { return key - range.lo < range.hi - range.lo; }
  // The bin of the rank-th smallest (from 1); takes off *rank what lies below it, and sets *inside to its count.
  template <class Count>
  Range find(const Count* counts, int64_t* rank, int64_t* inside) const {
    int64_t bin = 0;
    while (*rank > static_cast<int64_t>(counts[bin])) *rank -= static_cast<int64_t>(counts[bin++]);
    *inside = static_cast<int64_t>(counts[bin]);
    const int64_t lo = range.lo + (bin << shift), hi = lo + (int64_t(1) << shift);
    return {static_cast<uint32_t>(lo), static_cast<uint32_t>(std::min<int64_t>(hi, range.hi))};
  }
};

inline Range extent(const uint32_t* keys, int64_t size) {
  int32_t least = static_cast<int32_t>(keys[0]), most = least;  // signed: SSE2 has no unsigned compare
  for (int64_t i = 1; i < size; ++i) {
    const auto key = static_cast<int32_t>(keys[i]);
    least = key < least ? key : least;
    most = key > most ? key : most;
  }
  return {static_cast<uint32_t>(least), static_cast<uint32_t>(most) + 1};
}

// A range that holds the threshold, or next to which it is: a magnitude with many equals is left out of it, as
// collecting them could take more than the memory for it; `below` is then range.lo - 1, `above` range.hi.
struct Bracket {
  Range range;
  bool below = false, above = false;
};

// Holds the k-th smallest of `kept` with odds of about 15,000 to 1 if `sample` was drawn from them one by one (less if
// neighbours are alike); one that does not is found out by counting. Reorders the sample. Counting finds the bins of
// both ends, and only what is in these is ordered: a sixth of the time of std::nth_element on all.
inline Bracket bracket(uint32_t* sample, int64_t size, int64_t k, int64_t kept) {
  Bracket result;
  Range& range = result.range;
  if (size == 0) return result;
  const double share = static_cast<double>(k) / static_cast<double>(kept);
  const double centre = share * static_cast<double>(size);
  const double margin = 4 * std::sqrt(centre * (1 - share)) + 2;
  const auto low = static_cast<int64_t>(std::floor(centre - margin));
  const auto high = static_cast<int64_t>(std::ceil(centre + margin));
  if (low <= 0 && high >= size) return result;

  uint32_t counts[2048] = {};
  const Bins bins(extent(sample, size), 2048);
  for (int64_t i = 0; i < size; ++i) ++counts[bins.of(sample[i])];
  const auto ranked = [&](int64_t index) {
    int64_t rank = index + 1, inside;
    const Bins bin(bins.find(counts, &rank, &inside), 1);
    int64_t left = 0;
    for (int64_t i = 0; i < size; ++i) {  // without a branch: the bin's keys to the front
      const uint32_t key = sample[i];
      sample[i] = sample[left];
      sample[left] = key;
      left += bin.holds(key);
    }
    std::nth_element(sample, sample + rank - 1, sample + left);
    return sample[rank - 1];
  };
  if (low > 0) range.lo = ranked(low);
  if (high < size) range.hi = ranked(high) + 1;
  if (range.single()) return result;
  // What lies strictly between the ends fills at most high - low places of the sample; the ends may fill any number.
  const auto many = [&](uint32_t key) { return std::count(sample, sample + size, key) > (high - low) / 2 + 8; };
  result.below = low > 0 && many(range.lo);
  result.above = high < size && many(range.hi - 1);
  range.lo += result.below;
  range.hi -= result.above;
  return result;
}

struct Selected {
  uint32_t key;
  int64_t rank;   // of the one looked for, among its equals in order, from 1
  int64_t equal;  // keys equal to it
};

// The rank-th smallest of `size` keys, all inside `range`. Keeps fewer of the keys with each pass.
inline Selected select_key(uint32_t* keys, int64_t size, Range range, int64_t rank) {
  constexpr uint32_t kTight = 1u << 23;  // magnitudes within a factor of 2
  constexpr int64_t kFew = 48;           // sorting these is cheaper than another pass
  uint32_t counts[1024];
  while (!range.single() && size > kFew) {
    if (range.hi - range.lo > kTight) range = extent(keys, size);  // most of it is empty, unlike a bracket's
    if (range.single()) break;
    const Bins bins(range, std::clamp<int64_t>(size / 4, 16, 1024));
    std::fill(counts, counts + bins.count, 0u);
    for (int64_t i = 0; i < size; ++i) ++counts[bins.of(keys[i])];
    int64_t inside;
    const Bins bin(bins.find(counts, &rank, &inside), 1);
    int64_t left = 0;
    for (int64_t i = 0; i < size; ++i) {
      keys[left] = keys[i];
      left += bin.holds(keys[i]);
    }
    size = left;
    range = bin.range;
  }
  if (range.single()) return {range.lo, rank, size};
  std::nth_element(keys, keys + rank - 1, keys + size);
  const uint32_t key = keys[rank - 1];
  const auto below = std::count_if(keys, keys + size, [key](uint32_t other) { return other < key; });
  return {key, rank - below, std::count(keys, keys + size, key)};
}

}  // namespace lc
