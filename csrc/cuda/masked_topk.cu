// masked_topk_ on the GPU: R bytes of weights, M = R / 16 or R / 32 bytes of masks.
//
//   threshold T of a group: its k-th smallest kept magnitude. Cleared: magnitudes < T, and of those equal to T the
//   first k - #(magnitude < T) in row-major order, earlier tensors first.
//
// 1. bracket: a random sample of each group brackets T; a small group is read whole, and T is known.
// 2. count, several rounds: a block reads one segment and counts what lies below the bracket and, in up to 2048 bins,
//    what lies inside. The last block of a group finds the bin that holds T: the next range, until it is one key. A
//    bracket that missed is replaced by all keys. For 16-bit types one read proves T. Of float32, that read also lists
//    the keys inside the bracket, and later rounds read the lists: of segments whose lists overflowed, the weights.
//    Rounds after the proof return at once: the host never waits between launches.
// 3. apply: one read; writes the vectors and the bytes of the mask that change.
//
// Bytes: 2 R + 2 M + what changes (R + M at most); counters, and for float32 lists of about R / 32, besides.
// Compares are done on packed words (bits.cuh) and give a bit per value; only the few values inside the bracket are
// looked at one by one.
#include <memory>
#include <new>
#include <type_traits>

#include "../plan/arguments.h"
#include "../plan/topk_plan.h"
#include "bits.cuh"
#include "device.cuh"
#include "launch.h"

