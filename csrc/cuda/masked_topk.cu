// masked_topk_ on the GPU: R bytes of weights, M = R / 16 or R / 32 bytes of masks.
//
//   threshold T of a group: its k-th smallest kept magnitude. Cleared: magnitudes < T, and of those equal to T the
//   first k - #(magnitude < T) in row-major order, earlier tensors first.
//
// The passes, tables and scratch rows are those of kernels/masked_topk.py, which says why each is there; bytes moved:
// 16-bit types 2 R + 2 M + what changes (R + M at most), float32 3 R + 3 M + what changes.
// A block reads one segment in octets: 8 values, a byte of the mask. Compares are done on the packed words of an octet
// at once (bits.cuh) and give a byte of flags; only the few values inside the bracket are looked at one by one.
#include <type_traits>

#include "bits.cuh"
#include "device.cuh"
#include "launch.h"

namespace lc::cuda {
namespace {

constexpr int kFields = 8, kSample = 16384, kBins = 2048;  // as in topk_plan.py
constexpr int kThreads = 256;
constexpr uint32_t kNone = 0xffffffffu;

enum SegmentField { kAddress, kMask, kBegin, kCount, kDims, kKind, kInfinity, kGroup };
enum GroupField { kK, kFirst, kSegments, kSlot, kLow, kHigh, kEnd, kGroupKind };
enum StateField { kLo, kHi, kShift, kDone, kThreshold, kKeptInGroup };
enum ResultField { kKept, kBelow, kNan, kTies, kEqual };

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
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
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
    const int64_t other = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += other;
  }
  __syncthreads();
  if (lane == 31) parts[threadIdx.x / 32] = value;
  __syncthreads();
  for (unsigned warp = 0; warp < threadIdx.x / 32; ++warp) value += parts[warp];
  return value;
}

// ---- bracket ------------------------------------------------------------------------------------------------------

