// The C functions of CUDA on the device's own memory against cases.h: no Python, no torch, and so no allocator that hides
// where a block of memory ends from compute-sanitizer. Argument: cases. Prints what differed and exits with 1.
//
//     nvcc -std=c++17 -arch=native csrc/tests/cuda_driver.cu csrc/cuda/*.cu -o driver && compute-sanitizer ./driver 5
//     g++ -std=c++20 -U_FORTIFY_SOURCE -I tests/cuda -x c++ csrc/tests/cuda_driver.cu csrc/cuda/*.cu -o driver
#include <cstdio>
#include <cstdlib>

#include "../cuda/device.cuh"
#include "cases.h"

namespace {

using lc::tests::ActivationCase;
using lc::tests::HashesCase;
using lc::tests::pick;
using lc::tests::require;
using lc::tests::WeightsCase;

void check(int error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, lc_error(error));
  std::exit(1);
}

// A copy of host memory on the device, that ends where it ends and begins at a place of any alignment to `unit`.
class OnDevice {
 public:
  OnDevice(const void* from, size_t bytes, size_t unit, bool shifted = true)
      : bytes_(bytes), shift_(shifted ? unit * size_t(pick({0, 0, 0, 1, 3})) : 0) {
    check(cudaMalloc(&memory_, std::max<size_t>(bytes + shift_, 1)), "cudaMalloc");
    if (bytes > 0) check(cudaMemcpy(get(), from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  OnDevice(OnDevice&& other) noexcept : memory_(other.memory_), bytes_(other.bytes_), shift_(other.shift_) {
    other.memory_ = nullptr;
  }
  ~OnDevice() { cudaFree(memory_); }
  void* get() const { return static_cast<char*>(memory_) + shift_; }
  void back(void* to) const {
    if (bytes_ > 0) check(cudaMemcpy(to, get(), bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_, shift_;
};

void histogram_case() {
  const std::vector<ActivationCase> cases(size_t(pick({1, 3})));
  std::vector<OnDevice> xs, outs;
  std::vector<lc_activation> activations;
  for (const ActivationCase& one : cases) {
    xs.emplace_back(one.x.memory.data(), one.x.memory.size(), size_t(lc::width(one.x.dtype)));
    outs.emplace_back(one.before.data(), one.before.size() * sizeof(int64_t), sizeof(int64_t));
    activations.push_back(one.at(xs.back().get(), static_cast<int64_t*>(outs.back().get())));
  }
  check(lc_sign_histogram(activations.data(), int64_t(cases.size()), nullptr), "lc_sign_histogram");
  check(cudaDeviceSynchronize(), "lc_sign_histogram");
  for (size_t i = 0; i < cases.size(); ++i) {
    std::vector<int64_t> got(cases[i].expected.size());
    outs[i].back(got.data());
    require(got == cases[i].expected, "lc_sign_histogram: counts");
  }
}

void hashes_case() {
  const HashesCase problem;
  std::vector<int64_t> got(problem.expected.size());
  const OnDevice x(problem.x.memory.data(), problem.x.memory.size(), size_t(lc::width(problem.x.dtype)));
  const OnDevice out(got.data(), got.size() * sizeof(int64_t), sizeof(int64_t));
  const lc_activation activation = problem.at(x.get(), static_cast<int64_t*>(out.get()));
  check(lc_sign_hashes(&activation, 1, nullptr), "lc_sign_hashes");
  check(cudaDeviceSynchronize(), "lc_sign_hashes");
  out.back(got.data());
  require(got == problem.expected, "lc_sign_hashes: hashes");
}

// The weights of a case on the device.
struct Weights {
  explicit Weights(const WeightsCase& problem) {
    for (const WeightsCase::Weight& weight : problem.weights) {
      const std::vector<char>& memory = weight.values.memory;
      values.emplace_back(memory.data(), memory.size(), size_t(lc::width(weight.values.dtype)));
      masks.emplace_back(weight.mask.data(), weight.mask.size(), 1);
      all.push_back(weight.at(values.back().get(), static_cast<uint8_t*>(masks.back().get())));
    }
  }
  void back(WeightsCase& problem) const {
    for (size_t w = 0; w < all.size(); ++w) {
      values[w].back(problem.weights[w].values.memory.data());
      masks[w].back(problem.weights[w].mask.data());
    }
  }

  std::vector<OnDevice> values, masks;
  std::vector<lc_weight> all;
};

void apply_case() {
  WeightsCase problem;
  problem.settle();
  problem.step();
  const std::vector<WeightsCase::Weight> before = problem.weights;
  const Weights weights(problem);
  check(lc_apply_mask(weights.all.data(), int64_t(weights.all.size()), nullptr), "lc_apply_mask");
  check(cudaDeviceSynchronize(), "lc_apply_mask");
  weights.back(problem);
  problem.check(before, "lc_apply_mask: weights");
}

// Scratch memory with whatever was in it.
class Scratch {
 public:
  explicit Scratch(size_t bytes) { check(cudaMalloc(&memory_, std::max<size_t>(bytes, 1)), "cudaMalloc"); }
  Scratch(const Scratch&) = delete;
  ~Scratch() { cudaFree(memory_); }
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

void topk_case() {
  WeightsCase problem;
  const std::vector<WeightsCase::Weight> before = problem.weights;
  const Weights weights(problem);
  const int64_t shortest = pick({0, 4096}), segments = pick({1, 5, 64});
  lc_topk_plan* plan = nullptr;
  check(lc_topk_plan_create(weights.all.data(), int64_t(weights.all.size()), problem.global, segments, shortest, &plan),
        "lc_topk_plan_create");
  if (lc_topk_segments(plan) > 0) {
    int64_t count = 0;
    const int64_t* numbers = lc_topk_tables(plan, &count);
    const OnDevice tables(numbers, size_t(count) * sizeof(int64_t), 1, false);
    const Scratch scratch(size_t(lc_topk_scratch(plan))), thresholds(problem.k.size() * sizeof(float));
    const auto call = [&](const std::vector<int64_t>& k, int64_t* index, int64_t* kept) {
      int code = -1;
      check(lc_masked_topk(plan, static_cast<const int64_t*>(tables.get()), k.data(), scratch.get(),
                           static_cast<float*>(thresholds.get()), nullptr),
            "lc_masked_topk");
      check(lc_topk_outcome(plan, k.data(), scratch.get(), nullptr, index, kept, &code), "lc_topk_outcome");
      return code;
    };
    int64_t index = -1, kept = -1;
    std::vector<int64_t> many = problem.k;
    many.back() = int64_t(1) << 40;
    require(call(many, &index, &kept) == LC_TOO_MANY && index == int64_t(many.size()) - 1, "lc_masked_topk: too many");
    require(call(problem.k, &index, &kept) == LC_DONE, "lc_masked_topk: status");
    std::vector<float> got(problem.k.size());
    check(cudaMemcpy(got.data(), thresholds.get(), got.size() * sizeof(float), cudaMemcpyDeviceToHost), "cudaMemcpy");
    require(got == problem.thresholds, "lc_masked_topk: thresholds");
    weights.back(problem);
    problem.check(before, "lc_masked_topk: weights");
  }
  lc_topk_plan_destroy(plan);
}

void arguments_case() {
  const auto refused = [](int error) { require(error == cudaErrorInvalidValue, "arguments that do not exist"); };
  float x = 0;
  uint8_t mask = 1;
  int64_t out[4] = {};
  const int64_t one = 1, below = -1, many[2] = {int64_t(1) << 40, int64_t(1) << 40};
  for (const lc_weight& weight : {lc_weight{&x, &mask, 0, 1, &below, &one}, lc_weight{&x, &mask, 0, 2, many, many},
                                  lc_weight{&x, &mask, 0, 65, &one, &one}, lc_weight{nullptr, &mask, 0, 1, &one, &one},
                                  lc_weight{&x, nullptr, 0, 1, &one, &one}, lc_weight{&x, &mask, 3, 1, &one, &one}}) {
    lc_topk_plan* plan = nullptr;
    refused(lc_apply_mask(&weight, 1, nullptr));
    refused(lc_topk_plan_create(&weight, 1, LC_TOPK_LAYER, 1, 0, &plan));
    require(plan == nullptr, "no plan");
  }
  const lc_weight good{&x, &mask, 0, 1, &one, &one};
  lc_topk_plan* plan = nullptr;
  refused(lc_topk_plan_create(&good, 1, 3, 1, 0, &plan));
  refused(lc_topk_plan_create(&good, -1, LC_TOPK_LAYER, 1, 0, &plan));
  refused(lc_apply_mask(nullptr, 1, nullptr));
  for (const lc_activation& activation :
       {lc_activation{&x, out, &below, &one, 1, 0, 0, 0}, lc_activation{&x, out, many, many, 2, 0, 0, 0},
        lc_activation{&x, nullptr, &one, &one, 1, 0, 0, 0}, lc_activation{nullptr, out, &one, &one, 1, 0, 0, 0},
        lc_activation{&x, out, &one, &one, 1, 1, 0, 0}, lc_activation{&x, out, nullptr, &one, 1, 0, 0, 0}}) {
    refused(lc_sign_histogram(&activation, 1, nullptr));
    refused(lc_sign_hashes(&activation, 1, nullptr));
  }
  const lc_activation unbounded{&x, out, &one, &one, 1, 0, 0, -1};
  refused(lc_sign_histogram(&unbounded, 1, nullptr));
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 10;
  arguments_case();
  for (int i = 0; i < cases; ++i) {
    histogram_case();
    hashes_case();
    apply_case();
    topk_case();
  }
  std::printf("%d cases of each op\n", cases);
}
