// The ops of layercollapse on plain memory, for C and C++: no Python, no torch. docs/ops.md says what each op does.
//
//     #include <layercollapse.h>     // python -m layercollapse_core --cflags --libs
//
// Functions that begin with lc_cpu_ are in the library of the CPU (layercollapse_core.library("cpu")): memory is the
// host's, and they return when the work is done. Nothing is thrown; on an error nothing has changed.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LC_FLOAT32 = 0, LC_BFLOAT16 = 1, LC_FLOAT16 = 2 };  // dtype
enum { LC_MAX_DIMS = 64 };

typedef enum lc_status {
  LC_DONE = 0,
  LC_NAN = 1,        // a NaN among the weights
  LC_TOO_MANY = 2,   // a k above the number of entries kept
  LC_ARGUMENT = 3,   // a type, size or number of dimensions that does not exist, entries beyond int64, or a null pointer
  LC_NO_MEMORY = 4,  // the host's
} lc_status;

// An activation whose signs are counted. Dimensions other than channel_dim are samples.
typedef struct lc_activation {
  const void* x;           // first entry
  int64_t* out;            // (C, 4), with `upper` (C, 5), contiguous: counts are added; of lc_*_sign_hashes (rows,)
  const int64_t* sizes;    // `dims` of them, on the host
  const int64_t* strides;  // in entries, on the host; of any sign, 0 included
  int64_t dims;            // 1 to LC_MAX_DIMS
  int64_t channel_dim;     // 0 to dims - 1
  int64_t dtype;
  double upper;            // also count values of at least this float32; above 0, or 0 for none
} lc_activation;

// A weight and its keep-bits. No two entries, of one weight or of two, may share memory.
typedef struct lc_weight {
  void* values;            // first entry
  uint8_t* mask;           // ceil(n / 8) bytes: a bit per entry in row-major order, the first in the lowest
  int64_t dtype;
  int64_t dims;            // 0 to LC_MAX_DIMS
  const int64_t* sizes;    // `dims` of them, on the host
  const int64_t* strides;  // in entries, on the host; above 0 where the size is above 1
} lc_weight;

// Adds, per channel, the numbers of negative, zero, positive and NaN entries of each activation to its out (which several
// may share), and with `upper` of those at or above it. threads: 0 for as many as there are processors.
lc_status lc_cpu_sign_histogram(const lc_activation* activations, int64_t count, int threads);

// Adds the hash of every row's signs (docs/sign_patterns.md) to out of each activation, which has a zero for each row, in
// the row-major order of the dimensions but that of the channels; `upper` is not looked at.
lc_status lc_cpu_sign_hashes(const lc_activation* activations, int64_t count, int threads);

// Clears the k smallest magnitudes among the entries kept, of each weight (k: `count` numbers) or, with `global`, of all
// together (k: one number); of equal ones the first in row-major order. Then zeroes every entry without a keep-bit.
// thresholds: as many as k, the largest magnitude cleared, 0 if none. On LC_NAN, *index is the weight; on LC_TOO_MANY
// the k, and *kept how many entries it could have cleared. Either pointer may be null.
lc_status lc_cpu_masked_topk(const lc_weight* weights, int64_t count, const int64_t* k, int global, float* thresholds,
                             int threads, int64_t* index, int64_t* kept);

enum { LC_TOPK_COUNTS = 2051 };

// The first stage of it, for processes that each hold a part of the weights. Keys are the bits of magnitudes as float32.
// Adds to counts, LC_TOPK_COUNTS of them: above 0 for a NaN, entries kept, those of a key below lo, and those of keys in [lo, hi)
// by up to 2048 bins of one width, the smallest power of two that is enough. 0 <= lo < hi <= 0x7f800001.
lc_status lc_cpu_topk_count(const lc_weight* weights, int64_t count, int64_t lo, int64_t hi, int64_t* counts, int threads);

