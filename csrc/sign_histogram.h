#pragma once

#include <cstdint>
#include <vector>

#include "dtypes.h"
#include "layout.h"

namespace lc {

// Where the signs of an activation go: per channel negative, zero, positive, NaN, and with upper > 0 also x >= upper (a
// float32); int64 (C, 4) or (C, 5), contiguous. samples: every dimension but the channels', in any order; strides of
// either sign, 0 included.
struct Activation {
  const void* x;
  Dtype dtype;
  Dim channels;
  std::vector<Dim> samples;
  double upper;
  int64_t* out;
};

// Adds the signs of each activation to its out, which several may share; reads each once, all in one loop over the
// threads.
void sign_histogram(const std::vector<Activation>& activations, int threads);

}  // namespace lc
