// The innermost loops. isa.cpp includes this file once per instruction set, inside a namespace of its own: only
// plain loops and intrinsics here, nothing from the standard library that a linker could share between the sets.

constexpr int64_t kBlock = 64;     // entries per word of keep-bits
constexpr int64_t kRun = 8192;     // values per inner loop of count_run: lanes of 16 bits cannot wrap

template <class U>
constexpr U kSign = U(U(1) << (8 * sizeof(U) - 1));
template <class U>
struct SignedOf;
template <>
struct SignedOf<uint16_t> {
  using type = int16_t;
};
template <>
struct SignedOf<uint32_t> {
  using type = int32_t;
};
template <>
struct SignedOf<uint64_t> {  // any_above's
  using type = int64_t;
};
template <class U>
using Signed = typename SignedOf<U>::type;

// ---- sign_histogram: nonzero and positive are counted; the rest follows -----------------------------------------

template <class U>
void subtract_nans(const U* x, int64_t n, U infinity, U upper, SignCounts* counts) {
  for (int64_t i = 0; i < n; ++i) {
    if (U(x[i] & U(~kSign<U>)) <= infinity) continue;
    counts->nan += 1;
    if (x[i] & kSign<U>) continue;
    counts->positive -= 1;
    counts->upper -= upper != 0;
  }
}

// Vectors are spelled out: GCC 12 gets the plain loop of count_rows wrong for 16-bit values (a compare's all-ones
// mask is added where it should be subtracted).
constexpr int kVectorBytes = LC_VECTOR_BYTES;

template <class U>
struct VectorOf {
  typedef U type __attribute__((vector_size(kVectorBytes)));
  typedef Signed<U> signed_type __attribute__((vector_size(kVectorBytes)));
};
template <class U>
using Vector = typename VectorOf<U>::type;
template <class U>
constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(U));

template <class U>
inline Vector<U> load(const U* x) {
  Vector<U> value;
  __builtin_memcpy(&value, x, sizeof value);
  return value;
}

// The first `count` lanes, the rest 0: which counts as nothing.
template <class U>
inline Vector<U> load_some(const U* x, int64_t count) {
#if LC_VECTOR_BYTES == 64
  const uint64_t lanes = (uint64_t(1) << count) - 1;
  return (Vector<U>)(sizeof(U) == 2 ? _mm512_maskz_loadu_epi16(__mmask32(lanes), x)
                                    : _mm512_maskz_loadu_epi32(__mmask16(lanes), x));
#else
  Vector<U> value{};
  __builtin_memcpy(&value, x, static_cast<unsigned long>(count * int64_t(sizeof(U))));
  return value;
#endif
}

template <class U>
inline void add_to(U* counters, Vector<U> value) {
  value += load(counters);
  __builtin_memcpy(counters, &value, sizeof value);
}

template <class U>
inline void add_some(U* counters, Vector<U> value, int64_t count) {
  value += load_some(counters, count);
  __builtin_memcpy(counters, &value, static_cast<unsigned long>(count * int64_t(sizeof(U))));
}

// The counting instructions. With AVX-512 a compare gives a mask, which only two of four pipes make: so only one of
// the two counts uses it (a tenth faster in cache), as one masked subtraction where GCC makes two of a compare and a
// subtraction.
#if LC_VECTOR_BYTES == 64

template <class U>
inline void count_if_nonzero(Vector<U>* counters, Vector<U> magnitude) {
  const __m512i x = (__m512i)magnitude;  // the masked forms: GCC 12 warns of the plain ones' own undefined operand
  *counters += (Vector<U>)(sizeof(U) == 2 ? _mm512_mask_min_epu16(x, __mmask32(-1), x, _mm512_set1_epi16(1))
                                          : _mm512_mask_min_epu32(x, __mmask16(-1), x, _mm512_set1_epi32(1)));
}

template <class U>
inline void count_if_at_least(Vector<U>* counters, Vector<U> value, U bound) {  // as signed integers
  const __m512i x = (__m512i)value, all = _mm512_set1_epi32(-1);
  if constexpr (sizeof(U) == 2) {
    const __mmask32 hit = _mm512_cmpge_epi16_mask(x, _mm512_set1_epi16(Signed<U>(bound)));
    *counters = (Vector<U>)_mm512_mask_sub_epi16((__m512i)*counters, hit, (__m512i)*counters, all);
  } else {
    const __mmask16 hit = _mm512_cmpge_epi32_mask(x, _mm512_set1_epi32(Signed<U>(bound)));
    *counters = (Vector<U>)_mm512_mask_sub_epi32((__m512i)*counters, hit, (__m512i)*counters, all);
  }
}

