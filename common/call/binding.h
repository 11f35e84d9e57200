// SPDX-License-Identifier: Apache-2.0
// What the Python modules of all platforms have in common: the targets with their arrays, and the rows of the table of
// kernels, which say what they take and which tiles they have.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "common/call/choice.h"
#include "common/call/query.h"
#include "xla/ffi/api/ffi.h"

namespace jax_na::binding {

namespace nb = nanobind;

inline Names names_of(Operands operands) {
  Names names;
  for (int i = 0; i < kOperands; ++i)
    if ((operands >> i & 1) != 0) names.emplace_back(kOperandNames[i]);
  return names;
}

// The extents of one tile of a form, none if it has no such tile.
inline std::vector<int> extents_of(Form form, int rank, const Tiles& tiles, int tile) {
  std::vector<int> extents;
  if (tile < tiles_of(form, rank))
    for (int i = 0; i < jax_na::extents_of(form, rank); ++i)
      extents.push_back((tile == 0 ? tiles.query : tiles.key)[kAxes - rank + i]);
  return extents;
}

// A choice as the attribute `kernels` has it.
inline std::string written(const Variant& variant, int rank, const Tiles& tiles) {
  std::string text = variant.name;
  for (int tile = 0; tile < 2; ++tile) {
    const std::vector<int> extents = extents_of(variant.form, rank, tiles, tile);
    for (size_t i = 0; i < extents.size(); ++i)
      text += (i > 0 ? "x" : tile > 0 ? "," : ":") + std::to_string(extents[i]);
  }
  return text;
}

struct PyTiling {
  std::string choice;
  std::vector<int> query, key;
  Tiling tiling;
};

struct PyVariant {
  const Variant* variant;
  int64_t (*scratch)(const Variant&, const Query&, const Tiles&);

  std::string obstacle(const Query& query) const {
    Text text{};
    find_obstacle(*variant, query, text);
    return text.at;
  }

  std::vector<PyTiling> tilings(const Query& query) const {
    std::vector<PyTiling> found;
    if (!obstacle(query).empty()) return found;
    const int rank = query.problem.rank;
    const auto add = [&](const Tiling& tiling) {
      found.push_back({written(*variant, rank, tiling.tiles), extents_of(variant->form, rank, tiling.tiles, 0),
                       extents_of(variant->form, rank, tiling.tiles, 1), tiling});
    };
    if (variant->tilings == nullptr) {
      add(Tiling{});
      return found;
    }
    using Add = decltype(add);
    const auto visit = [](void* context, const Tiling& tiling) { (*static_cast<const Add*>(context))(tiling); };
    variant->tilings(query, {visit, const_cast<void*>(static_cast<const void*>(&add))});
    return found;
  }

  Tiles tiles(const Query& query, const std::string& choice) const {
    WrittenChoice parsed{};
    Tiles found{};
    const int rank = query.problem.rank;
    if (!parse_choice(choice, parsed) || parsed.name != variant->name ||
        !place_extents(parsed, variant->form, rank, found))
      throw std::invalid_argument("\"" + choice + "\" is no choice of " + variant->name + ", which has " +
                                  in_words(variant->form, rank));
    return found;
  }

  std::string tile_obstacle(const Query& query, const std::string& choice) const {
    Text text{};
    const Tiles given = tiles(query, choice);
    find_obstacle(*variant, query, text);
    if (is_empty(text) && variant->tile_obstacle != nullptr) variant->tile_obstacle(query, given, text);
    return text.at;
  }