namespace lc::cuda {
namespace {

using namespace lc::topk;  // the tables' columns

constexpr int kThreads = 256, kWarps = kThreads / 32, kDrawers = 1024;
constexpr uint32_t kNoKey = 0xffffffffu, kAll = 0xffffffffu;
static_assert(kWarps == kLists && kDrawers == kPart);

// Tables and scratch of topk_plan.h, on the device.
struct Topk {
  const int64_t *segments, *groups, *dims, *ids, *parts;
  int64_t *gate, *state, *sums, *piece_ties, *ties;
  uint32_t *bins, *listed, *lists, *sample;
  uint32_t* thresholds;
  int64_t segment_count, group_count, pieces;
  int64_t* counts;  // not null: count only, keys in [lo, hi) by bins of 2^shift, and add to these (CountField)
  int64_t lo, hi, shift;
};

enum CountField { kCountNan, kCountKept, kCountBelow, kCountBins };

constexpr int kGroupsAtOnce = 224;  // 16 bytes each: kernels take 4 KB of arguments

struct SomeRanks {
  int64_t first_group, first_part;
  Ranks of[kGroupsAtOnce];
};

using Total = unsigned long long;  // what CUDA's atomics take

__device__ void add(int64_t* total, int64_t value) {
  if (value != 0) atomicAdd(reinterpret_cast<Total*>(total), static_cast<Total>(value));
}

__device__ void close(const Topk& t) { atomicExch(reinterpret_cast<Total*>(t.gate), Total(1)); }

// Whether this block is the last of `blocks` to come here; it then sees what the others wrote before. The last one
// resets the ticket, when no other can still take one.
__device__ bool is_last(int64_t* ticket, int64_t blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(reinterpret_cast<Total*>(ticket), Total(1)) == static_cast<Total>(blocks - 1);
    if (last) *ticket = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

__device__ __noinline__ int64_t offset_of(const int64_t* dims, int64_t place, int64_t index) {
  const int64_t* row = dims + (place >> 8) * 2;
  int64_t offset = 0;
  for (int64_t d = (place & 0xff) - 1; d >= 0; --d) {
    offset += index % row[2 * d] * row[2 * d + 1];
    index /= row[2 * d];
  }
  return offset;
}

__device__ int64_t shift_of(int64_t span) {  // smallest with span >> shift < kBins
  int64_t shift = 0;
  while ((span >> shift) >= kBins) ++shift;
  return shift;
}

__device__ int64_t sum_of_block(int64_t value) {  // for every thread; at most 32 warps
  __shared__ int64_t parts[32];
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAll, value, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) value += parts[warp];
  return value;
}

// Sum of the values of this and all earlier threads.
__device__ int64_t prefix_in_block(int64_t value) {
  __shared__ int64_t parts[32];
  const unsigned lane = threadIdx.x % 32;
  for (unsigned step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(kAll, value, step);
    if (lane >= step) value += other;
  }
  __syncthreads();
  if (lane == 31) parts[threadIdx.x / 32] = value;
  __syncthreads();
  for (unsigned warp = 0; warp < threadIdx.x / 32; ++warp) value += parts[warp];
  return value;
}

// ---- bracket ------------------------------------------------------------------------------------------------------

__device__ uint64_t random(uint32_t i, uint32_t salt) {  // Murmur3's last steps: equal input takes equal time
  uint32_t h = (i + salt) * 0x9e3779b9u;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// Key number i of a group's sample, kNoKey where the entry is none that is kept.
__device__ uint32_t draw(const Topk& t, const int64_t* group, int i) {
  const int64_t segments = group[kSegments], slot = group[kSlot];
  const bool whole = group[kDrawn] == 0;
  if (i >= (whole ? group[kPlaces] : group[kDrawn])) return kNoKey;
  const auto number = static_cast<uint32_t>(i);
  const int64_t which = whole ? i / slot : static_cast<int64_t>(random(number, 1) * static_cast<uint64_t>(segments) >> 32);
  const int64_t at = whole ? i % slot : static_cast<int64_t>(random(number, 65537) * static_cast<uint64_t>(slot) >> 32);
  const int64_t* segment = t.segments + (group[kFirst] + which) * kFields;
  if (at >= segment[kCount]) return kNoKey;
  if ((reinterpret_cast<const uint8_t*>(segment[kMask])[at / 8] >> (at % 8) & 1) == 0) return kNoKey;
  const int64_t place = segment[kDims], offset = place == 0 ? at : offset_of(t.dims, place, segment[kBegin] + at);
  const int kind = static_cast<int>(segment[kKind]);
  if (kind == kWide) return reinterpret_cast<const uint32_t*>(segment[kAddress])[offset] & 0x7fffffffu;
  return to_key(kind, reinterpret_cast<const uint16_t*>(segment[kAddress])[offset] & 0x7fffu);
}

__global__ void __launch_bounds__(kDrawers) bracket_kernel(const __grid_constant__ Topk t, const __grid_constant__ SomeRanks some) {
  constexpr int kMine = kSample / kDrawers;
  __shared__ uint32_t totals[33];  // one per round: a warp may be one round ahead of another
  const int64_t part = t.parts[some.first_part + blockIdx.x], index = part >> 8, number = part & 0xff;
  const int64_t* group = t.groups + index * kFields;
  int64_t* state = t.state + index * kStateFields;
  const Ranks& ranks = some.of[index - some.first_group];
  const bool whole = group[kDrawn] == 0;
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t keys[kMine];
  if (ranks.k == 0 || group[kSegments] == 0) {
    if (ranks.k != 0 && thread == 0) {  // of no entry
      state[kStage] = kDone;
      close(t);
    }
    return;
  }
  if (whole) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) keys[i] = draw(t, group, i * kDrawers + thread);
  } else {
    uint32_t* sample = t.sample + group[kSampleRow];
    const int drawn = static_cast<int>(group[kDrawn]), place = static_cast<int>(number) * kDrawers + thread;
    if (place < drawn) sample[place] = draw(t, group, place);
    if (!is_last(state + kDrawTicket, (drawn + kDrawers - 1) / kDrawers)) return;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      keys[i] = i * kDrawers + thread < drawn ? __ldcg(sample + i * kDrawers + thread) : kNoKey;
    }
  }
  if (thread < 33) totals[thread] = 0;
  __syncthreads();
  const int64_t low = ranks.low, high = ranks.high;
  const auto total = [&](int round, uint32_t mine) {  // two counts of at most 16384, in the halves of a word
    const uint32_t sum = __reduce_add_sync(kAll, mine);
    if (thread % 32 == 0) atomicAdd(&totals[round], sum);
    __syncthreads();
    return totals[round];
  };
  uint32_t lo = 0, hi = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const uint32_t next_lo = lo | 1u << bit, next_hi = hi | 1u << bit;
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) mine += (keys[i] < next_lo ? 1u : 0u) + (keys[i] < next_hi ? 65536u : 0u);
    const uint32_t counts = total(bit, mine);
    if (static_cast<int64_t>(counts & 0xffffu) <= low) lo = next_lo;
    if (static_cast<int64_t>(counts >> 16) <= high) hi = next_hi;
  }
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kMine; ++i) mine += keys[i] != kNoKey;
  const int64_t size = total(31, mine);
  int64_t from = low >= 0 && low < size ? lo : 0;
  int64_t to = high < size ? int64_t(hi) + 1 : group[kEnd];
  if (to <= from) to = from + 1;
  if (whole && high >= size) from = to = 0;  // k is too large, and there is one counter only
  mine = 0;
#pragma unroll
  for (int i = 0; i < kMine; ++i) mine += keys[i] >= from && keys[i] < to;
  const int64_t inside = total(32, mine);
  if (thread != 0) return;
  state[kLo] = from;
  state[kHi] = to;
  state[kShift] = shift_of(to > from ? to - from - 1 : 0);
  state[kK] = ranks.k;
  // The lists hold one in kListed, and a range of one key needs none.
  state[kCollect] = to - from > 1 && inside * (kListed + 2) <= group[kDrawn] ? kNext : kNone;
}

// ---- packs --------------------------------------------------------------------------------------------------------

