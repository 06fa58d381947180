// layercollapse_core._core.sign_plan: the plan of csrc/plan/sign_plan.h for Triton's launches.
#include "plan/sign_plan.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "dtypes.h"

namespace py = pybind11;

namespace {

using namespace lc::plan;

py::tuple pair(const lc::Dim& dim) { return py::make_tuple(dim.size, dim.stride); }

SignPlan plan_of(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, std::size_t channel_dim,
                 int64_t width, uint64_t address, const SignLimits& limits) {
  if (sizes.size() != strides.size() || channel_dim >= sizes.size()) {
    throw std::invalid_argument("sign_plan: expected a stride for each size, and channel_dim one of them");
  }
  std::vector<lc::Dim> samples;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    if (d != channel_dim) samples.push_back({sizes[d], strides[d]});
  }
  return sign_plan({sizes[channel_dim], strides[channel_dim]}, samples, width, address, limits);
}

template <class Part>
py::class_<Part> part_class(py::module_& m, const char* name) {
  return py::class_<Part>(m, name)
      .def_readonly("start", &Part::start)
      .def_property_readonly("strips", [](const Part& part) { return part.units.strips; })
      .def_property_readonly("chunks", [](const Part& part) { return part.units.chunks; })
      .def_property_readonly("most", [](const Part& part) { return part.units.most; });
}

}  // namespace

void bind_sign_plan(py::module_& m) {
  m.attr("VECTOR") = kVector;
  py::class_<SignLimits>(m, "SignLimits")
      .def(py::init([](int64_t block, int64_t unroll, int64_t long_run, int64_t largest) {
             return SignLimits{block, unroll, long_run, largest};
           }),
           py::arg("block") = SignLimits{}.block, py::arg("unroll") = SignLimits{}.unroll,
           py::arg("long_run") = SignLimits{}.long_run, py::arg("largest") = SignLimits{}.largest)
      .def_readonly("block", &SignLimits::block)
      .def_readonly("unroll", &SignLimits::unroll)
      .def_readonly("long_run", &SignLimits::long_run)
      .def_readonly("largest", &SignLimits::largest);
  part_class<Columns>(m, "Columns")
      .def_readonly("width", &Columns::width)
      .def_readonly("run", &Columns::run)
      .def_readonly("cols", &Columns::cols)
      .def_property_readonly("outer", [](const Columns& part) { return pair(part.outer); })
      .def_property_readonly("inner", [](const Columns& part) { return pair(part.inner); });
  part_class<Runs>(m, "Runs")
      .def_readonly("width", &Runs::width)
      .def_readonly("channel_stride", &Runs::channel_stride)
      .def_property_readonly("outer", [](const Runs& part) { return pair(part.outer); });
  part_class<Strided>(m, "Strided")
      .def_readonly("channel_stride", &Strided::channel_stride)
      .def_readonly("cols", &Strided::cols)
      .def_readonly("tile", &Strided::tile)
      .def_property_readonly("dims", [](const Strided& part) {
        py::list dims;
        for (const lc::Dim& dim : part.dims) dims.append(pair(dim));
        return dims;
      });
  m.def(
      "sign_plan",
      [](const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, std::size_t channel_dim, int64_t width,
         uint64_t address, const SignLimits& limits) {
        SignPlan plan = plan_of(sizes, strides, channel_dim, width, address, limits);
        return std::make_pair(std::move(plan.parts), plan.repeat);
      },
      py::arg("sizes"), py::arg("strides"), py::arg("channel_dim"), py::arg("width"), py::arg("address"),
      py::arg("limits"), "Parts that are together all of an array, and how often each value counts.");
  m.def("block_count", &block_count, py::arg("units"), py::arg("resident"), py::arg("least"));
  m.def(
      "magnitude_at_least",
      [](int dtype, double bound) { return lc::at_least(static_cast<lc::Dtype>(dtype), bound); }, py::arg("dtype"),
      py::arg("bound"), "Smallest magnitude of a type that is at least the float32 next to a bound above 0.");
}
