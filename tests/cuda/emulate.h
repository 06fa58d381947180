// The part of CUDA that these kernels use, on the CPU, for tests: the threads of a block are fibers of one OS thread,
// which change only at barriers and warp operations; blocks run one after the other. It finds wrong indices, wrong
// counts and missing barriers that deadlock, but no races: those are for compute-sanitizer on a GPU.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

enum Wait { kNone, kWarp, kBlock, kEnded };

struct Fiber {
  ucontext_t context;  // to start with
  jmp_buf place;       // to go on at: unlike swapcontext, without a system call
  std::vector<char> stack;
  Wait wait = kNone;
  // To the operation of even and of odd number: none is two ahead of another. Those of a warp and of a block are numbered
  // apart, as warps may have had more or fewer.
  int64_t given[4] = {0, 0, 0, 0};
  int operations[2] = {0, 0};
  bool started = false;
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline std::function<void()> body;

inline Fiber& self() { return fibers[threadIdx.x]; }

inline void enter() {
  body();
  self().wait = kEnded;
  _longjmp(scheduler, 1);
}

// Waits for all threads that `wait` means to have given a value; returns the number of the operation.
inline int meet(Wait wait, int64_t value) {
  const unsigned index = threadIdx.x;
  const int slot = wait == kBlock ? 2 + self().operations[1]++ % 2 : self().operations[0]++ % 2;
  fibers[index].given[slot] = value;
  fibers[index].wait = wait;
  if (_setjmp(fibers[index].place) == 0) _longjmp(scheduler, 1);
  return slot;
}

// Lets go the threads in [begin, end) if all that have not ended wait for the same.
inline bool release(unsigned begin, unsigned end, Wait wait) {
  bool any = false;
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].wait != kEnded && fibers[i].wait != wait) return false;
    any |= fibers[i].wait == wait;
  }
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].wait == wait) fibers[i].wait = kNone;
  }
  return any;
}

inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

inline void run_block() {
  const unsigned count = blockDim.x;
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.wait = kNone;
    fiber.operations[0] = fiber.operations[1] = 0;
    fiber.started = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    bool ended = true, moved = false;
    for (unsigned i = 0; i < count; ++i) {
      if (fibers[i].wait == kNone) {
        threadIdx.x = i;
        resume(fibers[i]);
        moved = true;
      }
      ended &= fibers[i].wait == kEnded;
    }
    if (ended) return;
    for (unsigned warp = 0; warp < count; warp += 32) moved |= release(warp, warp + 32, kWarp);
    moved |= release(0, count, kBlock);
    if (!moved) std::abort();  // a deadlock
  }
}

template <class Call>
void launch(dim3 grid, dim3 block, const Call& call) {
  body = call;
  blockDim = block;
  gridDim = grid;
  while (fibers.size() < block.x) fibers.emplace_back().stack.resize(65536);
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block();
  }
}

inline int64_t given_by(unsigned thread, int slot) { return fibers[thread].given[slot]; }

}  // namespace emulate

#define LC_LAUNCH(kernel, grid, block, stream) \
  static_cast<void>(stream), [&](const auto&... arguments) { emulate::launch(grid, block, [&] { kernel(arguments...); }); }

inline void __syncthreads() { emulate::meet(emulate::kBlock, 0); }
inline bool __syncthreads_or(bool value) {
  const int slot = emulate::meet(emulate::kBlock, value);
  bool any = false;
  for (unsigned i = 0; i < blockDim.x; ++i) any |= emulate::given_by(i, slot) != 0;
  return any;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  const int slot = emulate::meet(emulate::kWarp, value);
  return static_cast<T>(emulate::given_by(threadIdx.x ^ static_cast<unsigned>(lanes), slot));
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  const int slot = emulate::meet(emulate::kWarp, value);
  return static_cast<T>(emulate::given_by(threadIdx.x / 32 * 32 + static_cast<unsigned>(lane), slot));
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned lanes) {
  const int slot = emulate::meet(emulate::kWarp, value);
  return threadIdx.x % 32 < lanes ? value : static_cast<T>(emulate::given_by(threadIdx.x - lanes, slot));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned lanes) {
  const int slot = emulate::meet(emulate::kWarp, value);
  return threadIdx.x % 32 + lanes > 31 ? value : static_cast<T>(emulate::given_by(threadIdx.x + lanes, slot));
}
inline uint32_t __reduce_add_sync(unsigned, uint32_t value) {
  const int slot = emulate::meet(emulate::kWarp, value);
  uint32_t sum = 0;
  for (unsigned i = 0; i < 32; ++i) sum += static_cast<uint32_t>(emulate::given_by(threadIdx.x / 32 * 32 + i, slot));
  return sum;
}

template <class T>
T atomicAdd(T* place, T value) {
  const T before = *place;
  *place += value;
  return before;
}
template <class T>
T atomicExch(T* place, T value) {
  return std::exchange(*place, value);
}
template <class T>
T atomicMax(T* place, T value) {
  return std::exchange(*place, std::max(*place, value));
}
inline void __threadfence() {}  // one thread runs at a time
inline uint32_t __ballot_sync(unsigned, bool value) {
  const int slot = emulate::meet(emulate::kWarp, value);
  uint32_t bits = 0;
  for (unsigned i = 0; i < 32; ++i) bits |= (emulate::given_by(threadIdx.x / 32 * 32 + i, slot) != 0 ? 1u : 0u) << i;
  return bits;
}
template <class T>
T __ldcg(const T* place) {
  return *place;
}
template <class T>
T __ldcs(const T* place) {
  return *place;
}
template <class T>
T __ldca(const T* place) {
  return *place;
}
template <class T>
void __stwb(T* place, T value) {
  *place = value;
}
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
using std::max;
using std::min;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2;
constexpr int cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2;
constexpr int cudaDevAttrMultiProcessorCount = 16;
inline int cudaMemsetAsync(void* place, int value, std::size_t bytes, cudaStream_t) {
  std::memset(place, value, bytes);
  return cudaSuccess;
}
inline int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline int cudaMalloc(void** place, std::size_t bytes) {
  *place = std::malloc(bytes);
  return *place == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline int cudaFree(void* place) {
  std::free(place);
  return cudaSuccess;
}
inline int cudaMemcpy(void* to, const void* from, std::size_t bytes, int kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline int cudaDeviceSynchronize() { return cudaSuccess; }
inline int cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline int cudaGetLastError() { return cudaSuccess; }
inline int cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(int) { return "none"; }
inline int cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline int cudaDeviceGetAttribute(int* value, int, int) {
  *value = 3;
  return cudaSuccess;
}
template <class Kernel>
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  *blocks = 2;
  return cudaSuccess;
}