__device__ uint64_t random(uint32_t i, uint32_t salt) {  // Murmur3's last steps
  uint32_t h = (i + salt) * 0x9e3779b9u;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

__global__ void gather_kernel(const Topk t) {
  const int64_t* group = t.groups + int64_t(blockIdx.x) * kFields;
  const int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const int64_t segments = group[kSegments], slot = group[kSlot];
  const bool all = segments * slot <= kSample;
  const int64_t which = all ? i / slot : static_cast<int64_t>(random(i, 1) * segments >> 32);
  const int64_t at = all ? i % slot : static_cast<int64_t>(random(i, 65537) * slot >> 32);
  uint32_t key = kNone;
  const int64_t* segment = t.segments + (group[kFirst] + which) * kFields;
  if (which < segments && at < segment[kCount]) {
    const auto* mask = reinterpret_cast<const uint8_t*>(segment[kMask]);
    if (mask[at / 8] >> (at % 8) & 1) {
      const int64_t place = segment[kDims], offset = place == 0 ? at : offset_of(t.dims, place, segment[kBegin] + at);
      const int kind = static_cast<int>(segment[kKind]);
      key = kind == kWide ? reinterpret_cast<const uint32_t*>(segment[kAddress])[offset] & 0x7fffffffu
                          : to_key(kind, reinterpret_cast<const uint16_t*>(segment[kAddress])[offset] & 0x7fffu);
    }
  }
  t.sample[int64_t(blockIdx.x) * kSample + i] = key;
}

__global__ void __launch_bounds__(1024) bracket_kernel(const Topk t) {
  constexpr int kMine = kSample / 1024;
  __shared__ uint32_t totals[32];  // one per round: a warp may be one round ahead of another
  const int64_t* group = t.groups + int64_t(blockIdx.x) * kFields;
  if (threadIdx.x < 32) totals[threadIdx.x] = 0;
  __syncthreads();
  uint32_t keys[kMine], lo = 0, hi = 0;
  for (int i = 0; i < kMine; ++i) keys[i] = t.sample[int64_t(blockIdx.x) * kSample + i * 1024 + threadIdx.x];
  const int64_t low = group[kLow], high = group[kHigh];
  const auto total = [&](int round, uint32_t mine) {  // two counts of at most 16384, in the halves of a word
    const uint32_t sum = __reduce_add_sync(0xffffffffu, mine);
    if (threadIdx.x % 32 == 0) atomicAdd(&totals[round], sum);
    __syncthreads();
    return totals[round];
  };
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
  for (int i = 0; i < kMine; ++i) mine += keys[i] != kNone;
  const int64_t size = total(31, mine);
  if (threadIdx.x != 0) return;
  int64_t from = low >= 0 && low < size ? lo : 0;
  int64_t to = high < size ? int64_t(hi) + 1 : group[kEnd];
  if (to <= from) to = from + 1;
  if (group[kK] == 0) from = to = 0;
  int64_t* state = t.state + int64_t(blockIdx.x) * kFields;
  state[kLo] = from;
  state[kHi] = to;
  state[kShift] = shift_of(to > from ? to - from - 1 : 0);
}

// ---- octets -------------------------------------------------------------------------------------------------------

template <int kWidth, bool kStrided>
struct Reader {
  using F = Format<kWidth>;
  using Bits = typename std::conditional<kWidth == 2, uint16_t, uint32_t>::type;
  struct Octet {
    uint32_t words[F::kWords];
    uint32_t keep, valid;  // a bit per value
  };

  Bits* x;
  uint8_t* mask;
  const int64_t* dims;
  int64_t place, begin;
  int count;  // values

  __device__ Reader(const Topk& t, const int64_t* segment)
      : x(reinterpret_cast<Bits*>(segment[kAddress])),
        mask(reinterpret_cast<uint8_t*>(segment[kMask])),
        dims(t.dims),
        place(segment[kDims]),
        begin(segment[kBegin]),
        count(static_cast<int>(segment[kCount])) {}

  __device__ __forceinline__ Bits* entry(int octet, int i) const {
    return x + (kStrided ? offset_of(dims, place, begin + octet * 8 + i) : octet * 8 + i);
  }
  __device__ __forceinline__ void load(int octet, Octet& o) const {
    o.valid = 0xffu;
    if constexpr (kStrided) {
      const int left = count - octet * 8;
      if (left < 8) o.valid = (1u << left) - 1;
#pragma unroll
      for (int w = 0; w < F::kWords; ++w) o.words[w] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < left) o.words[i / F::kPerWord] |= static_cast<uint32_t>(__ldca(entry(octet, i))) << (16 * (i % F::kPerWord));
      }
    } else {
      const auto* vectors = reinterpret_cast<const uint4*>(x) + int64_t(octet) * (kWidth / 2);
#pragma unroll
      for (int v = 0; v < kWidth / 2; ++v) {
        const uint4 value = __ldca(vectors + v);  // says that the address is global, which a table cannot
        o.words[4 * v] = value.x;
        o.words[4 * v + 1] = value.y;
        o.words[4 * v + 2] = value.z;
        o.words[4 * v + 3] = value.w;
      }
    }
    o.keep = __ldca(mask + octet) & o.valid;
  }
  __device__ __forceinline__ void magnitudes(const Octet& o, uint32_t (&result)[F::kWords]) const {
#pragma unroll
    for (int w = 0; w < F::kWords; ++w) result[w] = o.words[w] & F::kMagnitude;
  }
  // Zeroes what has no bit in keep: writes the 16 bytes, or the entries, that change.
  __device__ __forceinline__ void store(int octet, const Octet& o, uint32_t keep) const {
    if constexpr (kStrided) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t bits = o.words[i / F::kPerWord] >> (16 * (i % F::kPerWord));
        if ((o.valid & ~keep) >> i & 1u && static_cast<Bits>(bits) != 0) __stwb(entry(octet, i), Bits(0));
      }
    } else {
      auto* vectors = reinterpret_cast<uint4*>(x) + int64_t(octet) * (kWidth / 2);
#pragma unroll
      for (int v = 0; v < kWidth / 2; ++v) {
        uint32_t words[4], changed = 0;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          words[w] = keep_only<kWidth>(o.words[4 * v + w], keep, 4 * v + w);
          changed |= words[w] ^ o.words[4 * v + w];
        }
        if (changed != 0) __stwb(vectors + v, make_uint4(words[0], words[1], words[2], words[3]));
      }
    }
  }
};

// ---- count --------------------------------------------------------------------------------------------------------

