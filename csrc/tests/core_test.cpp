// The C functions of the CPU against cases.h, for sanitizers: no Python, no torch. Thread counts 1, 2 and 7, the
// instruction sets of this CPU. Argument: cases; run by run.sh. Prints what differed and exits with 1.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "../kernels.h"
#include "cases.h"

namespace {

using lc::tests::ActivationCase;
using lc::tests::HashesCase;
using lc::tests::pick;
using lc::tests::require;
using lc::tests::WeightsCase;

void histogram_case(int threads) {
  const std::vector<ActivationCase> cases(size_t(pick({1, 3})));
  std::vector<std::vector<int64_t>> outs;
  std::vector<lc_activation> activations;
  for (const ActivationCase& one : cases) outs.push_back(one.before);
  for (size_t i = 0; i < cases.size(); ++i) activations.push_back(cases[i].at(cases[i].x.memory.data(), outs[i].data()));
  const lc_status status = lc_cpu_sign_histogram(activations.data(), int64_t(activations.size()), threads);
  require(status == LC_DONE, "sign_histogram: status");
  for (size_t i = 0; i < cases.size(); ++i) require(outs[i] == cases[i].expected, "sign_histogram");

  const std::vector<lc_activation> same(3, activations[0]);  // several threads add to one out
  require(lc_cpu_sign_histogram(same.data(), 3, threads) == LC_DONE, "sign_histogram: status");
  for (size_t i = 0; i < outs[0].size(); ++i) outs[0][i] -= 3 * (cases[0].expected[i] - cases[0].before[i]);
  require(outs[0] == cases[0].expected, "sign_histogram: one out of three");
}

void hashes_case(int threads) {
  const HashesCase problem;
  std::vector<int64_t> got(problem.expected.size());
  const lc_activation activation = problem.at(problem.x.memory.data(), got.data());
  require(lc_cpu_sign_hashes(&activation, 1, threads) == LC_DONE, "sign_hashes: status");
  require(got == problem.expected, "sign_hashes");
}

void topk_case(int threads) {
  WeightsCase problem;
  const std::vector<WeightsCase::Weight> before = problem.weights;
  std::vector<lc_weight> weights;
  for (WeightsCase::Weight& weight : problem.weights) {
    weights.push_back(weight.at(weight.values.memory.data(), weight.mask.data()));
  }
  const auto count = int64_t(weights.size());
  std::vector<float> thresholds(problem.k.size());
  const lc_status status = lc_cpu_masked_topk(weights.data(), count, problem.k.data(), problem.global, thresholds.data(),
                                              threads, nullptr, nullptr);
  require(status == LC_DONE, "masked_topk: status");
  require(thresholds == problem.thresholds, "masked_topk: thresholds");
  problem.check(before, "masked_topk: weights");

  problem.step();
  const std::vector<WeightsCase::Weight> after = problem.weights;
  require(lc_cpu_apply_mask(weights.data(), count, threads) == LC_DONE, "apply_mask: status");
  problem.check(after, "apply_mask: weights");
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 60;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    try {
      lc::choose_kernels(isa);
    } catch (const std::invalid_argument&) {
      continue;
    }
    for (const int threads : {1, 2, 7}) {
      for (int i = 0; i < cases; ++i) {
        histogram_case(threads);
        hashes_case(threads);
        topk_case(threads);
      }
    }
    std::printf("%s: %d cases of each op for 1, 2 and 7 threads\n", isa, cases);
  }
}