// What a block reads of a segment: packs of 16 bytes, 8 values of 16 bits with a byte of the mask, or 4 float32 with
// half of one, whose other half the next thread has. Neighbouring threads read neighbouring packs.
template <int kWidth, bool kStrided>
struct Reader {
  using F = Format<kWidth>;
  using Bits = typename std::conditional<kWidth == 2, uint16_t, uint32_t>::type;
  static constexpr int kWords = 4, kPack = 16 / kWidth;
  static constexpr uint32_t kFull = (1u << kPack) - 1;
  static constexpr int kUnroll = kStrided ? 1 : 4;  // packs of a turn: 64 bytes per thread, in flight together
  struct Pack {
    uint32_t words[kWords];
    uint32_t byte, mask, valid;  // a bit per value; bits of the mask that are not valid are another's or padding
    __device__ uint32_t keep() const { return mask & valid; }
  };

  Bits* x;
  uint8_t* mask;
  const int64_t* dims;
  int64_t place, begin;
  int count, packs, full;  // values, packs, and those without missing values

  // Of `entries` from `first`, a multiple of 8, on.
  __device__ Reader(const Topk& t, const int64_t* segment, int64_t first, int64_t entries)
      : x(reinterpret_cast<Bits*>(segment[kAddress]) + (kStrided ? 0 : first)),
        mask(reinterpret_cast<uint8_t*>(segment[kMask]) + first / 8),
        dims(t.dims),
        place(segment[kDims]),
        begin(segment[kBegin] + first),
        count(static_cast<int>(entries)),
        packs((count + kPack - 1) / kPack),
        full(count / kPack) {}

  __device__ __forceinline__ Bits* entry(int pack, int i) const {
    return x + (kStrided ? offset_of(dims, place, begin + pack * kPack + i) : int64_t(pack) * kPack + i);
  }
  static __device__ __forceinline__ void split(int pack, Pack& p) {
    p.mask = kWidth == 2 ? p.byte : p.byte >> (4 * (pack & 1)) & kFull;
  }
  // A whole pack of a plain array.
  __device__ __forceinline__ void load_full(int pack, Pack& p) const {
    const uint4 value = __ldca(reinterpret_cast<const uint4*>(x) + pack);  // says that the address is global, which a table cannot
    p.words[0] = value.x;
    p.words[1] = value.y;
    p.words[2] = value.z;
    p.words[3] = value.w;
    p.byte = __ldca(mask + pack * kPack / 8);
    p.valid = kFull;
  }
  // Any pack, also one past the end or of fewer values.
  __device__ __forceinline__ void load(int pack, Pack& p) const {
    if constexpr (!kStrided) {
      if (pack < full) {
        load_full(pack, p);
        split(pack, p);
        return;
      }
    }
    const int left = min(kPack, max(0, count - pack * kPack));
    p.valid = (1u << left) - 1;
    p.byte = left > 0 ? __ldca(mask + pack * kPack / 8) : 0u;
    split(pack, p);
#pragma unroll
    for (int w = 0; w < kWords; ++w) p.words[w] = 0;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < left) p.words[i / F::kPerWord] |= static_cast<uint32_t>(__ldca(entry(pack, i))) << (16 * (i % F::kPerWord));
    }
  }
  static __device__ __forceinline__ void magnitudes(const Pack& p, uint32_t (&result)[kWords]) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) result[w] = p.words[w] & F::kMagnitude;
  }
  // Zeroes what has no bit in keep: writes the 16 bytes, or the entries, that change, and the byte of the mask. For all
  // threads of a warp at once.
  __device__ __forceinline__ void store(int pack, const Pack& p, uint32_t keep) const {
    uint32_t drop = p.keep() & ~keep;
    if constexpr (kWidth == 4) drop |= __shfl_xor_sync(kAll, drop, 1) << 4;
    if (drop != 0 && (kWidth == 2 || pack % 2 == 0)) __stwb(mask + pack * kPack / 8, static_cast<uint8_t>(p.byte & ~drop));
    if (kStrided || p.valid != kFull) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const uint32_t bits = p.words[i / F::kPerWord] >> (16 * (i % F::kPerWord));
        if ((p.valid & ~keep) >> i & 1u && static_cast<Bits>(bits) != 0) __stwb(entry(pack, i), Bits(0));
      }
      return;
    }
    uint32_t words[kWords], changed = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = p.words[w];
    keep_only<kWidth>(keep, words);
#pragma unroll
    for (int w = 0; w < kWords; ++w) changed |= words[w] ^ p.words[w];
    if (changed != 0) __stwb(reinterpret_cast<uint4*>(x) + pack, make_uint4(words[0], words[1], words[2], words[3]));
  }
};

// Calls visit(first, packs) with the packs first + threadIdx.x, first + kThreads + threadIdx.x and so on. Loads of a turn
// come before everything else of it: ptxas then keeps them in flight together.
template <class R, class Visit>
__device__ __forceinline__ void each_turn(const R& reader, const Visit& visit) {
  const int thread = static_cast<int>(threadIdx.x);
  int first = 0;
  if constexpr (R::kUnroll > 1) {
    for (; first + R::kUnroll * kThreads <= reader.full; first += R::kUnroll * kThreads) {
      typename R::Pack turn[R::kUnroll];
#pragma unroll
      for (int u = 0; u < R::kUnroll; ++u) reader.load_full(first + u * kThreads + thread, turn[u]);
#pragma unroll
      for (int u = 0; u < R::kUnroll; ++u) R::split(thread, turn[u]);
      visit(first, turn);
    }
  }
  for (; first < reader.packs; first += kThreads) {
    typename R::Pack turn[1];
    reader.load(first + thread, turn[0]);
    visit(first, turn);
  }
}

