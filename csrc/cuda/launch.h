// The ops on a GPU for C and C++: addresses on the device, sizes, and the stream to work on. Nothing is awaited; the
// result is an error of CUDA (lc_error says it in words), or 0. Nothing is thrown. kernels/cuda.py calls these through
// ctypes: the structures have 8-byte fields only, so that an array of int64 is one.
#pragma once

#include <cstdint>

#include "../python/include/layercollapse.h"

extern "C" {
int lc_device_count(int* count);
const char* lc_error(int code);

// Adds per channel the numbers of negative, zero, positive and NaN entries, and with `upper` of those at or above it,
// of each activation to its out, which several may share. Works on the current device, in as few launches as the
// layouts allow (one for up to 50 that are read in one way); waits for nothing and keeps no pointer to host memory.
// Returns an error of CUDA, or 0; cudaErrorInvalidValue for arguments out of range, before anything is launched.
int lc_sign_histogram(const struct lc_activation* activations, int64_t count, void* stream);
// For tests: from which length on a run is one (bytes; 32768), and above which rows or entries it is cut (2^30).
void lc_sign_limits(int64_t long_run, int64_t largest);

// Adds the hash of every row's signs to the activation's out, which has a zero for each row, in the row-major order of
// the dimensions but that of the channels; `upper` is not looked at. Works as lc_sign_histogram does, in a launch each.
int lc_sign_hashes(const struct lc_activation* activations, int64_t count, void* stream);

// Zeroes every entry without a keep-bit; masks are only read. One launch for 800 plain arrays (100 before CUDA 12.1).
// Works on the current device, waits for nothing, needs no memory and keeps no pointer to that of the host.
int lc_apply_mask(const struct lc_weight* weights, int64_t count, void* stream);

// ---- masked_topk_ -----------------------------------------------------------------------------------------------
// A plan says how some weights are cut into segments: addresses and sizes, no k. It is of the host; the caller copies
// its tables to the device once, and brings scratch memory to each call. No function allocates device memory. Calls of
// one plan may be captured into CUDA graphs, with their k's.

typedef struct lc_topk_plan lc_topk_plan;

// What is ranked together: each weight by itself, or all; or nothing, for lc_topk_count.
enum { LC_TOPK_LAYER = 0, LC_TOPK_GLOBAL = 1, LC_TOPK_COUNT = 2 };
enum { LC_TOPK_COUNTS = 2051 };

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
// The first stage of it, for ranks that each hold a part of the weights. Keys are the bits of magnitudes as float32. Adds to
// counts, LC_TOPK_COUNTS of them on the device: segments with a NaN, entries kept, those of a key below lo, and those of
// keys in [lo, hi) by up to 2048 bins of one width, the smallest power of two that is enough.
int lc_topk_count(const lc_topk_plan* plan, const int64_t* tables, int64_t lo, int64_t hi, int64_t* counts, void* stream);
// Waits and tells what became of a call. code: 0 done, 1 NaN in weight `index`, 2 k[index] is above the `kept` entries.
int lc_topk_outcome(const lc_topk_plan* plan, const int64_t* k, const void* scratch, void* stream, int64_t* index,
                    int64_t* kept, int* code);
}
