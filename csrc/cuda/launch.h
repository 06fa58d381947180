// What the CUDA library exports besides layercollapse.h, for tests. kernels/cuda.py calls all of it through ctypes: the
// structures have 8-byte fields only, so that an array of int64 is one.
#pragma once

#include <cstdint>

#include "../python/include/layercollapse.h"

extern "C" {
// From which length on a run is one (bytes; 32768), and above which rows or entries it is cut (2^30).
void lc_sign_limits(int64_t long_run, int64_t largest);
}
