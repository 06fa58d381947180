// The innermost loops, each compiled for several instruction sets from one source (kernels.inl) and chosen at run
// time. They touch only the memory that they are given; threads, layouts and memory belong to the callers.
#pragma once

#include <cstdint>

namespace lc {

// Rows that count_rows reads at once: the counters then cost a quarter of the values' traffic. In cache 16 took 10 %
// less time than 8 for float32 (5 % for 16 bits); in memory they are alike.
constexpr int kRowGroup = 16;

// Rows that hash_positions takes at once. Maps of up to 64 x 64 are then read whole, in the order of memory: by strips of
// 1,024 positions, 56 x 56 took 28 % longer.
constexpr int kPositions = 4096;

// What a run of values adds: NaNs are among the nonzero, not among the positive; upper is 0 where not asked for.
struct SignCounts {
  int64_t nonzero = 0, positive = 0, nan = 0, upper = 0;
};

struct Scan {
  int64_t below = 0;    // kept magnitudes < lo
  int64_t inside = 0;   // kept magnitudes in [lo, hi)
  bool nan = false;     // any magnitude > infinity, kept or not
};

template <class U>  // uint16_t or uint32_t: the raw bits of a value
struct WidthKernels {
  // Signs of n values. upper: smallest magnitude counted as such, 0 for none (it is never 0 otherwise).
  void (*count_run)(const U* x, int64_t n, U infinity, U upper, SignCounts* counts);

  // Signs of `rows` rows of n values, `stride` apart, column by column: adds to nonzero[n], positive[n], nan[n] and,
  // with upper, upper_counts[n]. The caller empties the counters before they can wrap.
  void (*count_rows)(const U* x, int64_t stride, int64_t rows, int64_t n, U infinity, U upper, U* nonzero, U* positive,
                     U* nan, U* upper_counts);

  // Hashes of `rows` rows of n values, `stride` apart.
  void (*hash_rows)(const U* x, int64_t stride, int64_t rows, int64_t n, U infinity, int64_t* hashes);

  // Adds what up to 64 channels, `stride` apart, the word-th such, give to the hashes of n <= kPositions rows, whose
  // values lie side by side.
  void (*hash_positions)(const U* x, int64_t stride, int64_t channels, int64_t n, U infinity, int64_t word,
                         int64_t* hashes);

  // Magnitudes of the values whose keep-bit is set against lo <= hi. Appends those inside to `found` (in order)
  // unless it is null; there must be room for all of them, plus 64.
  void (*scan)(const U* x, const uint8_t* keep, int64_t n, U lo, U hi, U infinity, U* found, Scan* result);

  // Clears the keep-bits of magnitudes < lo and of the first *ties in [lo, hi), subtracting the latter from *ties;
  // then zeroes every value without a keep-bit. Bits past n stay. Returns whether a value changed.
  bool (*apply)(U* x, uint8_t* keep, int64_t n, U lo, U hi, int64_t* ties);

  // Zeroes every value without a keep-bit: stores the vectors that change, and reads no 64 values that are all kept.
  // Returns whether a value changed.
  bool (*mask)(U* x, const uint8_t* keep, int64_t n);
};

struct Kernels {
  const char* name;
  WidthKernels<uint16_t> narrow;
  WidthKernels<uint32_t> wide;
  int64_t (*popcount)(const uint8_t* bits, int64_t n);  // of the first n bits

  template <class U>
  const WidthKernels<U>& of() const {
    if constexpr (sizeof(U) == 2) {
      return narrow;
    } else {
      return wide;
    }
  }
};

// The best set that this CPU runs, or the one that the environment variable LAYERCOLLAPSE_ISA names ("auto",
// "portable", "avx2", "avx512"); throws std::invalid_argument for one unknown or not supported here.
const Kernels& kernels();
void choose_kernels(const char* name);

}  // namespace lc
