// Counts the signs of an activation and prunes a weight, from C++ alone:
//
//     g++ prune.cpp $(python -m layercollapse_core --cflags --libs) -o prune && ./prune
#include <layercollapse.h>

#include <cstdio>
#include <vector>

int main() {
  // An activation (N, C) = (4, 3).
  const std::vector<float> x = {-1, 0, 2, -3, 4, 5, -6, -7, 8, 9, -10, 11};
  const int64_t sizes[] = {4, 3}, strides[] = {3, 1};
  std::vector<int64_t> counts(3 * 4);
  const lc_activation activation = {x.data(), counts.data(), sizes, strides, 2, 1, LC_FLOAT32, 0.0};
  if (lc_cpu_sign_histogram(&activation, 1, 0) != LC_DONE) return 1;
  for (int c = 0; c < 3; ++c) {
    const int64_t* row = &counts[std::size_t(4 * c)];
    std::printf("channel %d: %d negative, %d zero, %d positive\n", c, int(row[0]), int(row[1]), int(row[2]));
  }

  // A weight of five entries, all kept: the two smallest magnitudes go.
  std::vector<float> weight = {3, -1, 0.5f, -2, 4};
  uint8_t mask = 0b11111;
  const int64_t size = 5, stride = 1, k = 2;
  const lc_weight weights[] = {{weight.data(), &mask, LC_FLOAT32, 1, &size, &stride}};
  float threshold = 0;
  int64_t index = 0, kept = 0;
  if (lc_cpu_masked_topk(weights, 1, &k, 0, &threshold, 0, &index, &kept) != LC_DONE) return 1;
  std::printf("cleared up to %g, weights", double(threshold));
  for (const float value : weight) std::printf(" %g", double(value));
  std::printf(", mask %d\n", mask);

  // Too many: an error, and nothing has changed.
  const int64_t many = 4;
  const lc_status status = lc_cpu_masked_topk(weights, 1, &many, 0, &threshold, 0, &index, &kept);
  std::printf("%s: %d entries kept\n", status == LC_TOO_MANY ? "too many" : "?", int(kept));
}
