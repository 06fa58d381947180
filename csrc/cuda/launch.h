// What kernels/cuda.py calls, through ctypes: addresses on the device, sizes, and the stream to work on. The structures
// have 8-byte fields only, so that an array of int64 is one. Nothing is checked and nothing awaited; the result is that
// of cudaGetLastError. Grids come from kernels/sign_layout.py and kernels/topk_plan.py.
#pragma once

#include <cstdint>

#include "../plan/mask_plan.h"

namespace lc::cuda {

// What the three loops over an activation share.
struct Signs {
  const void* x;
  int64_t* out;
  int64_t width, columns;   // bytes of a value; 4 or 5 columns of out
  int64_t infinity, upper;  // magnitudes; upper is the smallest counted as such, 0 for none
  int64_t channels, repeat;
};

struct Rows {
  int64_t rows, each, width, outer_stride, inner_stride, inner_size, run;  // width and strides in vectors of 16 bytes
  int64_t cols, strips, splits;                                            // cols: vectors of a tile
};

struct Pieces {
  int64_t pieces, each, parts, length, channel_stride, outer_stride;  // the last three in vectors
};

struct Samples {
  int64_t channel_stride, samples, each, sizes[4], strides[4];
  int64_t cols, strips, splits;  // cols: channels of a tile
};

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

int lc_count_columns(const lc::cuda::Signs*, const lc::cuda::Rows*, void* stream);
int lc_count_runs(const lc::cuda::Signs*, const lc::cuda::Pieces*, void* stream);
int lc_count_strided(const lc::cuda::Signs*, const lc::cuda::Samples*, void* stream);

int lc_topk_bracket(const lc::cuda::Topk*, void* stream);
int lc_topk_count(const lc::cuda::Topk*, const lc::cuda::Class*, void* stream);
int lc_topk_select(const lc::cuda::Topk*, void* stream);
int lc_topk_apply(const lc::cuda::Topk*, const lc::cuda::Class*, void* stream);

// Zeroes every entry without a keep-bit, of any number of weights without overlap, with widths of 2 and 4 bytes.
int lc_apply_mask(const lc::plan::MaskedWeight*, int64_t count, void* stream);
}
