// SPDX-License-Identifier: Apache-2.0
// The Python module jax_na._cpu: the handlers, the window rule, and what Python must know to plan a call.
#include <nanobind/ndarray.h>

#include "common/call/binding.h"
#include "common/window.h"
#include "cpu/host/handlers.h"
#include "cpu/host/instruction_set.h"
#include "cpu/host/thread_pool.h"

namespace nb = nanobind;

namespace jax_na {
namespace {

using Array = nb::ndarray<nb::numpy, int32_t, nb::ndim<2>>;

// One row (start, stop) per coordinate of the axis, in positions of the coordinate's own group.
template <Range (*rule)(const Axis&, int, int)>
Array tabulate(const binding::AxisTuple& given) {
  const Axis axis = binding::checked_axis(given);
  auto* rows = new int32_t[size_t{2} * axis.length];
  nb::capsule owner(rows, [](void* pointer) noexcept { delete[] static_cast<int32_t*>(pointer); });
  for (int x = 0; x < axis.length; ++x) {
    const Range range = rule(axis, group_length(axis, x % axis.dilation), x / axis.dilation);
    rows[2 * x] = range.start;
    rows[2 * x + 1] = range.stop;
  }
  return Array(rows, {static_cast<size_t>(axis.length), 2}, owner);
}

int64_t scratch_bytes(const Variant& variant, const Query& query, const Tiles& tiles) {
  return static_cast<const CpuVariant&>(variant).scratch(with_tile(query, tiles.query));
}

NB_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of jax_na as XLA FFI handlers, and the window rule they share with every other backend.";
  binding::bind_table(m, kCpu, &best_rows, &handler, &scratch_bytes);
  m.def("isa", &instruction_set, "Instruction set in use: 'baseline', 'avx2', 'avx512' or 'avx512bf16'.");
  m.def("isa_levels", &instruction_sets, "Instruction sets this machine can run, slowest first.");
  m.def("width", [] { return best_kernels().width; }, "float32 lanes of a register of the instruction set in use.");
  m.def("windows", &tabulate<window>, nb::arg("axis"),
        "int32 [length, 2]: start and stop of each coordinate's window, in positions of its dilation group. "
        "axis: (length, kernel_size, stride, dilation, is_causal).");
  m.def("inverse_windows", &tabulate<inverse_window>, nb::arg("axis"),
        "int32 [length, 2]: first and stop of the queries that see each key coordinate, in positions of its group. "
        "axis: (length, kernel_size, stride, dilation, is_causal).");
  m.attr("SMALLEST_SHARED_WORK") = kSmallestSharedWork;  // FLOPs below which a call has one worker
}

}  // namespace
}  // namespace jax_na
