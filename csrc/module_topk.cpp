// layercollapse._core.TopkPlan: the plan of masked_topk_ on a GPU (plan/topk_plan.h) for launches from Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "plan/topk_plan.h"

namespace py = pybind11;

namespace {

using namespace lc::topk;
using Numbers = std::vector<int64_t>;

Plan plan_of(const std::vector<uint64_t>& values, const std::vector<uint64_t>& masks, const Numbers& dtypes,
             const std::vector<Numbers>& sizes, const std::vector<Numbers>& strides, bool global, int64_t segments,
             int64_t shortest, int64_t sample, bool lists, bool kept, bool tails) {
  const std::size_t count = values.size();
  if (masks.size() != count || dtypes.size() != count || sizes.size() != count || strides.size() != count) {
    throw std::invalid_argument("TopkPlan: expected lists of one length");
  }
  std::vector<Weight> weights(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (dtypes[i] < 0 || dtypes[i] >= lc::kDtypes || sizes[i].size() != strides[i].size()) {
      throw std::invalid_argument("TopkPlan: expected dtypes of 0, 1 or 2, and a stride for each size");
    }
    weights[i] = {values[i], masks[i], static_cast<lc::Dtype>(dtypes[i]), {}};
    for (std::size_t d = 0; d < sizes[i].size(); ++d) weights[i].dims.push_back({sizes[i][d], strides[i][d]});
  }
  return make_plan(weights, global, segments, {shortest, sample, lists, kept, false, tails});
}

const int64_t* checked(const Plan& plan, const Numbers& k) {
  if (static_cast<int64_t>(k.size()) != plan.sizes.groups) throw std::invalid_argument("k: expected one for each group");
  return k.data();
}

py::array_t<int64_t> ranks(const Plan& plan, const Numbers& k) {
  checked(plan, k);
  py::array_t<int64_t> rows({plan.sizes.groups, int64_t(3)});
  for (int64_t group = 0; group < plan.sizes.groups; ++group) {
    const Ranks of = ranks_of(plan.group(group), k[static_cast<std::size_t>(group)]);
    rows.mutable_at(group, 0) = of.k;
    rows.mutable_at(group, 1) = of.low;
    rows.mutable_at(group, 2) = of.high;
  }
  return rows;
}

py::dict columns() {
  py::dict all;
  const auto number = [&](const char* name, int64_t value) { all[name] = value; };
  number("FIELDS", kFields);
  number("STATE_FIELDS", kStateFields);
  number("BINS", kBins);
  number("SAMPLE", kSample);
  number("PART", kPart);
  number("SHORTEST", kShortest);
  const auto name = [&](std::initializer_list<const char*> names) {
    int64_t value = 0;
    for (const char* each : names) all[each] = value++;
  };
  name({"ADDRESS", "MASK", "BEGIN", "COUNT", "DIMS", "KIND", "GROUP", "ROW", "LIST", "EACH"});
  name({"FIRST", "SEGMENTS", "PLACES", "SLOT", "END", "GROUP_KIND", "SUMS", "SAMPLE_ROW", "DRAWN"});
  name({"LO", "HI", "SHIFT", "STAGE", "THRESHOLD", "KEPT", "K", "RANK", "BOUND", "SPLIT", "COLLECT", "KEPT_SUM",
        "BELOW_SUM", "TICKET", "DRAW_TICKET"});
  name({"GUESSED", "PROVEN", "DONE"});
  name({"WIDE", "BFLOAT16", "FLOAT16", "COMMON_BFLOAT16", "COMMON_FLOAT16"});
  return all;
}
static_assert(kEach == 9 && kDrawn == 8 && kDrawTicket == 14 && kDone == 2 && kCommonFloat16 == 4);

}  // namespace

void bind_topk_plan(py::module_& m) {
  py::class_<Plan>(m, "TopkPlan", "How masked_topk_ on a GPU cuts weights into segments; see csrc/plan/topk_plan.h.")
      .def(py::init(&plan_of), py::arg("values"), py::arg("masks"), py::arg("dtypes"), py::arg("sizes"),
           py::arg("strides"), py::arg("global_"), py::arg("segments"), py::arg("shortest"), py::arg("sample"),
           py::arg("lists"), py::arg("kept"), py::arg("tails"))
      .def_property_readonly("table", [](const Plan& plan) {
        return py::array_t<int64_t>(static_cast<py::ssize_t>(plan.table.size()), plan.table.data());
      })
      .def_property_readonly("segments", [](const Plan& plan) { return plan.sizes.segments; })
      .def_property_readonly("groups", [](const Plan& plan) { return plan.sizes.groups; })
      .def_readonly("dims", &Plan::dims)
      .def_readonly("parts", &Plan::parts)
      .def_readonly("most_dims", &Plan::most_dims)
      .def_property_readonly("classes", [](const Plan& plan) {
        std::vector<std::tuple<int64_t, bool, int64_t, int64_t>> all;
        for (const Class& each : plan.classes) all.emplace_back(each.kind, each.strided != 0, each.first, each.count);
        return all;
      })
      .def_property_readonly("scratch", [](const Plan& plan) {
        const Scratch at = scratch_of(plan.sizes);
        return std::vector<int64_t>{at.gate, at.state, at.sums, at.ties, at.bins, at.listed, at.lists, at.sample, at.end};
      })
      .def("ranks", &ranks, py::arg("k"))
      .def("rounds", [](const Plan& plan, const Numbers& k) { return rounds_of(plan, checked(plan, k)); }, py::arg("k"))
      .def("outcome", [](const Plan& plan, const Numbers& k, const Numbers& head) {
        if (static_cast<int64_t>(head.size()) * 8 < scratch_of(plan.sizes).sums) throw std::invalid_argument("head: too short");
        const Outcome outcome = outcome_of(plan, checked(plan, k), head.data());
        return std::make_tuple(static_cast<int>(outcome.code), outcome.index, outcome.kept);
      }, py::arg("k"), py::arg("head"));
  m.attr("topk_columns") = columns();
}
