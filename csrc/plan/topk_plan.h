// How masked_topk_ on a GPU sees its weights: many tensors as one, cut into segments in row-major order. Host only.
//
// A segment is a range of one tensor that one block reads from front to back; a group is what is ranked together. Ties
// are dealt out by a prefix over the segments of a group, never by order of arrival. All tables are int64, in one
// buffer that is copied to the device once; k is no part of them, so another k needs no new plan.
//
//   segments (S, kFields)  see SegmentField
//   groups   (G, kFields)  see GroupField
//   dims     (D, 2)        size and stride of each dimension of the tensors that are not plain arrays
//   ids      (S,)          the segments by class: those that one launch reads in the same way
//   parts    (P,)          a row per block that draws a sample: group << 8 | number of the block in the group
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "../dtypes.h"
#include "../layout.h"

namespace lc::topk {

constexpr int64_t kFields = 10;       // columns of segments and groups
constexpr int64_t kStateFields = 16;  // of the scratch row of a group
constexpr int64_t kBins = 2048;       // counters of a group and of each of its segments
constexpr int64_t kSample = 16384;    // most entries drawn from a group; one of no more entries is read whole instead
constexpr int64_t kLeastSample = 8192;  // with fewer, a bracket holds more than the lists do
constexpr int64_t kPart = 1024;         // entries that a block draws
constexpr int64_t kUnit = 8192;         // entries that the length of a segment is a multiple of
constexpr int64_t kPiece = kUnit;       // entries of a segment that a block of the apply pass takes
constexpr int64_t kShortest = 32768;    // entries of a segment, or its counters would be more than 1/8 of its bytes
constexpr int64_t kLists = 8;           // lists of a segment: one for each warp of its block
constexpr int64_t kListed = 16;         // one in so many float32 values of a segment has a place in its lists

// Address of the values and of the mask byte, first entry in the tensor, entries, `first row << 8 | number` in dims (0:
// a plain array), kind, group, places in the scratch of its counters and of its lists, entries of each list (0: none).
enum SegmentField { kAddress, kMask, kBegin, kCount, kDims, kKind, kGroup, kRow, kList, kEach };
// First segment, segments, places to draw from, places of a segment, one past the largest key, kind of the thresholds,
// places in the scratch: of its counters and of its sample, entries drawn (0: it is read whole), place of the ties of the
// pieces of one segment.
enum GroupField { kFirst, kSegments, kPlaces, kSlot, kEnd, kGroupKind, kSums, kSampleRow, kDrawn, kPieceTies };
// Columns of the scratch row of a group: its range of keys and the shift of their bins, how far it is (Stage), T, entries
// kept, k, rank of T in the range, keys below which all go, whether ties go in part, what the lists are for (Collect),
// and what blocks add up: entries kept and below the range, blocks that are done counting and drawing.
enum StateField {
  kLo, kHi, kShift, kStage, kThreshold, kKept, kK, kRank, kBound, kSplit, kCollect, kKeptSum, kBelowSum, kTicket, kDrawTicket
};
enum Stage { kGuessed, kProven, kDone };      // T may be outside the range; is in it; is known
enum Collect { kNone, kNext, kHeld };         // the lists: unused; filled by the next pass; hold all keys of the range

// How a value becomes a key. Bfloat16 and float16 keep their 15 bits; the common kinds are magnitudes as a float32,
// where types meet in one group.
enum Kind : int { kWide, kBfloat16, kFloat16, kCommonBfloat16, kCommonFloat16 };

struct Weight {
  uint64_t values, mask;  // addresses on the device
  Dtype dtype;
  std::vector<Dim> dims;  // in entries, row-major; any strides without overlap
};

struct Class {
  int64_t kind, strided, first, count;  // `count` segments from `first` in ids
};

// Entries of the parts of the scratch memory.
struct Sizes {
  int64_t segments = 0, groups = 0, sums = 0, piece_ties = 0, bins = 0, lists = 0, sample = 0;
};

// Where the parts begin, in bytes. A call begins with all zero up to `ties`.
struct Scratch {
  int64_t gate = 0;  // int64 (2): not 0 once something forbids the apply pass; S - the first segment with a NaN
  int64_t state;     // int64 (G, kStateFields)
  int64_t sums;      // int64: counters of each group
  int64_t piece_ties;  // int64: of each piece of the segment of a group in which ties run out, 1 + its ties once known
  int64_t ties;      // int64 (S, 2): ties to clear, ties
  int64_t bins;      // uint32: counters of each segment
  int64_t listed;    // uint32 (S, kLists): entries that the lists should hold, which may be more than they can
  int64_t lists;     // uint32: keys
  int64_t sample;    // uint32: keys
  int64_t end;
};

inline Scratch scratch_of(const Sizes& sizes) {
  const auto aligned = [](int64_t place) { return (place + 15) / 16 * 16; };
  Scratch scratch;
  scratch.state = 16;
  scratch.sums = scratch.state + sizes.groups * kStateFields * 8;
  scratch.piece_ties = scratch.sums + sizes.sums * 8;
  scratch.ties = aligned(scratch.piece_ties + sizes.piece_ties * 8);
  scratch.bins = scratch.ties + sizes.segments * 16;
  scratch.listed = aligned(scratch.bins + sizes.bins * 4);
  scratch.lists = scratch.listed + sizes.segments * kLists * 4;
  scratch.sample = scratch.lists + sizes.lists * 4;
  scratch.end = scratch.sample + sizes.sample * 4;
  return scratch;
}

struct Plan {
  std::vector<int64_t> table;  // segments, groups, dims, ids, parts
  Sizes sizes;
  int64_t dims = 0, parts = 0, most_dims = 0, pieces = 1;  // pieces of the longest segment
  bool wide = false;  // whether keys have 31 bits
  std::vector<Class> classes;
  std::vector<int64_t> tensor_of;    // of each segment
  std::vector<int64_t> first_part;   // of each group, and the end
  const int64_t* segment(int64_t i) const { return table.data() + i * kFields; }
  const int64_t* group(int64_t i) const { return table.data() + (sizes.segments + i) * kFields; }
};

// Ranks of the sample between which the k-th smallest of the group lies; -1: from the first on.
struct Ranks {
  int64_t k;
  int32_t low, high;
};

inline Kind kind_of(Dtype dtype, bool common) {
  if (dtype == Dtype::float32) return kWide;
  if (dtype == Dtype::bfloat16) return common ? kCommonBfloat16 : kBfloat16;
  return common ? kCommonFloat16 : kFloat16;
}

// What a backend wants, or tests, where small tensors are to take every path.
struct Options {
  int64_t shortest = kShortest, sample = kSample;
  bool lists = true;  // of float32 keys
  bool kept = false;  // whether the sample of a group that is read whole is kept in the scratch, too
  bool common = false;  // whether all keys are magnitudes as a float32
  bool tails = true;  // whether a segment of a plain array may end with fewer than 8 entries; else they are a strided one
};

// Cuts weights into segments, about `wanted` of them if they are long enough.
inline Plan make_plan(const std::vector<Weight>& weights, bool global, int64_t wanted, const Options& options = {}) {
  Plan plan;
  int64_t total = 0;
  bool mixed = options.common;
  for (const Weight& weight : weights) {
    total += product(weight.dims);
    mixed |= global && weight.dtype != weights[0].dtype;
    plan.wide |= weight.dtype == Dtype::float32;
  }
  plan.wide |= mixed;
  const int64_t unit = std::min(kUnit, options.shortest), each = (total + wanted - 1) / std::max<int64_t>(1, wanted);
  const int64_t length = std::max(options.shortest, (each + unit - 1) / unit * unit);

  std::vector<int64_t> segments, dims, order, parts;
  std::vector<std::pair<int64_t, int64_t>> classes;  // kind and strided of each segment
  for (std::size_t index = 0; index < weights.size(); ++index) {
    const Weight& weight = weights[index];
    const std::vector<Dim> own = coalesce(weight.dims);
    const bool plain = (own.empty() || (own.size() == 1 && own[0].stride == 1)) && weight.values % 16 == 0;
    const int64_t entries = product(weight.dims), kind = kind_of(weight.dtype, mixed);
    const int64_t whole = !plain ? 0 : options.tails ? entries : entries / 8 * 8;
    int64_t place = 0;
    if (whole < entries) {
      const std::size_t rank = std::max<std::size_t>(1, own.size());
      place = static_cast<int64_t>(dims.size() / 2) << 8 | static_cast<int64_t>(rank);
      plan.most_dims = std::max(plan.most_dims, static_cast<int64_t>(rank));
      if (own.empty()) dims.insert(dims.end(), {1, 1});
      for (const Dim& dim : own) dims.insert(dims.end(), {dim.size, dim.stride});
    }
    for (int64_t begin = 0, count = 0; begin < entries; begin += count) {
      const bool strided = begin >= whole;
      count = std::min(length, (strided ? entries : whole) - begin);
      const uint64_t address = weight.values + static_cast<uint64_t>(strided ? 0 : begin * width(weight.dtype));
      segments.insert(segments.end(), {static_cast<int64_t>(address), static_cast<int64_t>(weight.mask + begin / 8), begin,
                                       count, strided ? place : 0, kind, global ? 0 : static_cast<int64_t>(index), 0, 0, 0});
      classes.emplace_back(kind, strided);
      plan.tensor_of.push_back(static_cast<int64_t>(index));
    }
  }
  plan.sizes.segments = static_cast<int64_t>(classes.size());
  plan.sizes.groups = global ? 1 : static_cast<int64_t>(weights.size());

  std::vector<int64_t> groups;
  int64_t first = 0;
  for (int64_t group = 0; group < plan.sizes.groups; ++group) {
    int64_t last = first, slot = 1, entries = 0;
    for (; last < plan.sizes.segments && segments[last * kFields + kGroup] == group; ++last) {
      slot = std::max(slot, segments[last * kFields + kCount]);
      entries += segments[last * kFields + kCount];
    }
    // Without tails, the places of the segment with the tail are not all there are up to `entries`.
    const int64_t places = global || !options.tails ? (last - first) * slot : entries;
    const bool whole = places <= options.sample;
    // A quarter of a group: the sample never takes more memory than the group, or twice that for 16 bits.
    const int64_t least = std::min(kLeastSample, options.sample);
    const int64_t drawn = whole ? 0 : std::clamp(places / 4 / kPart * kPart, least, options.sample);
    const Dtype dtype = weights.empty() || mixed ? Dtype::float32 : weights[global ? 0 : group].dtype;
    groups.insert(groups.end(), {first, last - first, places, slot, infinity(dtype) + int64_t(1), kind_of(dtype, true),
                                 plan.sizes.sums, plan.sizes.sample, drawn, plan.sizes.piece_ties});
    const int64_t pieces = (slot + kPiece - 1) / kPiece;
    plan.pieces = std::max(plan.pieces, pieces);
    plan.sizes.piece_ties += pieces;
    plan.first_part.push_back(static_cast<int64_t>(parts.size()));
    const int64_t sampled = whole && options.kept ? places : drawn;
    for (int64_t part = 0; part < std::max<int64_t>(1, (sampled + kPart - 1) / kPart); ++part) {
      parts.push_back(group << 8 | part);
    }
    // Read whole, a group needs one counter: for its threshold.
    const int64_t counters = whole ? 1 : kBins;
    for (int64_t i = first; i < last; ++i) {
      int64_t* segment = segments.data() + i * kFields;
      segment[kRow] = plan.sizes.bins;
      plan.sizes.bins += counters;
      if (options.lists && !whole && segment[kKind] == kWide) {
        segment[kList] = plan.sizes.lists;
        segment[kEach] = segment[kCount] / kListed / kLists / 4 * 4;  // lists are read 16 bytes at a time
        plan.sizes.lists += segment[kEach] * kLists;
      }
    }
    plan.sizes.sums += counters;
    plan.sizes.sample += sampled;
    first = last;
  }
  plan.first_part.push_back(static_cast<int64_t>(parts.size()));

  order.resize(classes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return classes[a] < classes[b]; });
  for (const int64_t id : order) {
    const auto [kind, strided] = classes[id];
    if (plan.classes.empty() || plan.classes.back().kind != kind || plan.classes.back().strided != strided) {
      const int64_t begin = plan.classes.empty() ? 0 : plan.classes.back().first + plan.classes.back().count;
      plan.classes.push_back({kind, strided, begin, 0});
    }
    ++plan.classes.back().count;
  }
  plan.dims = static_cast<int64_t>(dims.size() / 2);
  plan.parts = static_cast<int64_t>(parts.size());
  for (const auto* part : {&segments, &groups, &dims, &order, &parts}) {
    plan.table.insert(plan.table.end(), part->begin(), part->end());
  }
  return plan;
}

