// The constants of sign_hashes (layercollapse/ops/reference.py has the formula and its own copy of them, which the tests
// compare with): those of splitmix64.
#pragma once

#include <cstdint>

namespace lc {

constexpr uint64_t kPhi = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
constexpr int kMixShift1 = 30, kMixShift2 = 27, kMixShift3 = 31;
constexpr uint64_t kMixFactor1 = 0xbf58476d1ce4e5b9u, kMixFactor2 = 0x94d049bb133111ebu;
constexpr int kHashWord = 64;  // channels

}  // namespace lc