// ---- select: by the last block of a group -------------------------------------------------------------------------

// Narrows the range of a group to the bin that holds T, or fixes T and deals out its ties.
__device__ __noinline__ void select(const Topk& t, int64_t index, int used) {
  constexpr int kMine = kBins / kThreads;  // neighbouring bins of a thread
  __shared__ int64_t found[3];             // the bin that holds T, the rank of T in it, and its keys
  const int64_t* group = t.groups + index * kFields;
  int64_t* state = t.state + index * kStateFields;
  int64_t* sums = t.sums + group[kSums];
  const bool guessed = state[kStage] == kGuessed, leader = threadIdx.x == 0;
  const int64_t k = state[kK], lo = state[kLo], hi = state[kHi], shift = state[kShift], collect = state[kCollect];
  const int64_t kept = guessed ? __ldcg(state + kKeptSum) : state[kKept];
  int64_t rank = guessed ? k - __ldcg(state + kBelowSum) : state[kRank];
  int64_t mine = 0, own[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int bin = static_cast<int>(threadIdx.x) * kMine + i;
    own[i] = bin < used ? __ldcg(sums + bin) : 0;
    if (bin < used) sums[bin] = 0;  // for the next round
    mine += own[i];
  }
  const int64_t up_to = prefix_in_block(mine), total = sum_of_block(mine);
  if (leader) {
    state[kKeptSum] = state[kBelowSum] = 0;
    state[kKept] = kept;
  }
  if (k == 0 || k > kept) {
    if (leader) {
      state[kStage] = kDone;
      if (k > kept) close(t);
    }
    return;
  }
  if (rank < 1 || rank > total) {  // the bracket missed
    if (leader) {
      state[kLo] = 0;
      state[kHi] = group[kEnd];
      state[kShift] = shift_of(group[kEnd] - 1);
      state[kStage] = kProven;
      state[kRank] = k;
      state[kCollect] = kNone;
      if (group[kDrawn] == 0) close(t);  // only where another stream writes to the weights
    }
    return;
  }
  int64_t before = up_to - mine;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (before < rank && rank <= before + own[i]) {
      found[0] = int64_t(threadIdx.x) * kMine + i;
      found[1] = rank - before;
      found[2] = own[i];
    }
    before += own[i];
  }
  __syncthreads();
  const int64_t bin = found[0], equal = found[2], from = lo + (bin << shift);
  rank = found[1];
  if (shift != 0) {
    if (leader) {
      const int64_t to = min(hi, from + (int64_t(1) << shift));
      state[kLo] = from;
      state[kHi] = to;
      state[kShift] = shift_of(to - from - 1);
      state[kStage] = kProven;
      state[kRank] = rank;
      // Lists of the range before hold this one too. Else the next pass makes some, if they will hold twice as many.
      const bool few = equal * 2 * kListed <= group[kPlaces];
      state[kCollect] = collect != kNone ? kHeld : few ? kNext : kNone;
    }
    return;
  }
  const bool split = rank < equal;
  if (leader) {
    state[kStage] = kDone;
    state[kThreshold] = from;
    state[kBound] = split ? from : from + 1;
    state[kSplit] = split;
    t.thresholds[index] = to_key(static_cast<int>(group[kGroupKind]), static_cast<uint32_t>(from));
  }
  if (!split) return;
  // Deal the ties to the segments in order.
  const int64_t end = group[kFirst] + group[kSegments];
  for (int64_t begin = group[kFirst]; begin < end; begin += kThreads) {
    const int64_t segment = begin + threadIdx.x;
    const int64_t ties = segment < end ? __ldcg(t.bins + t.segments[segment * kFields + kRow] + bin) : 0;
    const int64_t earlier = prefix_in_block(ties) - ties;
    if (segment < end) {
      t.ties[segment * 2] = max(int64_t(0), min(rank - earlier, ties));
      t.ties[segment * 2 + 1] = ties;
    }
    rank -= sum_of_block(ties);
  }
}

// ---- count --------------------------------------------------------------------------------------------------------

