// SPDX-License-Identifier: Apache-2.0
// The table of CUDA kernels as a Python module without the kernels: what jax_na._cuda says about them, for tests where
// it is not built. Compiled for the host by tests/cuda_rows.py.
#include "common/call/binding.h"
#include "cuda/host/handlers.h"
#include "cuda/host/kernels.h"

namespace jax_na::cuda {

NB_MODULE(cuda_rows, m) {
  const auto no_handler = [](Target) -> XLA_FFI_Handler* { return nullptr; };
  binding::bind_table(m, kCuda, &kernels, +no_handler, nullptr);
}

}  // namespace jax_na::cuda