template <int kWidth, bool kStrided>
__global__ void __launch_bounds__(kThreads) count_kernel(const Topk t, const int64_t* ids) {
  using F = Format<kWidth>;
  using R = Reader<kWidth, kStrided>;
  constexpr int kUnroll = kStrided ? 1 : 8 / F::kWords * 2;  // 64 bytes per thread and turn, which ptxas does not keep in flight together
  __shared__ uint32_t bins[kBins];
  const int64_t index = ids[blockIdx.x];
  const int64_t* segment = t.segments + index * kFields;
  const int64_t* state = t.state + segment[kGroup] * kFields;
  if (state[kDone] != 0) return;
  const auto lo = static_cast<uint32_t>(state[kLo]), hi = static_cast<uint32_t>(state[kHi]);
  const int shift = static_cast<int>(state[kShift]), kind = static_cast<int>(segment[kKind]);
  const int used = hi > lo ? static_cast<int>((hi - lo - 1) >> shift) + 1 : 1;
  // Copies of each bin for the lanes of a warp: with few bins, as for 16-bit types, no two lanes meet at one address.
  int copies = 1;
  while (copies < 32 && used * copies * 2 <= kBins) copies *= 2;
  for (int i = threadIdx.x; i < used * copies; i += kThreads) bins[i] = 0;
  __syncthreads();

  const R reader(t, segment);
  const uint32_t lo_gap = F::gap(from_key(kind, lo)), hi_gap = F::gap(from_key(kind, hi));
  // A segment knows infinity as a key; its type's own is above every finite bound.
  const uint32_t nan_gap = F::gap(from_key(kind, static_cast<uint32_t>(segment[kInfinity])) + 1);
  uint32_t kept = 0, below = 0, suspect = 0;
  const auto count = [&](int octet, const typename R::Octet& o) {
    uint32_t magnitudes[F::kWords];
    reader.magnitudes(o, magnitudes);
#pragma unroll
    for (int w = 0; w < F::kWords; ++w) suspect |= magnitudes[w] + nan_gap;
    const uint32_t from_lo = at_least<kWidth>(magnitudes, lo_gap), from_hi = at_least<kWidth>(magnitudes, hi_gap);
    kept += __popc(o.keep);
    below += __popc(o.keep & ~from_lo);
    for (uint32_t inside = o.keep & from_lo & ~from_hi; inside != 0; inside &= inside - 1) {
      // Read again, from the first-level cache: registers cannot be indexed.
      const uint32_t bits = __ldca(reader.entry(octet, __ffs(static_cast<int>(inside)) - 1));
      const uint32_t bin = (to_key(kind, bits & (F::kTop - 1)) - lo) >> shift;
      atomicAdd(&bins[bin * copies + (threadIdx.x & (copies - 1))], 1u);
    }
  };
  const int octets = (reader.count + 7) / 8;
  int octet = static_cast<int>(threadIdx.x);
  for (; octet + (kUnroll - 1) * kThreads < octets; octet += kUnroll * kThreads) {
    typename R::Octet o[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) reader.load(octet + u * kThreads, o[u]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) count(octet + u * kThreads, o[u]);
  }
  for (; octet < octets; octet += kThreads) {
    typename R::Octet o;
    reader.load(octet, o);
    count(octet, o);
  }

  const bool nan = __syncthreads_or((suspect & F::kSign) != 0);
  const int64_t all_kept = sum_of_block(kept), all_below = sum_of_block(below);
  for (int bin = threadIdx.x; bin < used; bin += kThreads) {
    uint32_t sum = 0;
    for (int copy = 0; copy < copies; ++copy) sum += bins[bin * copies + copy];
    t.bins[index * kBins + bin] = sum;
  }
  if (threadIdx.x != 0) return;
  int64_t* result = t.result + index * kFields;
  result[kKept] = all_kept;
  result[kBelow] = all_below;
  result[kNan] = nan;
  if (nan) atomicExch(reinterpret_cast<unsigned long long*>(t.gate), 1ull);
}

// ---- select -------------------------------------------------------------------------------------------------------

constexpr int kSumColumns = 32, kSumRows = 32;

__global__ void __launch_bounds__(kSumColumns* kSumRows) sums_kernel(const Topk t) {
  __shared__ int64_t parts[kSumRows][kSumColumns + 1];
  const int64_t* group = t.groups + int64_t(blockIdx.x) * kFields;
  const int64_t* state = t.state + int64_t(blockIdx.x) * kFields;
  const int64_t used = ((state[kHi] - state[kLo] - 1) >> state[kShift]) + 1;
  if (state[kDone] != 0 || blockIdx.y * kSumColumns >= used) return;
  const int column = static_cast<int>(threadIdx.x) % kSumColumns, row = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t bin = blockIdx.y * kSumColumns + column, end = group[kFirst] + group[kSegments];
  int64_t sum = 0;
  for (int64_t segment = group[kFirst] + row; segment < end; segment += kSumRows) {
    if (bin < used) sum += t.bins[segment * kBins + bin];
  }
  parts[row][column] = sum;
  __syncthreads();
  if (row != 0) return;
  for (int other = 1; other < kSumRows; ++other) sum += parts[other][column];
  t.sums[int64_t(blockIdx.x) * kBins + bin] = sum;
}

