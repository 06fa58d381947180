// Dimensions of a strided array, reduced to as few as describe the same memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lc {

struct Dim {
  int64_t size;
  int64_t stride;  // in entries
};

// Removes dimensions of size 1 and joins neighbours that step through memory as one. Keeps row-major order.
inline std::vector<Dim> coalesce(const std::vector<Dim>& dims) {
  std::vector<Dim> result;
  for (const Dim& dim : dims) {
    if (dim.size == 1) continue;
    if (!result.empty() && result.back().stride == dim.size * dim.stride) {
      result.back() = {result.back().size * dim.size, dim.stride};
    } else {
      result.push_back(dim);
    }
  }
  return result;
}

inline int64_t product(const std::vector<Dim>& dims) {
  int64_t count = 1;
  for (const Dim& dim : dims) count *= dim.size;
  return count;
}

// Offset in entries of the row-major position `index`.
inline int64_t offset_of(const std::vector<Dim>& dims, int64_t index) {
  int64_t offset = 0;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    offset += index % dim->size * dim->stride;
    index /= dim->size;
  }
  return offset;
}

constexpr std::size_t kMaxDims = 64;  // NumPy's limit, and that of torch's own loops

// Walks row-major positions from a given one, without a division per step; allocates nothing.
class Walker {
 public:
  Walker(const std::vector<Dim>& dims, int64_t index) : dims_(dims), offset_(0) {
    for (std::size_t d = dims.size(); d-- > 0;) {
      at_[d] = index % dims[d].size;
      offset_ += at_[d] * dims[d].stride;
      index /= dims[d].size;
    }
  }
  int64_t offset() const { return offset_; }
  void next() {
    for (std::size_t d = dims_.size(); d-- > 0;) {
      offset_ += dims_[d].stride;
      if (++at_[d] < dims_[d].size) return;
      offset_ -= dims_[d].size * dims_[d].stride;
      at_[d] = 0;
    }
  }

 private:
  const std::vector<Dim>& dims_;
  std::array<int64_t, kMaxDims> at_;
  int64_t offset_;
};

}  // namespace lc