#else

template <class U>
inline void count_if_at_least(Vector<U>* counters, Vector<U> value, U bound) {
  // Greater, as SSE2 and AVX2 have no other: no bound is 0. A true compare is -1.
  *counters -= (Vector<U>)((typename VectorOf<U>::signed_type)value > Signed<U>(bound - 1));
}

template <class U>
inline void count_if_nonzero(Vector<U>* counters, Vector<U> magnitude) {
  count_if_at_least<U>(counters, magnitude, U(1));
}

#endif

template <class U>
inline Vector<U> maximum(Vector<U> a, Vector<U> b) {  // of magnitudes
#if LC_VECTOR_BYTES == 64
  const __m512i x = (__m512i)a, y = (__m512i)b;
  return (Vector<U>)(sizeof(U) == 2 ? _mm512_mask_max_epi16(x, __mmask32(-1), x, y)
                                    : _mm512_mask_max_epi32(x, __mmask16(-1), x, y));
#elif LC_VECTOR_BYTES == 32
  const __m256i x = (__m256i)a, y = (__m256i)b;
  return (Vector<U>)(sizeof(U) == 2 ? _mm256_max_epi16(x, y) : _mm256_max_epi32(x, y));
#else
  using S = typename VectorOf<U>::signed_type;
  return (S)a > (S)b ? a : b;
#endif
}

template <class U, bool kUpper>
struct Tally {
  Vector<U> nonzero{}, positive{}, above{}, top{};

  inline void count(Vector<U> value, U upper) {
    const Vector<U> magnitude = value & U(~kSign<U>);
    count_if_nonzero<U>(&nonzero, magnitude);
    count_if_at_least<U>(&positive, value, U(1));
    if (kUpper) count_if_at_least<U>(&above, value, upper);
    top = maximum<U>(top, magnitude);
  }
};

// Of counts that hold at most kRun together. Once per run, so in halves: lane by lane it cost as
// much as 20 vectors of values.
template <class U>
inline int64_t sum(Vector<U> value) {
  Vector<uint32_t> pairs = (Vector<uint32_t>)value;
  if (sizeof(U) == 2) pairs = (pairs & 0xffffu) + (pairs >> 16);
  typedef uint32_t Quarter __attribute__((vector_size(16)));
  Quarter parts[kVectorBytes / 16], total{};
  __builtin_memcpy(parts, &pairs, sizeof parts);
  for (const Quarter part : parts) total += part;
  return total[0] + total[1] + total[2] + total[3];
}

template <class U>
inline bool any_above(Vector<U> magnitude, U bound) {
#if LC_VECTOR_BYTES == 64
  const __m512i x = (__m512i)magnitude;
  return sizeof(U) == 2 ? _mm512_cmpgt_epu16_mask(x, _mm512_set1_epi16(short(bound))) != 0
                        : _mm512_cmpgt_epu32_mask(x, _mm512_set1_epi32(int(bound))) != 0;
#else
  const auto above = (Vector<uint64_t>)(magnitude > bound);
  uint64_t any = 0;
  for (int i = 0; i < kVectorBytes / 8; ++i) any |= above[i];
  return any != 0;
#endif
}

template <class U, bool kUpper>
void count_run_as(const U* x, int64_t n, U infinity, U upper, SignCounts* counts) {
  while (n > 0) {
    const int64_t m = n < kRun ? n : kRun;
    Tally<U, kUpper> tally, other;  // two, so that one compare does not wait for the last
    int64_t i = 0;
    for (; i + 2 * kLanes<U> <= m; i += 2 * kLanes<U>) {
      tally.count(load(x + i), upper);
      other.count(load(x + i + kLanes<U>), upper);
    }
    for (; i < m; i += kLanes<U>) {
      tally.count(m - i < kLanes<U> ? load_some(x + i, m - i) : load(x + i), upper);
    }
    counts->nonzero += sum<U>(tally.nonzero + other.nonzero);
    counts->positive += sum<U>(tally.positive + other.positive);
    if (kUpper) counts->upper += sum<U>(tally.above + other.above);
    if (any_above<U>(maximum<U>(tally.top, other.top), infinity)) subtract_nans(x, m, infinity, upper, counts);
    x += m;
    n -= m;
  }
}

