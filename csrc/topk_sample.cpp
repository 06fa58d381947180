// Step 1 of masked_topk: a bracket around each threshold, from magnitudes at random places.
#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "topk.h"

namespace lc {
namespace {

constexpr int64_t kDraw = 4;  // neighbours drawn together

uint64_t random(uint64_t i) {  // splitmix64: fixed, so that equal input takes equal time
  i = (i + 1) * 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9u;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
  return i ^ (i >> 31);
}

}  // namespace

// Magnitudes of the kept entries at random places [begin, end) of a group, kDraw neighbours at each (a cache miss
// costs as much as all of them); returns their number. A random place in a random chunk, dropped where the chunk
// is shorter, is uniform and costs no search.
int64_t Topk::draw(const Group& group, int64_t begin, int64_t end, uint32_t* keys) const {
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

void Topk::bracket_small(Group& group, uint32_t* keys) const {
  group.bracket = bracket(keys, draw(group, 0, sample_size(group.size) / kDraw, keys), group.k, group.kept);
}

void Topk::bracket_all(const std::vector<int64_t>& large) {
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
      group.bracket.range = {0, 0};
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
    group.bracket = bracket(sample, left, group.k, group.kept);
  });
}

}  // namespace lc
