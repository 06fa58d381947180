// Builds kernels.inl for each instruction set and chooses one at run time. Explicit namespaces rather than
// target_clones: its resolver cannot be overridden, and the portable set must be testable on any machine.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "sign_hash.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LC_X86 1
#include <immintrin.h>
#endif

namespace lc {

// LC_VECTOR_BYTES tells kernels.inl its set: GCC's C++ parser reads ahead, so a pragma does not define __AVX2__ in time.
namespace portable {
namespace {
#define LC_VECTOR_BYTES 16
#include "kernels.inl"
#undef LC_VECTOR_BYTES
}
constexpr Kernels kSet = {"portable", kWidth<uint16_t>, kWidth<uint32_t>, popcount};
}  // namespace portable

#if defined(LC_X86)
// The headers are included above, so that no function shared with other files is compiled for a newer CPU.
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
namespace {
#define LC_VECTOR_BYTES 32
#include "kernels.inl"
#undef LC_VECTOR_BYTES
}
constexpr Kernels kSet = {"avx2", kWidth<uint16_t>, kWidth<uint32_t>, popcount};
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace avx512 {
namespace {
#define LC_VECTOR_BYTES 64
#include "kernels.inl"
#undef LC_VECTOR_BYTES
}
constexpr Kernels kSet = {"avx512", kWidth<uint16_t>, kWidth<uint32_t>, popcount};
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& find(const std::string& name) {
#if defined(LC_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
                    __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && (name == "auto" || name == "avx512")) return avx512::kSet;
  if (avx2 && (name == "auto" || name == "avx2")) return avx2::kSet;
#endif
  if (name == "auto" || name == "portable") return portable::kSet;
  throw std::invalid_argument("LAYERCOLLAPSE_ISA: expected auto, portable, or avx2 or avx512 where the CPU has it, got " +
                              name);
}

}  // namespace

const Kernels& kernels() {
  const Kernels* set = chosen.load(std::memory_order_acquire);
  if (set == nullptr) {
    const char* name = std::getenv("LAYERCOLLAPSE_ISA");
    choose_kernels(name != nullptr && *name != '\0' ? name : "auto");
    set = chosen.load(std::memory_order_acquire);
  }
  return *set;
}

void choose_kernels(const char* name) { chosen.store(&find(name), std::memory_order_release); }

}  // namespace lc
