// SPDX-License-Identifier: Apache-2.0
// Whether the current device is one that the kernels for compute capability 9.0 run on.
#include "cuda/host/launch.h"

namespace jax_na::cuda {

bool device_is_hopper() {
#ifdef JAX_NA_SIMT
  return true;
#else
  // Neither query waits for the device.
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
         minor == 0;
#endif
}

}  // namespace jax_na::cuda
