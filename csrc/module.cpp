// layercollapse._core: the ops on raw memory. Addresses, sizes and strides (in entries) come from the caller, who has
// checked them; no torch header, so one build serves every torch, and NumPy (csrc/python).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "apply_mask.h"
#include "kernels.h"
#include "masked_topk.h"
#include "plan/hash_plan.h"
#include "plan/mask_plan.h"
#include "sign_hashes.h"
#include "sign_histogram.h"
#include "topk_count.h"

namespace py = pybind11;

void bind_sign_plan(py::module_& m);  // module_plan.cpp
void bind_topk_plan(py::module_& m);  // module_topk.cpp

namespace {

using lc::Dim;

lc::Dtype dtype_of(int code) {
  if (code < 0 || code >= lc::kDtypes) throw std::invalid_argument("dtype: expected 0, 1 or 2, got " + std::to_string(code));
  return static_cast<lc::Dtype>(code);
}

std::vector<Dim> dims_of(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  if (sizes.size() != strides.size() || sizes.size() > lc::kMaxDims) {
    throw std::invalid_argument("strides: expected one for each of at most 64 dimensions, got " +
                                std::to_string(strides.size()) + " for " + std::to_string(sizes.size()));
  }
  std::vector<Dim> dims;
  for (std::size_t d = 0; d < sizes.size(); ++d) dims.push_back({sizes[d], strides[d]});
  return dims;
}

void sign_histogram(const std::vector<std::uintptr_t>& xs, const std::vector<int>& dtypes,
                    const std::vector<std::vector<int64_t>>& sizes, const std::vector<std::vector<int64_t>>& strides,
                    const std::vector<std::size_t>& channel_dims, const std::vector<double>& uppers,
                    const std::vector<std::uintptr_t>& outs, int threads) {
  std::vector<lc::Activation> activations;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    std::vector<Dim> dims = dims_of(sizes.at(i), strides.at(i));
    const Dim channels = dims.at(channel_dims.at(i));
    dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(channel_dims[i]));
    activations.push_back({reinterpret_cast<const void*>(xs[i]), dtype_of(dtypes.at(i)), channels, std::move(dims),
                           uppers.at(i), reinterpret_cast<int64_t*>(outs.at(i))});
  }
  py::gil_scoped_release release;
  lc::sign_histogram(activations, threads);
}

void sign_hashes(std::uintptr_t x, int dtype, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                 std::size_t channel_dim, std::uintptr_t out, int threads) {
  std::vector<Dim> dims = dims_of(sizes, strides);
  const Dim channels = dims.at(channel_dim);
  dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(channel_dim));
  const lc::Dtype type = dtype_of(dtype);
  py::gil_scoped_release release;
  lc::sign_hashes(reinterpret_cast<const void*>(x), type, channels, std::move(dims), reinterpret_cast<int64_t*>(out),
                  threads);
}

using Layouts = std::vector<std::tuple<std::size_t, std::vector<int64_t>, std::vector<int64_t>>>;

std::vector<lc::Weight> weights_of(const std::vector<std::uintptr_t>& values, const std::vector<std::uintptr_t>& keep,
                                   const std::vector<int>& dtypes, const std::vector<int64_t>& sizes,
                                   const Layouts& layouts) {
  const std::size_t count = values.size();
  if (keep.size() != count || dtypes.size() != count || sizes.size() != count) {
    throw std::invalid_argument("weights: expected lists of one length");
  }
  std::vector<lc::Weight> weights(count);
  for (std::size_t i = 0; i < count; ++i) {
    weights[i].values = reinterpret_cast<void*>(values[i]);
    weights[i].keep = reinterpret_cast<uint8_t*>(keep[i]);
    weights[i].dtype = dtype_of(dtypes[i]);
    weights[i].size = sizes[i];
  }
  for (const auto& [index, shape, strides] : layouts) lc::set_dims(weights.at(index), dims_of(shape, strides));
  return weights;
}

std::tuple<int, int64_t, int64_t> masked_topk(const std::vector<std::uintptr_t>& values,
                                              const std::vector<std::uintptr_t>& keep, const std::vector<int>& dtypes,
                                              const std::vector<int64_t>& sizes, const Layouts& layouts,
                                              const std::vector<int64_t>& k, bool global, std::uintptr_t thresholds,
                                              int threads) {
  std::vector<lc::Weight> weights = weights_of(values, keep, dtypes, sizes, layouts);
  if (k.size() != (global ? 1 : weights.size())) throw std::invalid_argument("k: expected one, or one per weight");
  py::gil_scoped_release release;
  const lc::TopkResult result =
      lc::masked_topk(weights, k, global, threads, reinterpret_cast<uint32_t*>(thresholds));
  return {result.code, result.index, result.kept};
}

