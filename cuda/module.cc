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

#include "fused_config.h"
#include "handlers.h"

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

// The fused kernels of one pass for these features: tokens that stay, how many of them a warp has, tokens streamed per
// step.
std::vector<std::tuple<int, int, int>> shapes(const std::string& name, int element_bytes, int head_dim, int value_dim) {
  const std::map<std::string, Pass> passes = {{"forward", Pass::kForward},
                                              {"backward_queries", Pass::kBackwardQueries},
                                              {"backward_keys", Pass::kBackwardKeys}};
  const Pass pass = passes.at(name);
  const int row_bytes = feature_bucket(head_dim, value_dim) * element_bytes;
  std::vector<std::tuple<int, int, int>> result;
  for (int rows = kSmallRows; row_bytes > 0 && rows <= kLargeRows; rows *= 2)
    if (has_shape(pass, row_bytes, element_bytes, rows))
      result.emplace_back(rows, rows == kLargeRows ? 32 : 16, streamed_tokens(pass, row_bytes, rows));
  return result;
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
        "(tokens that stay, how many of them a warp has, tokens streamed per step) of every fused kernel of the pass "
        "'forward', 'backward_queries' or 'backward_keys' for these features; none if they are too many.");
}

}  // namespace
}  // namespace jax_na::cuda