// The k of a group, and what of its sample brackets it.
inline Ranks ranks_of(const int64_t* group, int64_t k) {
  const auto largest = std::numeric_limits<int32_t>::max();
  const auto rank = static_cast<int32_t>(std::min<int64_t>(k - 1, largest));
  const int64_t slots = group[kSegments] * group[kSlot], drawn = group[kDrawn];
  if (drawn == 0) return {k, rank, rank};
  const double count = static_cast<double>(drawn), share = std::min(1.0, static_cast<double>(k) / static_cast<double>(slots));
  const double margin = 4 * std::sqrt(count * share * (1 - share)) + 2;  // missed once in 15,000 draws
  const auto low = static_cast<int32_t>(std::floor(count * share - margin));
  // Entries that were not drawn may lie below all that were.
  return {k, low > 0 ? low : -1, static_cast<int32_t>(std::ceil(count * share + margin))};
}

// Why nothing was changed, from the beginning of the scratch: its gate and state.
struct Outcome {
  enum Code : int { done, nan, too_many } code = done;
  int64_t index = 0, kept = 0;  // of the weight with a NaN; of the group that keeps fewer than k, and how many
};

inline Outcome outcome_of(const Plan& plan, const int64_t* k, const int64_t* head) {
  if (head[0] == 0) return {};
  const int64_t* state = head + scratch_of(plan.sizes).state / 8;
  for (int64_t group = 0; group < plan.sizes.groups; ++group) {
    const int64_t kept = state[group * kStateFields + kKept];
    if (k[group] > kept) return {Outcome::too_many, group, kept};
  }
  return {Outcome::nan, plan.tensor_of[static_cast<std::size_t>(plan.sizes.segments - head[1])], 0};
}

// Counting passes after which every threshold is proven, whatever the data; with 0, one pass looks for NaN.
inline int64_t rounds_of(const Plan& plan, const int64_t* k) {
  bool any = false, exhaustive = true;
  for (int64_t group = 0; group < plan.sizes.groups; ++group) {
    any |= k[group] != 0;
    exhaustive &= k[group] == 0 || plan.group(group)[kDrawn] == 0;
  }
  // 11 bits a pass: a range of 31 bits (15) is down to one key after three (two); one more if the bracket missed.
  return !any ? 0 : exhaustive ? 1 : plan.wide ? 4 : 3;
}

}  // namespace lc::topk