// Zeroes every entry without a keep-bit; masks are only read.
lc_status lc_cpu_apply_mask(const lc_weight* weights, int64_t count, int threads);

// The instruction set in use: "portable", "avx2" or "avx512"; null if the environment's LAYERCOLLAPSE_ISA is not one
// that runs here (the ops return LC_ARGUMENT then).
const char* lc_cpu_isa(void);

// ---- CUDA: layercollapse_core.library("cuda") ------------------------------------------------------------------------
// Addresses of values, masks and counts are the device's, sizes and strides the host's; the work goes to a stream
// (cudaStream_t) of the current device. Nothing is awaited, and no pointer to host memory is kept. The result is an error
// of CUDA, or 0; cudaErrorInvalidValue for arguments out of range, before anything is launched.

int lc_device_count(int* count);
const char* lc_error(int code);  // in words

// As lc_cpu_sign_histogram; activations may share an out. In as few launches as the layouts allow: one for up to 50 that
// are read in one way.
int lc_sign_histogram(const lc_activation* activations, int64_t count, void* stream);

// As lc_cpu_sign_hashes, in a launch each.
int lc_sign_hashes(const lc_activation* activations, int64_t count, void* stream);

// As lc_cpu_apply_mask, in one launch for 800 plain arrays (100 before CUDA 12.1).
int lc_apply_mask(const lc_weight* weights, int64_t count, void* stream);

// masked_topk_ in steps. A plan says how some weights are cut into segments: addresses and sizes, no k. It is of the
// host; the caller copies its tables to the device once, and brings scratch memory to each call. No function allocates
// device memory. Calls of one plan may be captured into CUDA graphs, with their k's.

typedef struct lc_topk_plan lc_topk_plan;

// What is ranked together: each weight by itself, or all; or nothing, for lc_topk_count.
enum { LC_TOPK_LAYER = 0, LC_TOPK_GLOBAL = 1, LC_TOPK_COUNT = 2 };

// scope: LC_TOPK_LAYER and so on. segments: how many to cut them into if they are long enough; 16 for each
// multiprocessor is right. shortest: entries that a segment has at least; 0 for the default.
int lc_topk_plan_create(const lc_weight* weights, int64_t count, int scope, int64_t segments, int64_t shortest,
                        lc_topk_plan** plan);
void lc_topk_plan_destroy(lc_topk_plan* plan);
// What to copy to the device: the numbers, valid as long as the plan is, and how many there are.
const int64_t* lc_topk_tables(const lc_topk_plan* plan, int64_t* count);
int64_t lc_topk_segments(const lc_topk_plan* plan);  // 0: the weights have no entries
// Bytes of scratch memory that a call needs, at a multiple of 16.
int64_t lc_topk_scratch(const lc_topk_plan* plan);
// Clears the k smallest magnitudes of each weight, or of all. tables: on the device. thresholds: a float32
// per k, on the device: the largest magnitude cleared, 0 if none. Nothing is awaited. Where a NaN or a k above what is
// kept forbids the change, nothing changes, the thresholds are NaN, and the first 8 bytes of scratch are not 0.
int lc_masked_topk(const lc_topk_plan* plan, const int64_t* tables, const int64_t* k, void* scratch, float* thresholds,
                   void* stream);
// As lc_cpu_topk_count, of a plan for LC_TOPK_COUNT; counts are on the device, and the first of segments with a NaN.
int lc_topk_count(const lc_topk_plan* plan, const int64_t* tables, int64_t lo, int64_t hi, int64_t* counts, void* stream);
// Waits and tells what became of a call. *code is an lc_status: LC_DONE, LC_NAN in weight *index, or LC_TOO_MANY in
// k[*index], which is above the *kept entries.
int lc_topk_outcome(const lc_topk_plan* plan, const int64_t* k, const void* scratch, void* stream, int64_t* index,
                    int64_t* kept, int* code);

#ifdef __cplusplus
}
#endif