void topk_count(const std::vector<std::uintptr_t>& values, const std::vector<std::uintptr_t>& keep,
                const std::vector<int>& dtypes, const std::vector<int64_t>& sizes, const Layouts& layouts, int64_t lo,
                int64_t hi, std::uintptr_t counts, int threads) {
  if (lo < 0 || hi <= lo || hi > lc::kCommonEnd) throw std::invalid_argument("lo: expected 0 <= lo < hi <= 0x7f800001");
  const std::vector<lc::Weight> weights = weights_of(values, keep, dtypes, sizes, layouts);
  py::gil_scoped_release release;
  lc::topk_count(weights, static_cast<uint32_t>(lo), static_cast<uint32_t>(hi), threads, reinterpret_cast<int64_t*>(counts));
}

void apply_mask(const std::vector<std::uintptr_t>& values, const std::vector<std::uintptr_t>& keep,
                const std::vector<int>& dtypes, const std::vector<int64_t>& sizes, const Layouts& layouts, int threads) {
  const std::vector<lc::Weight> weights = weights_of(values, keep, dtypes, sizes, layouts);
  py::gil_scoped_release release;
  lc::apply_mask(weights, threads);
}

// The table of plan/mask_plan.h, its rows, and its tiles.
std::tuple<std::vector<int64_t>, int64_t, int64_t> mask_table(
    int64_t tile, const std::vector<std::uintptr_t>& values, const std::vector<std::uintptr_t>& masks,
    const std::vector<int>& dtypes, const std::vector<std::vector<int64_t>>& shapes,
    const std::vector<std::vector<int64_t>>& strides) {
  std::vector<lc_weight> weights;
  int64_t words = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    dims_of(shapes.at(i), strides.at(i));  // throws if they do not fit
    weights.push_back({reinterpret_cast<void*>(values[i]), reinterpret_cast<uint8_t*>(masks.at(i)),
                       static_cast<int64_t>(dtype_of(dtypes.at(i))), int64_t(shapes[i].size()), shapes[i].data(),
                       strides[i].data()});
    words += lc::plan::MaskTable::most_words(weights.back());
  }
  std::vector<int64_t> table(static_cast<std::size_t>(words));
  lc::plan::MaskTable rows(table.data(), words, tile);
  for (const auto& weight : weights) rows.add(weight);
  return {std::move(table), rows.rows(), rows.tiles()};
}

// The rows of plan/hash_plan.h: sizes and strides of what is not the channels'.
std::tuple<std::vector<int64_t>, std::vector<int64_t>> hash_rows(const std::vector<int64_t>& sizes,
                                                                 const std::vector<int64_t>& strides,
                                                                 int64_t channel_dim) {
  dims_of(sizes, strides);
  if (channel_dim < 0 || channel_dim >= int64_t(sizes.size())) throw std::invalid_argument("channel_dim");
  lc_activation activation{};
  activation.sizes = sizes.data();
  activation.strides = strides.data();
  activation.dims = int64_t(sizes.size());
  activation.channel_dim = channel_dim;
  const lc::plan::HashRows rows = lc::plan::hash_rows(activation);
  return {{rows.sizes, rows.sizes + rows.ndim}, {rows.strides, rows.strides + rows.ndim}};
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The ops on raw memory; use layercollapse.ops, or layercollapse_core without torch.";
  m.def("isa", [] { return lc::kernels().name; }, "Name of the instruction set in use.");
  m.def("use_isa", &lc::choose_kernels, py::arg("name"), "Use 'auto', 'portable', 'avx2' or 'avx512' from now on.");
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
  m.def("sign_histogram", &sign_histogram, py::arg("xs"), py::arg("dtypes"), py::arg("sizes"), py::arg("strides"),
        py::arg("channel_dims"), py::arg("uppers"), py::arg("outs"), py::arg("threads"));
  m.def("sign_hashes", &sign_hashes, py::arg("x"), py::arg("dtype"), py::arg("sizes"), py::arg("strides"),
        py::arg("channel_dim"), py::arg("out"), py::arg("threads"));
  m.def("masked_topk", &masked_topk, py::arg("values"), py::arg("keep"), py::arg("dtypes"), py::arg("sizes"),
        py::arg("layouts"), py::arg("k"), py::arg("global_"), py::arg("thresholds"), py::arg("threads"));
  m.def("topk_count", &topk_count, py::arg("values"), py::arg("keep"), py::arg("dtypes"), py::arg("sizes"),
        py::arg("layouts"), py::arg("lo"), py::arg("hi"), py::arg("counts"), py::arg("threads"));
  m.def("apply_mask", &apply_mask, py::arg("values"), py::arg("keep"), py::arg("dtypes"), py::arg("sizes"),
        py::arg("layouts"), py::arg("threads"));
  m.def("mask_table", &mask_table, py::arg("tile"), py::arg("values"), py::arg("masks"), py::arg("dtypes"),
        py::arg("shapes"), py::arg("strides"));
  m.def("hash_rows", &hash_rows, py::arg("sizes"), py::arg("strides"), py::arg("channel_dim"));
  bind_sign_plan(m);
  bind_topk_plan(m);
}
