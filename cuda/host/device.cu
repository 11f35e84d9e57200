// SPDX-License-Identifier: Apache-2.0
// What kernels for some GPUs ask of the current device.
#include <stdlib.h>

#include "cuda/host/launch.h"

namespace jax_na::cuda {

int compute_capability() {
#ifdef JAX_NA_SIMT
  const char* const given = getenv("JAX_NA_SIMT_CAPABILITY");  // of the GPU that the tests want
  return given != nullptr ? atoi(given) : 90;
#else
  // Neither query waits for the device.
  int device = 0, major = 0, minor = 0;
  const bool is_known = cudaGetDevice(&device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  return is_known ? 10 * major + minor : 0;
#endif
}

}  // namespace jax_na::cuda