__global__ void __launch_bounds__(kThreads) select_kernel(const Topk t) {
  constexpr int kMine = kBins / kThreads;  // neighbouring bins of a thread
  __shared__ int64_t found[2];             // the bin that holds T, and the rank of T in it
  const int64_t* group = t.groups + int64_t(blockIdx.x) * kFields;
  int64_t* state = t.state + int64_t(blockIdx.x) * kFields;
  if (state[kDone] != 0) return;
  const int64_t k = group[kK], first = group[kFirst], end = first + group[kSegments];
  const int64_t lo = state[kLo], hi = state[kHi], shift = state[kShift];
  int64_t kept = 0, below = 0;
  for (int64_t segment = first + threadIdx.x; segment < end; segment += kThreads) {
    kept += t.result[segment * kFields + kKept];
    below += t.result[segment * kFields + kBelow];
  }
  kept = sum_of_block(kept);
  int64_t rank = k - sum_of_block(below);
  if (threadIdx.x == 0) state[kKeptInGroup] = kept;
  if (k == 0 || k > kept) {
    if (threadIdx.x == 0) {
      state[kDone] = 1;
      if (k > kept) atomicExch(reinterpret_cast<unsigned long long*>(t.gate), 1ull);
    }
    return;
  }
  int64_t sums[kMine], mine = 0;
  for (int i = 0; i < kMine; ++i) {
    const int64_t bin = int64_t(threadIdx.x) * kMine + i;
    sums[i] = bin <= (hi - lo - 1) >> shift ? t.sums[int64_t(blockIdx.x) * kBins + bin] : 0;
    mine += sums[i];
  }
  const int64_t up_to = prefix_in_block(mine), total = sum_of_block(mine);
  if (rank < 1 || rank > total) {  // the bracket missed
    if (threadIdx.x == 0) {
      state[kLo] = 0;
      state[kHi] = group[kEnd];
      state[kShift] = shift_of(group[kEnd] - 1);
    }
    return;
  }
  int64_t before = up_to - mine;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (before < rank && rank <= before + sums[i]) {
      found[0] = int64_t(threadIdx.x) * kMine + i;
      found[1] = rank - before;
    }
    before += sums[i];
  }
  __syncthreads();
  const int64_t bin = found[0], from = lo + (bin << shift);
  rank = found[1];
  if (shift != 0) {
    if (threadIdx.x == 0) {
      const int64_t to = min(hi, from + (int64_t(1) << shift));
      state[kLo] = from;
      state[kHi] = to;
      state[kShift] = shift_of(to - from - 1);
    }
    return;
  }
  if (threadIdx.x == 0) {
    state[kDone] = 1;
    state[kThreshold] = from;
    t.thresholds[blockIdx.x] = to_key(static_cast<int>(group[kGroupKind]), static_cast<uint32_t>(from));
  }
  // Deal the ties to the segments in order.
  for (int64_t begin = first; begin < end; begin += kThreads) {
    const int64_t segment = begin + threadIdx.x;
    const int64_t equal = segment < end ? t.bins[segment * kBins + bin] : 0;
    const int64_t earlier = prefix_in_block(equal) - equal;
    if (segment < end) {
      t.result[segment * kFields + kTies] = max(int64_t(0), min(rank - earlier, equal));
      t.result[segment * kFields + kEqual] = equal;
    }
    rank -= sum_of_block(equal);
  }
}

// ---- apply --------------------------------------------------------------------------------------------------------

