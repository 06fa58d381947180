// The ops on a GPU for C and C++: addresses on the device, sizes, and the stream to work on. Nothing is awaited; the
// result is an error of CUDA (lc_error says it in words), or 0. Nothing is thrown. kernels/cuda.py calls these through
// ctypes: the structures have 8-byte fields only, so that an array of int64 is one.
#pragma once

#include <cstdint>

#include "../python/include/layercollapse.h"

#include "../plan/mask_plan.h"

namespace lc::cuda {

// Tables and scratch of kernels/topk_plan.py, all on the device.
struct Topk {
  const int64_t *segments, *groups, *dims, *ids;
  int64_t *gate, *state, *result, *sums;
  uint32_t *bins, *sample, *thresholds;
  int64_t group_count;
};

// One launch of a pass: `count` segments from `first` in ids, all of one width in bytes and kind of layout.
struct Class {
  int64_t width, strided, first, count;
};

}  // namespace lc::cuda

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

int lc_topk_bracket(const lc::cuda::Topk*, void* stream);
int lc_topk_count(const lc::cuda::Topk*, const lc::cuda::Class*, void* stream);
int lc_topk_select(const lc::cuda::Topk*, void* stream);
int lc_topk_apply(const lc::cuda::Topk*, const lc::cuda::Class*, void* stream);

// Zeroes every entry without a keep-bit, of any number of weights without overlap, with widths of 2 and 4 bytes.
int lc_apply_mask(const lc::plan::MaskedWeight*, int64_t count, void* stream);
}