template <int kKind, bool kStrided>
__global__ void __launch_bounds__(kThreads, kStrided ? 3 : 4) count_kernel(const __grid_constant__ Topk t, const int64_t* ids) {
  constexpr int kWidth = width_of(kKind);
  constexpr bool kIsKey = kKind == kBfloat16 || kKind == kFloat16;  // the 15 bits
  using F = Format<kWidth>;
  using R = Reader<kWidth, kStrided>;
  __shared__ uint32_t bins[kBins];
  const int64_t index = ids[blockIdx.x];
  const int64_t* segment = t.segments + index * kFields;
  const int64_t group = segment[kGroup];
  int64_t* state = t.state + group * kStateFields;
  const bool only_count = t.counts != nullptr;
  if (!only_count && state[kStage] == kDone) return;
  const auto lo = static_cast<uint32_t>(only_count ? t.lo : state[kLo]);
  const auto hi = static_cast<uint32_t>(only_count ? t.hi : state[kHi]);
  const int shift = static_cast<int>(only_count ? t.shift : state[kShift]);
  const int used = hi > lo ? static_cast<int>((hi - lo - 1) >> shift) + 1 : 1;
  // Copies of each bin for the lanes of a warp: with few bins, as for 16-bit types, no two lanes meet at one address.
  int copies = 1;
  while (copies < 32 && used * copies * 2 <= kBins) copies *= 2;
  for (int i = threadIdx.x; i < used * copies; i += kThreads) bins[i] = 0;
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, copy = threadIdx.x & (copies - 1);
  const auto tally = [&](uint32_t key) { atomicAdd(&bins[((key - lo) >> shift) * copies + copy], 1u); };

  uint32_t kept = 0, below = 0, one = 0, suspect = 0;
  bool listed = false;
  if constexpr (kKind == kWide) {
    if (!only_count && state[kCollect] == kHeld) {
      listed = true;
      for (int i = 0; i < kLists; ++i) listed &= t.listed[index * kLists + i] <= segment[kEach];
    }
  }
  const auto each = static_cast<uint32_t>(segment[kEach]);
  uint32_t* list = t.lists + segment[kList] + int64_t(threadIdx.x / 32) * each;
  if (listed) {
    const int length = static_cast<int>(t.listed[index * kLists + threadIdx.x / 32]);
#pragma unroll 4
    for (int i = static_cast<int>(lane) * 4; i < length; i += 128) {
      const uint4 keys = __ldca(reinterpret_cast<const uint4*>(list + i));
      const uint32_t four[4] = {keys.x, keys.y, keys.z, keys.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (i + j < length && four[j] >= lo && four[j] < hi) tally(four[j]);
      }
    }
  } else {
    const R reader(t, segment, 0, segment[kCount]);
    const uint32_t lo_gap = F::gap(from_key(kKind, lo)), hi_gap = F::gap(from_key(kKind, hi));
    constexpr uint32_t kNanGap = F::gap(infinity_of(kKind) + 1);
    const bool collect = kKind == kWide && !only_count && state[kCollect] == kNext;
    const bool single = used == 1;
    uint32_t length = 0;  // of the warp's list
    const uint32_t zero = copy - lo * static_cast<uint32_t>(copies);  // place of the counter of key 0, if it had one
    each_turn(reader, [&](int first, const auto& turn) {
      constexpr int kPacks = static_cast<int>(std::extent<std::remove_reference_t<decltype(turn)>>::value);
      uint32_t keep = 0, from_lo = 0, from_hi = 0;
#pragma unroll
      for (int u = 0; u < kPacks; ++u) {
        uint32_t magnitudes[R::kWords];
        R::magnitudes(turn[u], magnitudes);
#pragma unroll
        for (int w = 0; w < R::kWords; ++w) suspect |= magnitudes[w] + kNanGap;
        keep |= turn[u].keep() << (R::kPack * u);
        from_lo |= at_least<kWidth>(magnitudes, lo_gap) << (R::kPack * u);
        from_hi |= at_least<kWidth>(magnitudes, hi_gap) << (R::kPack * u);
      }
      kept += __popc(keep);
      below += __popc(keep & ~from_lo);
      uint32_t inside = keep & from_lo & ~from_hi;
      // From registers, one value after the other, though few are inside: to look only for those takes their place in
      // memory, and reading them again took a 1 B bfloat16 pass on an H100 from 0.8 ms to 2.9 ms.
      if (single) {
        one += __popc(inside);
      } else if (kKind == kWide || (kIsKey && shift == 0)) {
        uint32_t at = 0;  // of this thread's first in the list
        if (collect) {
          const auto mine = static_cast<uint32_t>(__popc(inside));
          uint32_t up_to = mine;
#pragma unroll
          for (unsigned step = 1; step < 32; step *= 2) {
            const uint32_t other = __shfl_up_sync(kAll, up_to, step);
            if (lane >= step) up_to += other;
          }
          at = length + up_to - mine;
          length += __shfl_sync(kAll, up_to, 31);
        }
#pragma unroll
        for (int u = 0; u < kPacks; ++u) {
#pragma unroll
          for (int i = 0; i < R::kPack; ++i) {
            if (!(inside >> (R::kPack * u + i) & 1u)) continue;
            if constexpr (kKind == kWide) {
              const uint32_t key = turn[u].words[i] & F::kMagnitude;
              tally(key);
              if (collect && at < each) list[at] = key;
              ++at;
            } else {
              const uint32_t key = turn[u].words[i / 2] >> (16 * (i % 2)) & 0x7fffu;
              atomicAdd(&bins[key * static_cast<uint32_t>(copies) + zero], 1u);
            }
          }
        }
      } else {
        for (; inside != 0; inside &= inside - 1) {
          const int bit = __ffs(static_cast<int>(inside)) - 1, pack = first + bit / R::kPack * kThreads;
          const auto* value = reader.entry(pack + static_cast<int>(threadIdx.x), bit % R::kPack);
          tally(to_key(kKind, __ldca(value) & (F::kTop - 1)));
        }
      }
    });
    if (collect && lane == 0) t.listed[index * kLists + threadIdx.x / 32] = length;
  }

  if (one != 0) atomicAdd(&bins[copy], one);
  const bool nan = __syncthreads_or((suspect & F::kSign) != 0);
  const int64_t all_kept = sum_of_block(kept), all_below = sum_of_block(below);
  const int64_t* row = t.groups + group * kFields;
  for (int bin = threadIdx.x; bin < used; bin += kThreads) {
    uint32_t sum = 0;
    for (int i = 0; i < copies; ++i) sum += bins[bin * copies + i];
    add(only_count ? t.counts + kCountBins + bin : t.sums + row[kSums] + bin, sum);
    if (shift == 0 && !only_count) t.bins[segment[kRow] + bin] = sum;  // for ties
  }
  if (only_count) {
    if (threadIdx.x == 0) {
      add(t.counts + kCountKept, all_kept);
      add(t.counts + kCountBelow, all_below);
      add(t.counts + kCountNan, nan);
    }
    return;
  }
  if (threadIdx.x == 0) {
    add(state + kKeptSum, all_kept);
    add(state + kBelowSum, all_below);
    if (nan) {
      close(t);
      atomicMax(reinterpret_cast<Total*>(t.gate + 1), static_cast<Total>(t.segment_count - index));
    }
  }
  if (is_last(state + kTicket, row[kSegments])) select(t, group, used);
}