  int64_t scratch_bytes(const Query& query, const std::string& choice) const {
    return scratch == nullptr ? 0 : scratch(*variant, query, tiles(query, choice));
  }
};

// The arrays of a target, by name in the order of a call.
struct [[gnu::visibility("hidden")]] PySignature {
  Names required, optional, results, passes;
  nb::dict elements;
};

inline void bind_queries(nb::module_& m) {
  nb::class_<Query>(m, "Query", "What is known of a call when a program is compiled.")
      .def(
          "__init__",
          [](Query* self, const std::vector<AxisTuple>& axes, int head_dim, int value_dim, const std::string& dtype,
             bool is_exact, const Names& operands, std::optional<int> given_pitch,
             const std::optional<SizeTuple>& sizes) {
            new (self) Query(make_query(axes, head_dim, value_dim, dtype, is_exact, operands, given_pitch));
            if (sizes) place_sizes(*sizes, self->problem);
          },
          nb::kw_only(), nb::arg("axes"), nb::arg("head_dim") = 0, nb::arg("value_dim") = 0,
          nb::arg("dtype") = "float32", nb::arg("is_exact") = false, nb::arg("operands") = Names{},
          nb::arg("pitch") = nb::none(), nb::arg("sizes") = nb::none(),
          "axes: (length, kernel_size, stride, dilation, is_causal) each. head_dim is unused by the unfused "
          "operations. operands: names of those that the call has; only optional ones matter. pitch: see `pitch`. "
          "sizes: (batch, heads, kv_heads, queries, keys) of the arrays, the last two per axis; 0 and () if unknown.");
  nb::class_<PyTiling>(m, "Tiling", "Tiles that a kernel has and that fit, and what its costs depend on.")
      .def_ro("choice", &PyTiling::choice, "The kernel with these tiles, as the attribute `kernels` has it.")
      .def_ro("query", &PyTiling::query,
              "Extents of the query tile; of kernels with one tile those of the tokens that stay, as in `choice`.")
      .def_ro("key", &PyTiling::key, "Extents of the key tile; empty for kernels with one tile.")
      .def_prop_ro(
          "rows", [](const PyTiling& t) { return t.tiling.rows; }, "Tokens that stay in a block.")
      .def_prop_ro(
          "warp_rows", [](const PyTiling& t) { return t.tiling.warp_rows; }, "How many of them a warp has.")
      .def_prop_ro(
          "columns", [](const PyTiling& t) { return t.tiling.columns; }, "Tokens streamed per step.")
      .def_prop_ro(
          "features", [](const PyTiling& t) { return t.tiling.features; },
          "Features that a row in fast memory has room for.")
      .def_prop_ro(
          "staged_slots", [](const PyTiling& t) { return t.tiling.staged_slots; },
          "Slots of a row of weights kept in fast memory; 0 for kernels that keep none.");
}

inline void bind_variants(nb::module_& m) {
  nb::class_<PyVariant>(m, "Variant", "A kernel: one row of the table.")
      .def_prop_ro(
          "target", [](const PyVariant& v) { return kTargetNames[static_cast<int>(v.variant->target)]; },
          "The custom call that can run it.")
      .def_prop_ro(
          "pass_name", [](const PyVariant& v) { return kPassNames[static_cast<int>(v.variant->pass)]; },
          "The pass of the target that it does.")
      .def_prop_ro(
          "name", [](const PyVariant& v) { return v.variant->name; }, "Its name in the attribute `kernels`.")
      .def_prop_ro(
          "form", [](const PyVariant& v) { return kFormNames[static_cast<int>(v.variant->form)]; },
          "Which extents follow its name: \"none\", \"leading_axes\", \"tile\" or \"tile_pair\".")
      .def_prop_ro(
          "takes", [](const PyVariant& v) { return names_of(v.variant->takes); },
          "The optional operands that it takes.")
      .def_prop_ro(
          "capability", [](const PyVariant& v) { return v.variant->capability; },
          nb::sig("def capability(self) -> str | None"),
          "Compute capability of the GPUs that it is for, \"9.0\"; None if it is for all devices of its platform.")
      .def("obstacle", &PyVariant::obstacle, nb::arg("query"),
           "Why it does not take a call: a sentence that begins with \"it takes\". Empty if it does.")
      .def("tile_obstacle", &PyVariant::tile_obstacle, nb::arg("query"), nb::arg("choice"),
           "Why it does not take a call with the tiles of `choice`. Empty if it does.")
      .def("tilings", &PyVariant::tilings, nb::arg("query"),
           "All tiles with which it takes a call, none if there is an obstacle. A kernel without tiles has one.")
      .def("scratch_bytes", &PyVariant::scratch_bytes, nb::arg("query"), nb::arg("choice"),
           "Bytes of the result `scratch` that each worker needs.");
  nb::class_<PySignature>(m, "Signature", "The arrays of a target, by name in the order of a call.")
      .def_ro("required", &PySignature::required, "Operands that every call has.")
      .def_ro("optional", &PySignature::optional, "Operands that a call may have.")
      .def_ro("results", &PySignature::results, "Results; \"drpb\" only if the operand \"rpb\" is there.")
      .def_ro(
          "elements", &PySignature::elements,
          "The element type of every array: \"input\" (that of the call), \"accumulator\" (float64 for float64, else "
          "float32), \"float32\", \"int32\" or \"uint8\".")
      .def_ro("passes", &PySignature::passes, "Names of its passes, in the order of the attribute `kernels`.");
}

template <class Row>
nb::dict targets(const Platform& platform, const Table<Row>& table) {
  nb::dict found;
  for (int i = 0; i < kTargets; ++i) {
    const auto target = static_cast<Target>(i);
    const PassList passes = passes_of(table, target);
    if (passes.count == 0) continue;
    const Signature arrays = signature(platform, target);
    PySignature shown{names_of(arrays.required), names_of(arrays.optional), names_of(arrays.results), {}, {}};
    for (int pass = 0; pass < passes.count; ++pass)
      shown.passes.emplace_back(kPassNames[static_cast<int>(passes.pass[pass])]);
    for (int operand = 0; operand < kOperands; ++operand)
      if (((arrays.required | arrays.optional | arrays.results) >> operand & 1) != 0)
        shown.elements[kOperandNames[operand]] =
            kElementNames[static_cast<int>(element(platform, target, static_cast<Operand>(operand)))];
    found[kTargetNames[i]] = shown;
  }
  return found;
}

template <class Row>
std::vector<PyVariant> variants(const Table<Row>& table, const std::string& name,
                                int64_t (*scratch)(const Variant&, const Query&, const Tiles&)) {
  const auto target = static_cast<Target>(index_of(name, kTargetNames, "target"));
  std::vector<PyVariant> found;
  for (const Row* row : table)
    if (row->target == target) found.push_back({row, scratch});
  return found;
}

// What a platform binds besides the functions that need its table.
inline void bind_call(nb::module_& m) {
  bind_queries(m);
  bind_variants(m);
  m.def(
      "ffi_api_version", [] { return std::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR); },
      "(major, minor) of the XLA FFI headers this module was built with.");
  m.def("pitch", &pitch, nb::arg("slots"), "Weights from one row of them to the next, for windows of so many slots.");
  m.attr("LONGEST_AXIS") = kLongestAxis;
  m.attr("OPERANDS") = nb::tuple(nb::cast(Names(kOperandNames, kOperandNames + kOperands)));
}

// The functions that every platform has.
template <class Row>
void bind_table(nb::module_& m, const Platform& platform, Table<Row> (*table)(), XLA_FFI_Handler* (*handler)(Target),
                int64_t (*scratch)(const Variant&, const Query&, const Tiles&)) {
  nb::set_leak_warnings(false);  // caches of JAX hold objects of this module until the process has ended
  bind_call(m);
  m.def(
      "handlers",
      [table, handler] {
        nb::dict found;
        for (int i = 0; i < kTargets; ++i)
          if (passes_of(table(), static_cast<Target>(i)).count > 0)
            found[kTargetNames[i]] = nb::capsule(reinterpret_cast<void*>(handler(static_cast<Target>(i))));
        return found;
      },
      "Target name -> capsule of the XLA FFI handler.");
  m.def("targets", [platform, table] { return targets(platform, table()); }, "Target name -> its arrays and passes.");
  m.def(
      "variants", [table, scratch](const std::string& target) { return variants(table(), target, scratch); },
      nb::arg("target"), "The kernels of a target, pass after pass.");
}

}  // namespace jax_na::binding
