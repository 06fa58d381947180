// python/include/layercollapse.h for the CPU: checks what would be undefined behaviour, and lets no exception out.
#include "python/include/layercollapse.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "apply_mask.h"
#include "kernels.h"
#include "masked_topk.h"
#include "plan/arguments.h"
#include "sign_hashes.h"
#include "sign_histogram.h"
#include "topk_count.h"

#define LC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

static_assert(int(lc::Dtype::float32) == LC_FLOAT32 && int(lc::Dtype::bfloat16) == LC_BFLOAT16 &&
              int(lc::Dtype::float16) == LC_FLOAT16 && lc::kMaxDims == LC_MAX_DIMS);
static_assert(LC_TOPK_COUNTS == 3 + lc::kCountBins);
static_assert(int(lc::TopkResult::done) == LC_DONE && int(lc::TopkResult::nan) == LC_NAN &&
              int(lc::TopkResult::too_many) == LC_TOO_MANY);

std::vector<lc::Dim> dims_of(int64_t count, const int64_t* sizes, const int64_t* strides) {
  std::vector<lc::Dim> dims;
  for (int64_t d = 0; d < count; ++d) dims.push_back({sizes[d], strides[d]});
  return dims;
}

int threads_of(int threads) {
  return threads > 0 ? threads : std::max(1, int(std::thread::hardware_concurrency()));
}

std::vector<lc::Weight> weights_of(const lc_weight* weights, int64_t count) {
  if (!lc::plan::well_formed(weights, count)) throw std::invalid_argument("weights");
  std::vector<lc::Weight> made;
  for (int64_t i = 0; i < count; ++i) {
    const lc_weight& weight = weights[i];
    const std::vector<lc::Dim> dims = dims_of(weight.dims, weight.sizes, weight.strides);
    made.push_back({weight.values, weight.mask, static_cast<lc::Dtype>(weight.dtype), lc::product(dims), {}, {}});
    if (made.back().size > 0) lc::set_dims(made.back(), dims);
  }
  return made;
}

// Without `out`'s meaning: the counts of channels, or the hashes of rows.
std::vector<lc::Activation> activations_of(const lc_activation* activations, int64_t count) {
  std::vector<lc::Activation> made;
  for (int64_t i = 0; i < count; ++i) {
    const lc_activation& a = activations[i];
    std::vector<lc::Dim> dims = dims_of(a.dims, a.sizes, a.strides);
    const lc::Dim channels = dims[std::size_t(a.channel_dim)];
    dims.erase(dims.begin() + a.channel_dim);
    made.push_back({a.x, static_cast<lc::Dtype>(a.dtype), channels, std::move(dims), a.upper, a.out});
  }
  return made;
}

template <class Call>
lc_status guarded(const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return LC_NO_MEMORY;
  } catch (const std::exception&) {
    return LC_ARGUMENT;
  }
}

}  // namespace

LC_EXPORT lc_status lc_cpu_sign_histogram(const lc_activation* activations, int64_t count, int threads) {
  return guarded([&] {
    lc::kernels();  // all or nothing: what can throw comes before the first count
    if (!lc::plan::well_bounded(activations, count)) throw std::invalid_argument("activations");
    std::vector<lc::Activation> made = activations_of(activations, count);
    lc::sign_histogram(made, threads_of(threads));
    return LC_DONE;
  });
}

LC_EXPORT lc_status lc_cpu_sign_hashes(const lc_activation* activations, int64_t count, int threads) {
  return guarded([&] {
    lc::kernels();
    if (!lc::plan::well_formed(activations, count)) throw std::invalid_argument("activations");
    std::vector<lc::Activation> made = activations_of(activations, count);
    for (lc::Activation& a : made) lc::sign_hashes(a.x, a.dtype, a.channels, std::move(a.samples), a.out, threads_of(threads));
    return LC_DONE;
  });
}

LC_EXPORT lc_status lc_cpu_masked_topk(const lc_weight* weights, int64_t count, const int64_t* k, int global,
                                       float* thresholds, int threads, int64_t* index, int64_t* kept) {
  return guarded([&] {
    lc::kernels();
    std::vector<lc::Weight> made = weights_of(weights, count);
    const int64_t groups = global ? 1 : count;
    if (groups > 0 && (k == nullptr || thresholds == nullptr)) throw std::invalid_argument("k");
    const std::vector<int64_t> numbers(k, k + groups);
    for (const int64_t number : numbers) {
      if (number < 0) throw std::invalid_argument("k");
    }
    static_assert(sizeof(float) == sizeof(uint32_t));
    const lc::TopkResult result =
        lc::masked_topk(made, numbers, global != 0, threads_of(threads), reinterpret_cast<uint32_t*>(thresholds));
    if (index != nullptr) *index = result.index;
    if (kept != nullptr) *kept = result.kept;
    return static_cast<lc_status>(result.code);
  });
}

LC_EXPORT lc_status lc_cpu_topk_count(const lc_weight* weights, int64_t count, int64_t lo, int64_t hi, int64_t* counts,
                                      int threads) {
  return guarded([&] {
    lc::kernels();
    if (lo < 0 || lo >= hi || hi > lc::kCommonEnd || counts == nullptr) throw std::invalid_argument("range");
    lc::topk_count(weights_of(weights, count), uint32_t(lo), uint32_t(hi), threads_of(threads), counts);
    return LC_DONE;
  });
}

LC_EXPORT lc_status lc_cpu_apply_mask(const lc_weight* weights, int64_t count, int threads) {
  return guarded([&] {
    lc::kernels();
    lc::apply_mask(weights_of(weights, count), threads_of(threads));
    return LC_DONE;
  });
}

LC_EXPORT const char* lc_cpu_isa(void) {
  try {
    return lc::kernels().name;
  } catch (const std::exception&) {
    return nullptr;
  }
}
