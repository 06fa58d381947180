// lc_sign_histogram: plans the activations of a call, and launches the kernels of sign_kernels.cuh on all of them.
#include <algorithm>
#include <atomic>
#include <new>
#include <variant>
#include <vector>

#include "../dtypes.h"
#include "../plan/arguments.h"
#include "../plan/sign_plan.h"
#include "device.cuh"
#include "launch.h"
#include "sign_kernels.cuh"

namespace lc::cuda {
namespace {

template <int kWidth, bool kUpper, int kParts>
auto kernel_for(const ColumnsPart&) { return columns_kernel<kWidth, kUpper, kParts>; }
template <int kWidth, bool kUpper, int kParts>
auto kernel_for(const RunsPart&) { return runs_kernel<kWidth, kUpper, kParts>; }
template <int kWidth, bool kUpper, int kParts>
auto kernel_for(const StridedPart&) { return strided_kernel<kWidth, kUpper, kParts>; }

// Units that a block should have at least: as many as it loads before it counts the first.
constexpr int64_t least_units(const ColumnsPart&) { return kUnroll; }
constexpr int64_t least_units(const RunsPart&) { return 1; }
constexpr int64_t least_units(const StridedPart&) { return 1; }

template <class Part, int kWidth, bool kUpper, int kParts>
cudaError_t launch(Part* parts, int64_t count, cudaStream_t stream) {
  const auto kernel = kernel_for<kWidth, kUpper, kParts>(Part{});
  // Blocks that the device holds at once; asking takes as long as a launch.
  constexpr int kDevices = 64;
  static std::atomic<int> cache[kDevices];
  int device = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (device < kDevices) resident = cache[device].load(std::memory_order_relaxed);
  if (resident == 0) {
    int processors = 0, each = 0;
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0);
    if (error != cudaSuccess) return error;
    resident = processors * each;
    if (device < kDevices) cache[device].store(resident, std::memory_order_relaxed);
  }
  Table<Part, kParts> table;
  table.count = count;
  int64_t units = 0;
  for (int64_t i = 0; i < count; ++i) {
    table.parts[i] = parts[i];
    table.parts[i].end += units;  // until here, the part's own
    units = table.parts[i].end;
  }
  const auto blocks = static_cast<unsigned>(plan::block_count(units, resident, least_units(Part{})));
  LC_LAUNCH(kernel, blocks, kThreads, stream)(table);
  return cudaGetLastError();
}

// The parts of a call, by the kernel that takes them.
template <class Part>
struct Parts {
  std::vector<Part> of[2][2];  // 16 or 32 bits, without or with upper

  template <int kWidth, bool kUpper>
  cudaError_t launch_some(void* stream) {
    std::vector<Part>& parts = of[kWidth / 4][kUpper];
    const auto queue = static_cast<cudaStream_t>(stream);
    if (parts.size() == 1) return launch<Part, kWidth, kUpper, 1>(parts.data(), 1, queue);
    for (std::size_t i = 0; i < parts.size(); i += kMany<Part>) {
      const auto count = static_cast<int64_t>(std::min<std::size_t>(kMany<Part>, parts.size() - i));
      const cudaError_t error = launch<Part, kWidth, kUpper, kMany<Part>>(parts.data() + i, count, queue);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
  cudaError_t launch_all(void* stream) {
    cudaError_t error = launch_some<2, false>(stream);
    if (error == cudaSuccess) error = launch_some<2, true>(stream);
    if (error == cudaSuccess) error = launch_some<4, false>(stream);
    if (error == cudaSuccess) error = launch_some<4, true>(stream);
    return error;
  }
};

plan::SignLimits limits;

struct Call {
  Parts<ColumnsPart> columns;
  Parts<RunsPart> runs;
  Parts<StridedPart> strided;

  void add(const lc_activation& a) {
    const auto dtype = static_cast<Dtype>(a.dtype);
    const int64_t width = lc::width(dtype), vector = plan::kVector / width;
    std::vector<Dim> samples;
    for (int64_t d = 0; d < a.dims; ++d) {
      if (d != a.channel_dim) samples.push_back({a.sizes[d], a.strides[d]});
    }
    const Dim channels{a.sizes[a.channel_dim], a.strides[a.channel_dim]};
    const plan::SignPlan plan = plan::sign_plan(channels, samples, width, reinterpret_cast<uintptr_t>(a.x), limits);

    const bool upper = a.upper > 0;
    const uint32_t least = upper ? at_least(dtype, a.upper) : 0, nan = infinity(dtype) + 1;
    const auto gap = [&](uint32_t bound, bool packed) {
      if (packed) return width == 2 ? Format<2>::gap(bound) : Format<4>::gap(bound);
      // Bounds are of magnitudes: shifted like them, one below a bound stays below it.
      return Format<4>::gap(bound << (32 - 8 * width));
    };
    const auto address = [&](int64_t start) { return static_cast<const char*>(a.x) + start * width; };
    for (const plan::SignPart& any : plan.parts) {
      if (const auto* part = std::get_if<plan::Columns>(&any)) {
        const auto rows = static_cast<uint32_t>(part->outer.size * part->inner.size);
        columns.of[width / 4][upper].push_back(
            {reinterpret_cast<const uint4*>(address(part->start)), a.out, plan.repeat,
             part->units.strips * part->units.chunks, part->outer.stride / vector, part->inner.stride / vector, rows,
             static_cast<uint32_t>(part->width / vector), static_cast<uint32_t>(part->inner.size),
             static_cast<uint32_t>(part->run), static_cast<uint32_t>(channels.size),
             static_cast<uint32_t>(part->cols / 4), gap(least, true), gap(nan, true)});
      } else if (const auto* part = std::get_if<plan::Runs>(&any)) {
        runs.of[width / 4][upper].push_back(
            {reinterpret_cast<const uint4*>(address(part->start)), a.out, plan.repeat,
             part->units.strips * part->units.chunks, part->channel_stride / vector, part->outer.stride / vector,
             part->units.chunks, static_cast<uint32_t>(part->width / vector), gap(least, true), gap(nan, true)});
      } else {
        const auto& dims = std::get<plan::Strided>(any).dims;
        const auto& p = std::get<plan::Strided>(any);
        strided.of[width / 4][upper].push_back(
            {address(p.start), a.out, plan.repeat, p.units.strips * p.units.chunks, p.channel_stride, channels.size,
             dims[0].size * dims[1].size * dims[2].size * dims[3].size, {dims[1].size, dims[2].size, dims[3].size},
             {dims[0].stride, dims[1].stride, dims[2].stride, dims[3].stride}, static_cast<uint32_t>(p.cols),
             static_cast<uint32_t>(p.tile), gap(least, false), gap(nan, false)});
      }
    }
  }

  cudaError_t launch_all(void* stream) {
    cudaError_t error = columns.launch_all(stream);
    if (error == cudaSuccess) error = runs.launch_all(stream);
    if (error == cudaSuccess) error = strided.launch_all(stream);
    return error;
  }
};

}  // namespace
}  // namespace lc::cuda

int lc_sign_histogram(const lc_activation* activations, int64_t count, void* stream) {
  if (!lc::plan::well_bounded(activations, count)) return cudaErrorInvalidValue;
  try {
    lc::cuda::Call call;
    for (int64_t i = 0; i < count; ++i) call.add(activations[i]);
    return call.launch_all(stream);
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
}

void lc_sign_limits(int64_t long_run, int64_t largest) {
  lc::cuda::limits.long_run = long_run;
  lc::cuda::limits.largest = largest;
}

int lc_device_count(int* count) { return cudaGetDeviceCount(count); }
const char* lc_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