template <class U>
void count_run(const U* x, int64_t n, U infinity, U upper, SignCounts* counts) {
  if (upper) {
    count_run_as<U, true>(x, n, infinity, upper, counts);
  } else {
    count_run_as<U, false>(x, n, infinity, upper, counts);
  }
}

template <class U, int kRows, bool kUpper>
bool count_group(const U* x, int64_t stride, int64_t n, U infinity, U upper, U* nonzero, U* positive, U* upper_counts) {
  Vector<U> top{};
  int64_t i = 0;
  for (; i + kLanes<U> <= n; i += kLanes<U>) {
    Tally<U, kUpper> tally;
    tally.top = top;
#pragma GCC unroll 16
    for (int j = 0; j < kRows; ++j) tally.count(load(x + j * stride + i), upper);
    add_to(nonzero + i, tally.nonzero);
    add_to(positive + i, tally.positive);
    if (kUpper) add_to(upper_counts + i, tally.above);
    top = tally.top;
  }
  if (const int64_t rest = n - i) {
    Tally<U, kUpper> tally;
    tally.top = top;
    for (int j = 0; j < kRows; ++j) tally.count(load_some(x + j * stride + i, rest), upper);
    add_some(nonzero + i, tally.nonzero, rest);
    add_some(positive + i, tally.positive, rest);
    if (kUpper) add_some(upper_counts + i, tally.above, rest);
    top = tally.top;
  }
  return any_above<U>(top, infinity);
}

template <class U>
void move_nans(const U* x, int64_t stride, int64_t rows, int64_t n, U infinity, U upper, U* positive, U* nan,
               U* upper_counts) {
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      const U value = x[j * stride + i];
      if (U(value & U(~kSign<U>)) <= infinity) continue;
      nan[i] += 1;
      if (value & kSign<U>) continue;
      positive[i] -= 1;
      if (upper) upper_counts[i] -= 1;
    }
  }
}

// Whole groups of kRows rows; what is left, half as many at a time.
template <class U, int kRows, bool kUpper>
void count_rows_by(const U* x, int64_t stride, int64_t rows, int64_t n, U infinity, U upper, U* nonzero, U* positive,
                   U* nan, U* upper_counts) {
  for (; rows >= kRows; rows -= kRows, x += kRows * stride) {
    if (count_group<U, kRows, kUpper>(x, stride, n, infinity, upper, nonzero, positive, upper_counts)) {
      move_nans(x, stride, kRows, n, infinity, upper, positive, nan, upper_counts);
    }
  }
  if constexpr (kRows > 1) {
    count_rows_by<U, kRows / 2, kUpper>(x, stride, rows, n, infinity, upper, nonzero, positive, nan, upper_counts);
  }
}

template <class U>
void count_rows(const U* x, int64_t stride, int64_t rows, int64_t n, U infinity, U upper, U* nonzero, U* positive,
                U* nan, U* upper_counts) {
  (upper ? count_rows_by<U, kRowGroup, true> : count_rows_by<U, kRowGroup, false>)(
      x, stride, rows, n, infinity, upper, nonzero, positive, nan, upper_counts);
}

// ---- masked_topk: 64 values against 64 keep-bits at a time ----------------------------------------------------

struct Classes {
  uint64_t below, under, nonzero;  // bit i: magnitude < lo, < hi; any bit set
};

#if LC_VECTOR_BYTES == 64