// ---- apply --------------------------------------------------------------------------------------------------------

// Ties in the pieces of a segment before this one, which has `own`: their blocks began earlier, and wait for no later
// one. A word holds one more than the ties, so that it is not 0 once they are known.
__device__ int64_t ties_before(int64_t* words, int64_t piece, int64_t own) {
  if (threadIdx.x == 0) atomicExch(reinterpret_cast<Total*>(words + piece), static_cast<Total>(own + 1));
  int64_t before = 0;
  for (int64_t other = threadIdx.x; other < piece; other += kThreads) {
    Total word = 0;
    while (word == 0) word = atomicAdd(reinterpret_cast<Total*>(words + other), Total(0));
    before += static_cast<int64_t>(word) - 1;
  }
  return sum_of_block(before);
}

// Clears a piece of the segment in which ties run out. A function of its own, whose registers the others do not need.
template <int kWidth, bool kStrided>
__device__ __noinline__ void clear_some_ties(const Topk& t, int64_t index, int64_t piece) {
  using F = Format<kWidth>;
  using R = Reader<kWidth, kStrided>;
  const int64_t* segment = t.segments + index * kFields;
  const int64_t first = piece * kPiece, group = segment[kGroup];
  const auto threshold = static_cast<uint32_t>(t.state[group * kStateFields + kThreshold]);
  const int kind = static_cast<int>(segment[kKind]);
  const uint32_t gap = F::gap(from_key(kind, threshold)), over_gap = F::gap(from_key(kind, threshold + 1));
  const R reader(t, segment, first, min(kPiece, segment[kCount] - first));
  const auto split = [&](const typename R::Pack& p, uint32_t& keep) {  // what stays but for ties, and the ties
    uint32_t magnitudes[R::kWords];
    R::magnitudes(p, magnitudes);
    keep = p.keep() & at_least<kWidth>(magnitudes, gap);
    return keep & ~at_least<kWidth>(magnitudes, over_gap);
  };
  int64_t all = 0;
  each_turn(reader, [&](int, const auto& turn) {
#pragma unroll
    for (const typename R::Pack& p : turn) {
      uint32_t keep;
      all += __popc(split(p, keep));
    }
  });
  int64_t ties = t.ties[index * 2];
  ties -= ties_before(t.piece_ties + t.groups[group * kFields + kPieceTies], piece, sum_of_block(all));
  for (int begin = 0; begin < reader.packs; begin += kThreads) {
    const int pack = begin + static_cast<int>(threadIdx.x);
    typename R::Pack p;
    reader.load(pack, p);
    uint32_t keep;
    const uint32_t tied = split(p, keep);
    const int mine = __popc(tied);
    int64_t left = ties - (prefix_in_block(mine) - mine);
    for (uint32_t rest = tied; rest != 0 && left > 0; rest &= rest - 1, --left) keep &= ~(rest & (0u - rest));
    reader.store(pack, p, keep);
    ties -= sum_of_block(mine);
  }
}