template <int kWidth, bool kStrided>
__global__ void __launch_bounds__(kThreads) apply_kernel(const Topk t, const int64_t* ids) {
  using F = Format<kWidth>;
  using R = Reader<kWidth, kStrided>;
  constexpr int kUnroll = kStrided ? 1 : 8 / F::kWords * 2;
  if (*t.gate != 0) return;
  const int64_t index = ids[blockIdx.x];
  const int64_t* segment = t.segments + index * kFields;
  const int64_t* state = t.state + segment[kGroup] * kFields;
  const int kind = static_cast<int>(segment[kKind]);
  const auto threshold = static_cast<uint32_t>(state[kThreshold]);
  int64_t ties = t.result[index * kFields + kTies];
  // Ties run out in one segment of a group at most: elsewhere all of them go, or none.
  const bool cut = ties != 0 && ties != t.result[index * kFields + kEqual];
  const uint32_t tie_gap = F::gap(from_key(kind, threshold)), over_gap = F::gap(from_key(kind, threshold + 1));
  const uint32_t gap = ties != 0 && !cut ? over_gap : tie_gap;
  const R reader(t, segment);
  const int octets = (reader.count + 7) / 8;
  const auto clear = [&](int octet, const typename R::Octet& o, uint32_t drop) {
    if (drop != 0) __stwb(reader.mask + octet, static_cast<uint8_t>(__ldca(reader.mask + octet) & ~drop));
    reader.store(octet, o, o.keep & ~drop);
  };
  int octet = static_cast<int>(threadIdx.x);
  if (cut) {
    for (int begin = 0; begin < octets; begin += kThreads) {
      octet = begin + static_cast<int>(threadIdx.x);
      typename R::Octet o;
      uint32_t drop = 0, tied = 0;
      if (octet < octets) {
        reader.load(octet, o);
        uint32_t magnitudes[F::kWords];
        reader.magnitudes(o, magnitudes);
        const uint32_t from = at_least<kWidth>(magnitudes, tie_gap);
        drop = o.keep & ~from;
        tied = o.keep & from & ~at_least<kWidth>(magnitudes, over_gap);
      }
      const int mine = __popc(tied);
      int64_t left = ties - (prefix_in_block(mine) - mine);
      for (uint32_t rest = tied; rest != 0 && left > 0; rest &= rest - 1, --left) drop |= rest & (0u - rest);
      if (octet < octets) clear(octet, o, drop);
      ties -= sum_of_block(mine);
    }
    return;
  }
  const auto drop_of = [&](const typename R::Octet& o) {
    uint32_t magnitudes[F::kWords];
    reader.magnitudes(o, magnitudes);
    return o.keep & ~at_least<kWidth>(magnitudes, gap);
  };
  for (; octet + (kUnroll - 1) * kThreads < octets; octet += kUnroll * kThreads) {
    typename R::Octet o[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) reader.load(octet + u * kThreads, o[u]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) clear(octet + u * kThreads, o[u], drop_of(o[u]));
  }
  for (; octet < octets; octet += kThreads) {
    typename R::Octet o;
    reader.load(octet, o);
    clear(octet, o, drop_of(o));
  }
}

// Calls launch(width, strided) with both as compile-time constants.
template <class Launch>
int each_class(const Class& members, const Launch& launch) {
  const std::integral_constant<int, 2> narrow;
  const std::integral_constant<int, 4> wide;
  if (members.width == 2) {
    members.strided ? launch(narrow, std::true_type()) : launch(narrow, std::false_type());
  } else {
    members.strided ? launch(wide, std::true_type()) : launch(wide, std::false_type());
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace lc::cuda

using namespace lc::cuda;

int lc_topk_bracket(const Topk* t, void* stream) {
  const auto groups = static_cast<unsigned>(t->group_count);
  LC_LAUNCH(gather_kernel, dim3(groups, kSample / kThreads), kThreads, stream)(*t);
  LC_LAUNCH(bracket_kernel, groups, 1024, stream)(*t);
  return cudaGetLastError();
}

int lc_topk_count(const Topk* t, const Class* members, void* stream) {
  return each_class(*members, [&](auto width, auto strided) {
    LC_LAUNCH((count_kernel<width(), strided()>), static_cast<unsigned>(members->count), kThreads, stream)
    (*t, t->ids + members->first);
  });
}

int lc_topk_select(const Topk* t, void* stream) {
  const auto groups = static_cast<unsigned>(t->group_count);
  LC_LAUNCH(sums_kernel, dim3(groups, kBins / kSumColumns), kSumColumns * kSumRows, stream)(*t);
  LC_LAUNCH(select_kernel, groups, kThreads, stream)(*t);
  return cudaGetLastError();
}

int lc_topk_apply(const Topk* t, const Class* members, void* stream) {
  return each_class(*members, [&](auto width, auto strided) {
    LC_LAUNCH((apply_kernel<width(), strided()>), static_cast<unsigned>(members->count), kThreads, stream)
    (*t, t->ids + members->first);
  });
}