inline __mmask16 less(__m512i a, __m512i b, uint32_t) { return _mm512_cmplt_epu32_mask(a, b); }
inline __mmask32 less(__m512i a, __m512i b, uint16_t) { return _mm512_cmplt_epu16_mask(a, b); }
inline __mmask16 test(__m512i a, uint32_t) { return _mm512_test_epi32_mask(a, a); }
inline __mmask32 test(__m512i a, uint16_t) { return _mm512_test_epi16_mask(a, a); }
// Through a general register: GCC 12 may spill a mask in 2 bytes, reload 8 and take them for widened. Seen where a call
// lies between, as ThreadSanitizer's do: single-threaded kernels counted wrong.
inline uint64_t bits_of(uint32_t mask) {
  __asm__("" : "+r"(mask));
  return mask;
}
inline __m512i fill(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
inline __m512i fill(uint16_t value) { return _mm512_set1_epi16(static_cast<short>(value)); }
inline __m512i where(__m512i x, __mmask16 keep, uint32_t) { return _mm512_maskz_mov_epi32(keep, x); }
inline __m512i where(__m512i x, __mmask32 keep, uint16_t) { return _mm512_maskz_mov_epi16(keep, x); }

// top: the largest magnitude in each lane, in and out. A compare with infinity per vector took more, and only a NaN
// in the whole piece is asked for.
template <class U>
inline Classes classify(const U* x, U lo, U hi, Vector<U>* top) {
  constexpr int kStep = 64 / sizeof(U);
  const __m512i lows = fill(lo), highs = fill(hi);
  Classes result{0, 0, 0};
#pragma GCC unroll 4
  for (int i = 0; i < 64; i += kStep) {
    const Vector<U> value = load(x + i), magnitude = value & U(~kSign<U>);
    result.below |= bits_of(less((__m512i)magnitude, lows, U())) << i;
    result.under |= bits_of(less((__m512i)magnitude, highs, U())) << i;
    result.nonzero |= bits_of(test((__m512i)value, U())) << i;
    *top = maximum<U>(*top, magnitude);
  }
  return result;
}

// Whole vectors are stored: masked stores of 16 bits are several times slower, and the block is this thread's alone.
template <class U>
inline void keep_only(U* x, uint64_t keep) {
  constexpr int kStep = 64 / sizeof(U);
  using Mask = decltype(test(__m512i(), U()));
#pragma GCC unroll 4
  for (int i = 0; i < 64; i += kStep) {
    _mm512_storeu_si512(x + i, where(_mm512_loadu_si512(x + i), Mask(keep >> i), U()));
  }
}

// Appends the magnitudes chosen, in order; may write 16 more. In steps of 16 lanes of 32 bits, which every AVX-512 has.
template <class U>
inline void append(const U* x, uint64_t chosen, U* found) {
#pragma GCC unroll 4
  for (int i = 0; i < 64; i += 16) {
    const auto mask = __mmask16(chosen >> i);
    if constexpr (sizeof(U) == 4) {
      const __m512i value = _mm512_and_si512(_mm512_loadu_si512(x + i), fill(U(~kSign<U>)));
      _mm512_storeu_si512(found, _mm512_maskz_compress_epi32(mask, value));
    } else {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
      const __m512i value = _mm512_and_si512(_mm512_maskz_cvtepu16_epi32(mask, half), fill(uint32_t(0x7fff)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(found),
                          _mm512_maskz_cvtepi32_epi16(__mmask16(-1), _mm512_maskz_compress_epi32(mask, value)));
    }
    found += __builtin_popcount(mask);
  }
}

#else

// Eight bytes of 0 or 1 to eight bits.
inline uint64_t gather_bits(uint64_t bytes) { return (bytes * 0x0102040810204080u) >> 56; }

template <class U>
inline Classes classify(const U* x, U lo, U hi, Vector<U>* top) {
  // Magnitudes are below the sign bit, so signed compares, which SSE2 and AVX2 have, do.
  using S = Signed<U>;
  alignas(64) uint8_t flags[64];
  for (int i = 0; i < 64; ++i) {
    const S magnitude = S(x[i] & U(~kSign<U>));
    flags[i] = uint8_t((magnitude < S(lo) ? 1 : 0) | (magnitude < S(hi) ? 2 : 0) | (x[i] != 0 ? 4 : 0));
  }
  for (int i = 0; i < 64; i += kLanes<U>) *top = maximum<U>(*top, load(x + i) & U(~kSign<U>));
  Classes result{0, 0, 0};
#if LC_VECTOR_BYTES == 32
  const auto column = [](__m256i bytes, int shift) {
    return uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(bytes, shift))));
  };
  const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(flags));
  const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(flags + 32));
  result.below = column(first, 7) | column(second, 7) << 32;
  result.under = column(first, 6) | column(second, 6) << 32;
  result.nonzero = column(first, 5) | column(second, 5) << 32;
