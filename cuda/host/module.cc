// SPDX-License-Identifier: Apache-2.0
// The Python module jax_na._cuda: the handlers, and what Python must know to plan a call. It loads on a machine without
// a GPU and without a driver.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <sstream>
#include <tuple>

#include "cuda/gemm/config.h"
#include "cuda/host/handlers.h"
#include "cuda/sm90/rule.h"

namespace nb = nanobind;

namespace jax_na::cuda {
namespace {

nb::dict handlers() {
  nb::dict result;
  auto add = [&](const char* target, XLA_FFI_Handler* handler) {
    result[target] = nb::capsule(reinterpret_cast<void*>(handler));
  };
  add("na_naive_qk", JaxNaCudaNaiveQk);
  add("na_naive_av", JaxNaCudaNaiveAv);
  add("na_naive_inverse", JaxNaCudaNaiveInverse);
  add("na_gemm_qk", JaxNaCudaGemmQk);
  add("na_gemm_av", JaxNaCudaGemmAv);
  add("na_gemm_inverse", JaxNaCudaGemmInverse);
  add("na_fused_forward", JaxNaCudaFusedForward);
  add("na_fused_backward", JaxNaCudaFusedBackward);
  add("na_empty", JaxNaCudaEmpty);
  return result;
}

std::vector<std::string> architectures() {
  std::istringstream names(JAX_NA_CUDA_ARCHITECTURES);
  std::vector<std::string> result;
  for (std::string name; std::getline(names, name, ' ');) result.push_back(name);
  return result;
}

const std::map<std::string, Unfused> kUnfused = {
    {"qk", Unfused::kQk}, {"av", Unfused::kAv}, {"inverse", Unfused::kInverse}};

// A kernel: tokens that stay, how many of them a warp has, tokens streamed per step.
using Shape = std::tuple<int, int, int>;

std::vector<Shape> hopper_shapes(int element_bytes, int head_dim, int value_dim, bool additional) {
#ifdef JAX_NA_HOPPER
  if (hopper_obstacle(element_bytes, head_dim, value_dim, additional) == nullptr)
    return {{kHopperRows, 16, hopper_columns(feature_bucket(head_dim, value_dim))}};
#endif
  return {};
}

// Those of one pass.
std::vector<Shape> shapes(const std::string& name, int element_bytes, int head_dim, int value_dim, bool additional) {
  if (name == "hopper_forward") return hopper_shapes(element_bytes, head_dim, value_dim, additional);
  const std::map<std::string, Pass> passes = {{"forward", Pass::kForward},
                                              {"backward_queries", Pass::kBackwardQueries},
                                              {"backward_keys", Pass::kBackwardKeys}};
  std::vector<Shape> result;
  if (kUnfused.count(name) > 0) {
    for (int rows : kGemmRows) result.emplace_back(rows, 16, gemm_columns(rows));
    return result;
  }
  const Pass pass = passes.at(name);
  const int row_bytes = feature_bucket(head_dim, value_dim) * element_bytes;
  for (int rows = kSmallRows; row_bytes > 0 && rows <= kLargeRows; rows *= 2)
    if (has_shape(pass, row_bytes, element_bytes, rows, additional))
      result.emplace_back(rows, rows == kLargeRows ? 32 : 16, streamed_tokens(pass, row_bytes, rows));
  return result;
}

// Slots of a row of weights that a GEMM kernel has room for in shared memory; 0 if these tiles are not for it.
int staged_slots(const std::string& name, int element_bytes, int features, const std::vector<int>& kernel_size,
                 const std::vector<int>& rows, const std::vector<int>& columns) {
  Problem p{};
  int tiles[2][kAxes] = {{1, 1, 1}, {1, 1, 1}}, volume = 1;
  p.pitch = 1;
  for (int a = 0; a < kAxes; ++a) p.axis[a].kernel_size = 1;
  for (size_t i = 0, a = kAxes - kernel_size.size(); a < kAxes; ++i, ++a) {
    p.axis[a].kernel_size = kernel_size[i];
    p.pitch *= kernel_size[i];
    tiles[0][a] = rows[i], tiles[1][a] = columns[i];
    volume *= rows[i];
  }
  p.pitch = round_up(p.pitch, 8);  // as Op.pitch
  const GemmShape shape = gemm_shape(kUnfused.at(name), element_bytes, features, volume);
  return make_staging(shape, p, tiles[0], tiles[1]).slots;
}

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of jax_na as XLA FFI handlers.";
  m.def("handlers", &handlers, "Target name -> capsule of the XLA FFI handler.");
  m.def(
      "ffi_api_version", [] { return std::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR); },
      "(major, minor) of the XLA FFI headers this module was built with.");
  m.def("architectures", &architectures,
        "What it was compiled for: '90a' for machine code, '80-virtual' for code that a driver translates.");
  m.def("shapes", &shapes, nb::arg("name"), nb::arg("element_bytes"), nb::arg("head_dim"), nb::arg("value_dim"),
        nb::arg("additional"),
        "(tokens that stay, how many of them a warp has, tokens streamed per step) of every kernel of the pass "
        "'forward', 'hopper_forward', 'backward_queries', 'backward_keys', 'qk', 'av' or 'inverse' that takes so many "
        "features, with additional tokens or without.");
  m.def("staged_slots", &staged_slots, nb::arg("name"), nb::arg("element_bytes"), nb::arg("features"),
        nb::arg("kernel_size"), nb::arg("rows"), nb::arg("columns"),
        "Slots of a row of weights that the GEMM kernel 'qk', 'av' or 'inverse' has room for in shared memory, with a "
        "tile of rows that stay and one of columns; 0 if it cannot have these tiles.");
}

}  // namespace
}  // namespace jax_na::cuda