template <int kWidth, bool kStrided>
__global__ void __launch_bounds__(kThreads, kStrided ? 3 : kWidth == 2 ? 5 : 4) apply_kernel(const __grid_constant__ Topk t, const int64_t* ids) {
  using F = Format<kWidth>;
  using R = Reader<kWidth, kStrided>;
  if (*t.gate != 0) {
    constexpr uint32_t kNan = 0x7fc00000u;
    if (blockIdx.x == 0) {
      for (int64_t i = threadIdx.x; i < t.group_count; i += kThreads) t.thresholds[i] = kNan;
    }
    return;
  }
  const auto pieces = static_cast<unsigned>(t.pieces);
  const int64_t index = ids[blockIdx.x / pieces], piece = blockIdx.x % pieces, first = piece * kPiece;
  const int64_t* segment = t.segments + index * kFields;
  const int64_t entries = min(kPiece, segment[kCount] - first);
  if (entries <= 0) return;
  const int64_t* state = t.state + segment[kGroup] * kStateFields;
  const int kind = static_cast<int>(segment[kKind]);
  const auto threshold = static_cast<uint32_t>(state[kThreshold]);
  auto bound = static_cast<uint32_t>(state[kBound]);
  int64_t ties = 0;
  bool cut = false;  // ties run out in one segment of a group at most: elsewhere all of them go, or none
  if (state[kSplit] != 0) {
    ties = t.ties[index * 2];
    cut = ties != 0 && ties != t.ties[index * 2 + 1];
    if (ties != 0 && !cut) bound = threshold + 1;
  }
  const uint32_t gap = F::gap(from_key(kind, bound));
  if (cut) return clear_some_ties<kWidth, kStrided>(t, index, piece);
  const R reader(t, segment, first, entries);
  each_turn(reader, [&](int begin, const auto& turn) {
    int pack = begin + static_cast<int>(threadIdx.x);
#pragma unroll
    for (const typename R::Pack& p : turn) {
      uint32_t magnitudes[R::kWords];
      R::magnitudes(p, magnitudes);
      reader.store(pack, p, p.keep() & at_least<kWidth>(magnitudes, gap));
      pack += kThreads;
    }
  });
}

// ---- launches -----------------------------------------------------------------------------------------------------

template <int kKind>
void launch_count(const Topk& t, const Class& members, void* stream) {
  const auto blocks = static_cast<unsigned>(members.count);
  const int64_t* ids = t.ids + members.first;
  if (members.strided) {
    LC_LAUNCH((count_kernel<kKind, true>), blocks, kThreads, stream)(t, ids);
  } else {
    LC_LAUNCH((count_kernel<kKind, false>), blocks, kThreads, stream)(t, ids);
  }
}

template <int kWidth>
void launch_apply(const Topk& t, const Class& members, void* stream) {
  const auto blocks = static_cast<unsigned>(members.count * t.pieces);
  const int64_t* ids = t.ids + members.first;
  if (members.strided) {
    LC_LAUNCH((apply_kernel<kWidth, true>), blocks, kThreads, stream)(t, ids);
  } else {
    LC_LAUNCH((apply_kernel<kWidth, false>), blocks, kThreads, stream)(t, ids);
  }
}

void count(const Topk& t, const Class& members, void* stream) {
  switch (members.kind) {
    case kWide: return launch_count<kWide>(t, members, stream);
    case kBfloat16: return launch_count<kBfloat16>(t, members, stream);
    case kFloat16: return launch_count<kFloat16>(t, members, stream);
    case kCommonBfloat16: return launch_count<kCommonBfloat16>(t, members, stream);
    default: return launch_count<kCommonFloat16>(t, members, stream);
  }
}

Topk addresses(const Plan& plan, const int64_t* tables, void* scratch, float* thresholds) {
  const Scratch at = scratch_of(plan.sizes);
  auto* memory = static_cast<char*>(scratch);
  const auto longs = [&](int64_t place) { return reinterpret_cast<int64_t*>(memory + place); };
  const auto words = [&](int64_t place) { return reinterpret_cast<uint32_t*>(memory + place); };
  Topk t;
  t.segments = tables;
  t.groups = t.segments + plan.sizes.segments * kFields;
  t.dims = t.groups + plan.sizes.groups * kFields;
  t.ids = t.dims + plan.dims * 2;
  t.parts = t.ids + plan.sizes.segments;
  t.gate = longs(at.gate);
  t.state = longs(at.state);
  t.sums = longs(at.sums);
  t.piece_ties = longs(at.piece_ties);
  t.ties = longs(at.ties);
  t.bins = words(at.bins);
  t.listed = words(at.listed);
  t.lists = words(at.lists);
  t.sample = words(at.sample);
  t.thresholds = reinterpret_cast<uint32_t*>(thresholds);
  t.segment_count = plan.sizes.segments;
  t.group_count = plan.sizes.groups;
  t.pieces = plan.pieces;
  t.counts = nullptr;
  t.lo = t.hi = t.shift = 0;
  return t;
}

}  // namespace
}  // namespace lc::cuda