#else
  constexpr uint64_t kOnes = 0x0101010101010101u;
  for (int i = 0; i < 64; i += 8) {
    uint64_t bytes;
    __builtin_memcpy(&bytes, flags + i, 8);
    result.below |= gather_bits(bytes & kOnes) << i;
    result.under |= gather_bits(bytes >> 1 & kOnes) << i;
    result.nonzero |= gather_bits(bytes >> 2 & kOnes) << i;
  }
#endif
  return result;
}

template <class U>
inline void keep_only(U* x, uint64_t keep) {
  constexpr int kBits = 8 * sizeof(U);
  for (int part = 0; part < 64; part += kBits) {
    const U bits = U(keep >> part);
    for (int i = 0; i < kBits; ++i) {
      // A mask from a compare with a constant vector: SSE2 and AVX2 have no per-lane shift of 16 bits.
      const U lane = (bits & U(U(1) << i)) ? U(~U(0)) : U(0);
      x[part + i] &= lane;
    }
  }
}

template <class U>
inline void append(const U* x, uint64_t chosen, U* found) {
  for (; chosen; chosen &= chosen - 1) *found++ = x[__builtin_ctzll(chosen)] & U(~kSign<U>);
}

#endif

inline uint64_t load_bits(const uint8_t* bytes, int64_t count) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, bytes, static_cast<unsigned long>(count));
  return bits;
}

template <class U>
inline void scan_block(const U* x, uint64_t keep, U lo, U hi, U** found, Vector<U>* top, Scan* result) {
  const Classes classes = classify(x, lo, hi, top);
  result->below += __builtin_popcountll(classes.below & keep);
  uint64_t inside = classes.under & ~classes.below & keep;
  const int count = __builtin_popcountll(inside);
  result->inside += count;
  if (*found == nullptr) return;
  if (count > 4) {
    append(x, inside, *found);
  } else {
    // Usually: writing four without a branch costs less than one misprediction. (Bit 63 stands in for none.)
    constexpr uint64_t kLast = uint64_t(1) << 63;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, inside &= inside - 1) (*found)[i] = x[__builtin_ctzll(inside | kLast)] & U(~kSign<U>);
  }
  *found += count;
}

template <class U>
void scan(const U* x, const uint8_t* keep, int64_t n, U lo, U hi, U infinity, U* found, Scan* result) {
  Scan local = *result;
  Vector<U> top{};
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) scan_block(x + i, load_bits(keep + i / 8, 8), lo, hi, &found, &top, &local);
  if (const int64_t rest = n - i) {
    U tail[kBlock] = {};
    __builtin_memcpy(tail, x + i, static_cast<unsigned long>(rest) * sizeof(U));
    const uint64_t valid = (uint64_t(1) << rest) - 1;
    scan_block(tail, load_bits(keep + i / 8, (rest + 7) / 8) & valid, lo, hi, &found, &top, &local);
  }
  local.nan |= any_above<U>(top, infinity);
  *result = local;
}

// Returns the keep-bits after clearing; *changed is set if a value was zeroed.
template <class U>
inline uint64_t apply_block(U* x, uint64_t keep, U lo, U hi, int64_t* ties, bool* changed) {
  Vector<U> top{};  // not asked for: the compiler drops it
  const Classes classes = classify(x, lo, hi, &top);
  uint64_t tied = classes.under & ~classes.below & keep;
  if (tied) {
    int64_t count = __builtin_popcountll(tied);
    if (count > *ties) {
      uint64_t rest = tied;
      for (int64_t i = 0; i < *ties; ++i) rest &= rest - 1;
      tied ^= rest;
      count = *ties;
    }
    *ties -= count;
  }
  keep &= ~(classes.below | tied);
  if (classes.nonzero & ~keep) {
    keep_only(x, keep);
    *changed = true;
  }
  return keep;
}

template <class U>
bool apply(U* x, uint8_t* keep, int64_t n, U lo, U hi, int64_t* ties) {
  bool changed = false;
  int64_t left = *ties, i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    const uint64_t before = load_bits(keep + i / 8, 8);
    const uint64_t after = apply_block(x + i, before, lo, hi, &left, &changed);
    if (after != before) __builtin_memcpy(keep + i / 8, &after, 8);
  }
  if (const int64_t rest = n - i) {
    U tail[kBlock] = {};
    __builtin_memcpy(tail, x + i, static_cast<unsigned long>(rest) * sizeof(U));
    const uint64_t valid = (uint64_t(1) << rest) - 1;
    const uint64_t before = load_bits(keep + i / 8, (rest + 7) / 8);
    const uint64_t after = apply_block(tail, before & valid, lo, hi, &left, &changed) | (before & ~valid);
    __builtin_memcpy(x + i, tail, static_cast<unsigned long>(rest) * sizeof(U));
    __builtin_memcpy(keep + i / 8, &after, static_cast<unsigned long>((rest + 7) / 8));
  }
  *ties = left;
  return changed;
}

