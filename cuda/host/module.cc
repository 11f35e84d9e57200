// SPDX-License-Identifier: Apache-2.0
// The Python module jax_na._cuda: the handlers, and what Python must know to plan a call. It loads on a machine without
// a GPU and without a driver.
#include <sstream>

#include "common/call/binding.h"
#include "cuda/host/handlers.h"
#include "cuda/host/kernels.h"

namespace nb = nanobind;

namespace jax_na::cuda {
namespace {

std::vector<std::string> architectures() {
  std::istringstream names(JAX_NA_CUDA_ARCHITECTURES);
  std::vector<std::string> result;
  for (std::string name; std::getline(names, name, ' ');) result.push_back(name);
  return result;
}

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of jax_na as XLA FFI handlers.";
  binding::bind_table(m, kCuda, &kernels, &handler, nullptr);
  m.def("architectures", &architectures,
        "What it was compiled for: '90a' for machine code, '80-virtual' for code that a driver translates.");
}

}  // namespace
}  // namespace jax_na::cuda