struct lc_topk_plan {
  lc::topk::Plan plan;
};

using namespace lc::cuda;

int lc_topk_plan_create(const lc_weight* weights, int64_t count, int scope, int64_t segments, int64_t shortest,
                        lc_topk_plan** plan) {
  *plan = nullptr;
  if (!lc::plan::well_formed(weights, count) || scope < LC_TOPK_LAYER || scope > LC_TOPK_COUNT) return cudaErrorInvalidValue;
  try {
    Options options;
    options.common = scope == LC_TOPK_COUNT;
    if (shortest > 0) options.shortest = shortest;
    std::vector<Weight> list;
    for (int64_t i = 0; i < count; ++i) {
      const lc_weight& weight = weights[i];
      std::vector<lc::Dim> dims;
      for (int64_t d = 0; d < weight.dims; ++d) dims.push_back({weight.sizes[d], weight.strides[d]});
      list.push_back({reinterpret_cast<uintptr_t>(weight.values), reinterpret_cast<uintptr_t>(weight.mask),
                      static_cast<lc::Dtype>(weight.dtype), std::move(dims)});
    }
    *plan = new lc_topk_plan{make_plan(list, scope != LC_TOPK_LAYER, segments, options)};
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
  return cudaSuccess;
}

void lc_topk_plan_destroy(lc_topk_plan* plan) { delete plan; }

const int64_t* lc_topk_tables(const lc_topk_plan* plan, int64_t* count) {
  *count = static_cast<int64_t>(plan->plan.table.size());
  return plan->plan.table.data();
}

int64_t lc_topk_segments(const lc_topk_plan* plan) { return plan->plan.sizes.segments; }

int64_t lc_topk_scratch(const lc_topk_plan* plan) { return scratch_of(plan->plan.sizes).end; }

int lc_masked_topk(const lc_topk_plan* handle, const int64_t* tables, const int64_t* k, void* scratch, float* thresholds,
                   void* stream) {
  const Plan& plan = handle->plan;
  const Topk t = addresses(plan, tables, scratch, thresholds);
  const int64_t groups = plan.sizes.groups, rounds = rounds_of(plan, k);
  const auto queue = static_cast<cudaStream_t>(stream);
  const auto zeroed = static_cast<std::size_t>(scratch_of(plan.sizes).ties);
  if (const int error = cudaMemsetAsync(scratch, 0, zeroed, queue)) return error;
  if (const int error = cudaMemsetAsync(thresholds, 0, static_cast<std::size_t>(groups) * sizeof(float), queue)) return error;
  for (int64_t first = 0; rounds != 0 && first < groups; first += kGroupsAtOnce) {
    const int64_t last = std::min(groups, first + kGroupsAtOnce);
    SomeRanks some = {first, plan.first_part[static_cast<std::size_t>(first)], {}};
    for (int64_t group = first; group < last; ++group) some.of[group - first] = ranks_of(plan.group(group), k[group]);
    const auto blocks = static_cast<unsigned>(plan.first_part[static_cast<std::size_t>(last)] - some.first_part);
    LC_LAUNCH(bracket_kernel, blocks, kDrawers, stream)(t, some);
  }
  for (int64_t round = 0; round < std::max<int64_t>(1, rounds); ++round) {
    for (const Class& members : plan.classes) count(t, members, stream);
  }
  for (const Class& members : plan.classes) {
    members.kind == kWide ? launch_apply<4>(t, members, stream) : launch_apply<2>(t, members, stream);
  }
  return cudaGetLastError();
}

int lc_topk_count(const lc_topk_plan* handle, const int64_t* tables, int64_t lo, int64_t hi, int64_t* counts,
                  void* stream) {
  if (lo < 0 || hi <= lo || hi > lc::kCommonEnd) return cudaErrorInvalidValue;
  Topk t = addresses(handle->plan, tables, nullptr, nullptr);
  t.counts = counts;
  t.lo = lo;
  t.hi = hi;
  while ((hi - lo - 1) >> t.shift >= kBins) ++t.shift;
  for (const Class& members : handle->plan.classes) count(t, members, stream);
  return cudaGetLastError();
}

int lc_topk_outcome(const lc_topk_plan* plan, const int64_t* k, const void* scratch, void* stream, int64_t* index,
                    int64_t* kept, int* code) {
  std::unique_ptr<int64_t[]> head;
  const auto bytes = static_cast<std::size_t>(scratch_of(plan->plan.sizes).sums);
  try {
    head.reset(new int64_t[bytes / 8]);
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  if (const int error = cudaMemcpyAsync(head.get(), scratch, bytes, cudaMemcpyDeviceToHost, queue)) return error;
  if (const int error = cudaStreamSynchronize(queue)) return error;
  const Outcome outcome = outcome_of(plan->plan, k, head.get());
  *code = outcome.code;
  *index = outcome.index;
  *kept = outcome.kept;
  return cudaSuccess;
}