// ---- sign_hashes ------------------------------------------------------------------------------------------------

// Bit i: 0 < x[i] <= infinity; as integers without a sign, where x[i] - 1 is huge for a zero and a negative.
template <class U>
inline uint64_t positive_bits(const U* x, U infinity) {
#if LC_VECTOR_BYTES == 64
  uint64_t bits = 0;
#pragma GCC unroll 4
  for (int i = 0; i < 64; i += kLanes<U>) {
    bits |= bits_of(less((__m512i)(load(x + i) - U(1)), fill(infinity), U())) << i;
  }
  return bits;
#else
  alignas(64) uint8_t flags[64];
  for (int i = 0; i < 64; ++i) flags[i] = U(x[i] - 1) < infinity ? 1 : 0;
#if LC_VECTOR_BYTES == 32
  const auto half = [](const uint8_t* bytes) {
    const __m256i value = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
    return uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(value, 7))));
  };
  return half(flags) | half(flags + 32) << 32;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += 8) {
    uint64_t bytes;
    __builtin_memcpy(&bytes, flags + i, 8);
    bits |= gather_bits(bytes) << i;
  }
  return bits;
#endif
#endif
}

template <class U>
inline uint64_t some_positive_bits(const U* x, int64_t n, U infinity) {
  U tail[64] = {};
  __builtin_memcpy(tail, x, static_cast<unsigned long>(n) * sizeof(U));
  return positive_bits(tail, infinity);
}

inline uint64_t mix(uint64_t z) {
  z = (z ^ z >> kMixShift1) * kMixFactor1;
  z = (z ^ z >> kMixShift2) * kMixFactor2;
  return z ^ z >> kMixShift3;
}

inline uint64_t hash_word(uint64_t bits, int64_t word) { return mix(mix(bits) + uint64_t(word + 1) * kPhi); }

template <class U>
void hash_rows(const U* x, int64_t stride, int64_t rows, int64_t n, U infinity, int64_t* hashes) {
  for (; rows > 0; --rows, x += stride, ++hashes) {
    uint64_t hash = 0;
    int64_t i = 0, word = 0;
    for (; i + 64 <= n; i += 64, ++word) hash += hash_word(positive_bits(x + i, infinity), word);
    if (i < n) hash += hash_word(some_positive_bits(x + i, n - i, infinity), word);
    *hashes = int64_t(hash);
  }
}

// Shifts the signs of a vector into as many registers, from the top: after 16 or 32 channels the first is bit 0.
template <class U>
inline void push_signs(U* registers, Vector<U> value, U infinity) {
  Vector<U> pushed = load(registers) >> 1;
#if LC_VECTOR_BYTES == 64
  const __m512i x = (__m512i)(value - U(1)), signs = fill(kSign<U>);
  if constexpr (sizeof(U) == 2) {
    pushed = (Vector<U>)_mm512_mask_or_epi32((__m512i)pushed, __mmask16(-1), (__m512i)pushed,
                                             _mm512_maskz_mov_epi16(less(x, fill(infinity), U()), signs));
  } else {
    pushed = (Vector<U>)_mm512_mask_or_epi32((__m512i)pushed, less(x, fill(infinity), U()), (__m512i)pushed, signs);
  }
#else
  // Signed compares, which SSE2 and AVX2 have: of a positive value and infinity.
  using S = typename VectorOf<U>::signed_type;
  pushed |= (Vector<U>)(((S)value > 0) & ((S)value <= Signed<U>(infinity))) & kSign<U>;
#endif
  __builtin_memcpy(registers, &pushed, sizeof pushed);
}

