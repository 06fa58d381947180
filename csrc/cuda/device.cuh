// CUDA's runtime, or tests/cuda/emulate.h in its place, which runs the same kernels on the CPU (with -I tests/cuda).
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define LC_LAUNCH(kernel, grid, block, stream) kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>
#else
#include "emulate.h"
#endif
