// SPDX-License-Identifier: Apache-2.0
// The Python module jax_na._cpu: the handlers, the window rule, and what Python must know to plan a call.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <stdexcept>
#include <tuple>

#include "common/window.h"
#include "cpu/host/handlers.h"
#include "cpu/host/instruction_set.h"
#include "cpu/host/thread_pool.h"

namespace nb = nanobind;

namespace jax_na {
namespace {

nb::dict handlers() {
  nb::dict result;
  auto add = [&](const char* target, XLA_FFI_Handler* handler) {
    result[target] = nb::capsule(reinterpret_cast<void*>(handler));
  };
  add("na_naive_qk", JaxNaNaiveQk);
  add("na_naive_av", JaxNaNaiveAv);
  add("na_naive_inverse", JaxNaNaiveInverse);
  add("na_gemm_qk", JaxNaGemmQk);
  add("na_gemm_av", JaxNaGemmAv);
  add("na_gemm_inverse", JaxNaGemmInverse);
  add("na_fused_forward", JaxNaFusedForward);
  add("na_fused_backward", JaxNaFusedBackward);
  add("na_softmax", JaxNaSoftmax);
  add("na_empty", JaxNaEmpty);
  return result;
}

using Table = nb::ndarray<nb::numpy, int32_t, nb::ndim<2>>;

// One row (start, stop) per coordinate of the axis, in positions of the coordinate's own group.
template <class Rule>
Table tabulate(const Axis& axis, const Rule& rule) {
  auto* rows = new int32_t[size_t{2} * axis.length];
  nb::capsule owner(rows, [](void* pointer) noexcept { delete[] static_cast<int32_t*>(pointer); });
  for (int x = 0; x < axis.length; ++x) {
    const Range range = rule(axis, group_length(axis, x % axis.dilation), x / axis.dilation);
    rows[2 * x] = range.start;
    rows[2 * x + 1] = range.stop;
  }
  return Table(rows, {static_cast<size_t>(axis.length), 2}, owner);
}

Axis checked_axis(int length, int kernel_size, int stride, int dilation, bool is_causal) {
  if (kernel_size < 1 || dilation < 1 || stride < 1 || stride > kernel_size || int64_t{kernel_size} * dilation > length)
    throw std::invalid_argument("illegal window");
  return {length, kernel_size, stride, dilation, is_causal};
}

using Axes = std::vector<std::tuple<int, int, int, int, bool>>;

// What the plan of a call depends on; the numbers of tokens present are not known to it.
Problem planned(const std::vector<int>& tile, const Axes& axes, int head_dim, int value_dim) {
  if (axes.empty() || axes.size() > kAxes || tile.size() != axes.size()) throw std::invalid_argument("illegal tile");
  Problem p{};
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - static_cast<int>(axes.size()));
    p.tile[a] = i < 0 ? 1 : tile[i];
    p.axis[a] = i < 0 ? Axis{1, 1, 1, 1, false} : std::apply(checked_axis, axes[i]);
  }
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  return p;
}

int64_t scratch_bytes(const std::string& target, const std::vector<int>& tile, const Axes& axes, int head_dim,
                      int value_dim) {
  const Kernels& kernels = best_kernels();
  const Problem p = planned(tile, axes, head_dim, value_dim);
  if (target == "na_fused_forward") return kernels.forward_scratch(p);
  if (target == "na_fused_backward") return kernels.backward_scratch(p);
  if (target.rfind("na_gemm_", 0) == 0) return kernels.gemm_scratch(p);
  return 0;
}

bool rows_fit(const std::string& target, const std::vector<int>& tile, const Axes& axes, int head_dim, int value_dim) {
  const std::map<std::string, Pass> passes = {{"na_fused_forward", Pass::kForward},
                                              {"na_fused_backward", Pass::kBackward},
                                              {"na_gemm_qk", Pass::kQk},
                                              {"na_gemm_av", Pass::kAv},
                                              {"na_gemm_inverse", Pass::kInverse}};
  return best_kernels().rows_fit(planned(tile, axes, head_dim, value_dim), passes.at(target));
}

NB_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of jax_na as XLA FFI handlers, and the window rule they share with every other backend.";
  m.def("handlers", &handlers, "Target name -> capsule of the XLA FFI handler.");
  m.def(
      "ffi_api_version", [] { return std::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR); },
      "(major, minor) of the XLA FFI headers this module was built with.");
  m.def("isa", &instruction_set, "Instruction set in use: 'baseline', 'avx2' or 'avx512'.");
  m.def("isa_levels", &instruction_sets, "Instruction sets this machine can run, slowest first.");
  m.def("width", [] { return best_kernels().width; }, "float32 lanes of a register of the instruction set in use.");
  m.def("rows_fit", &rows_fit, nb::arg("target"), nb::arg("tile"), nb::arg("axes"), nb::arg("head_dim"),
        nb::arg("value_dim"),
        "Whether a target can use its row kernel. tile: query rows per leading axis, then 0; axes: (length, "
        "kernel_size, stride, dilation, is_causal) each.");
  m.def(
      "windows",
      [](int length, int kernel_size, int stride, int dilation, bool is_causal) {
        return tabulate(checked_axis(length, kernel_size, stride, dilation, is_causal), window);
      },
      nb::arg("length"), nb::arg("kernel_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("is_causal"),
      "int32 [length, 2]: start and stop of each coordinate's window, in positions of its dilation group.");
  m.def(
      "inverse_windows",
      [](int length, int kernel_size, int stride, int dilation, bool is_causal) {
        return tabulate(checked_axis(length, kernel_size, stride, dilation, is_causal), inverse_window);
      },
      nb::arg("length"), nb::arg("kernel_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("is_causal"),
      "int32 [length, 2]: first and stop of the queries that see each key coordinate, in positions of its group.");
  m.def(
      "tile_range",
      [](int length, int kernel_size, int stride, int dilation, bool is_causal, int group, int first, int last) {
        const Axis axis = checked_axis(length, kernel_size, stride, dilation, is_causal);
        const int n = group_length(axis, group);
        const Range all = tile_keys(axis, n, first, last), inner = tile_inner_keys(axis, n, first, last);
        return std::make_tuple(all.start, all.stop, inner.start, inner.stop);
      },
      nb::arg("length"), nb::arg("kernel_size"), nb::arg("stride"), nb::arg("dilation"), nb::arg("is_causal"),
      nb::arg("group"), nb::arg("first"), nb::arg("last"),
      "(start, stop, inner_start, inner_stop): union and intersection of the windows of queries first..last.");
  m.def("scratch_bytes", &scratch_bytes, nb::arg("target"), nb::arg("tile"), nb::arg("axes"), nb::arg("head_dim"),
        nb::arg("value_dim"), "Scratch memory, in bytes, that one worker of a target needs.");
  m.attr("SMALLEST_SHARED_WORK") = kSmallestSharedWork;  // FLOPs below which a call has one worker
}

}  // namespace
}  // namespace jax_na