// A register per position, so that no bits need be transposed (that took twice as long); the last vector of positions
// overlaps the one before.
template <class U>
void hash_positions(const U* x, int64_t stride, int64_t channels, int64_t n, U infinity, int64_t word, int64_t* hashes) {
  constexpr int64_t kBits = 8 * int64_t(sizeof(U)), kStep = kLanes<U>;
  const int64_t vectors = (n + kStep - 1) / kStep, last = n < kStep ? 0 : n - kStep;
  alignas(64) U registers[kPositions];
  alignas(64) uint64_t words[kPositions];
  for (int64_t first = 0; first < channels; first += kBits) {
    const int64_t count = channels - first < kBits ? channels - first : kBits;
    __builtin_memset(registers, 0, static_cast<unsigned long>(vectors * kStep) * sizeof(U));
    for (int64_t c = 0; c < count; ++c) {
      const U* run = x + (first + c) * stride;
      for (int64_t v = 0; v + 1 < vectors; ++v) push_signs(registers + v * kStep, load(run + v * kStep), infinity);
      const Vector<U> value = n < kStep ? load_some(run, n) : load(run + last);
      push_signs(registers + (vectors - 1) * kStep, value, infinity);
    }
    for (int64_t i = 0; i < vectors * kStep; ++i) {
      const uint64_t bits = uint64_t(registers[i]) >> (kBits - count) << first;
      words[i] = first == 0 ? bits : words[i] | bits;
    }
  }
  const int64_t whole = (vectors - 1) * kStep;
  for (int64_t i = 0; i < whole; ++i) hashes[i] = int64_t(uint64_t(hashes[i]) + hash_word(words[i], word));
  for (int64_t i = whole; i < n; ++i) {
    hashes[i] = int64_t(uint64_t(hashes[i]) + hash_word(words[whole + i - last], word));
  }
}

// ---- apply_mask -------------------------------------------------------------------------------------------------

// The lanes without a keep-bit (the lowest bit is the first lane's); 0 in the others.
template <class U>
inline Vector<U> dropped(Vector<U> value, uint64_t keep) {
#if LC_VECTOR_BYTES == 64
  using Mask = decltype(test(__m512i(), U()));
  return (Vector<U>)where((__m512i)value, Mask(~keep), U());
#else
  // A bit per lane, found by a compare: SSE2 and AVX2 have no masks and no shift per lane of 16 bits.
  Vector<U> lane{};
  for (int i = 0; i < kLanes<U>; ++i) lane[i] = U(U(1) << i);
  return value & (Vector<U>)((lane & U(keep)) == 0);
#endif
}

template <class U>
inline bool mask_block(U* x, uint64_t keep) {
  Vector<U> gone{};
#pragma GCC unroll 8
  for (int i = 0; i < 64; i += kLanes<U>) gone |= dropped<U>(load(x + i), keep >> i);
  if (!any_above<U>(gone, U(0))) return false;
  for (int i = 0; i < 64; i += kLanes<U>) {
    Vector<U> value = load(x + i);
    gone = dropped<U>(value, keep >> i);
    if (!any_above<U>(gone, U(0))) continue;
    value ^= gone;
    __builtin_memcpy(x + i, &value, sizeof value);
  }
  return true;
}

template <class U>
bool mask(U* x, const uint8_t* keep, int64_t n) {
  bool changed = false;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    const uint64_t bits = load_bits(keep + i / 8, 8);
    if (bits != ~uint64_t(0)) changed |= mask_block(x + i, bits);
  }
  if (const int64_t rest = n - i) {
    U tail[kBlock] = {};
    const auto bytes = static_cast<unsigned long>(rest) * sizeof(U);
    __builtin_memcpy(tail, x + i, bytes);
    if (mask_block(tail, load_bits(keep + i / 8, (rest + 7) / 8))) {
      __builtin_memcpy(x + i, tail, bytes);
      changed = true;
    }
  }
  return changed;
}

int64_t popcount(const uint8_t* bits, int64_t n) {
  int64_t count = 0, i = 0;
  for (; i + kBlock <= n; i += kBlock) count += __builtin_popcountll(load_bits(bits + i / 8, 8));
  if (const int64_t rest = n - i) {
    count += __builtin_popcountll(load_bits(bits + i / 8, (rest + 7) / 8) & ((uint64_t(1) << rest) - 1));
  }
  return count;
}

template <class U>
constexpr WidthKernels<U> kWidth = {count_run<U>, count_rows<U>, hash_rows<U>, hash_positions<U>, scan<U>, apply<U>, mask<U>};
