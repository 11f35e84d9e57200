// SPDX-License-Identifier: Apache-2.0
// Launching a kernel: what is easy to forget, once. The tests build the same sources with JAX_NA_SIMT, which runs them
// on the host.
#pragma once

#include <stdint.h>

#ifdef JAX_NA_SIMT
#include "simt/device/device.h"
#else
#include <cuda_runtime.h>
#endif

#include "cuda/host/stream.h"

namespace jax_na::cuda {

// Enqueues kernel(params...) with `blocks` blocks of `threads` threads and `shared_bytes` of dynamic shared memory.
// Null, or a static text of what went wrong.
template <class... Params>
const char* launch(void (*kernel)(Params...), int64_t blocks, int threads, int shared_bytes, Stream stream,
                   const Params&... params) {
  if (blocks <= 0) return nullptr;  // nothing to compute; CUDA refuses an empty grid
  if (blocks > INT32_MAX) return "the problem needs more than 2^31 - 1 blocks";
#ifdef JAX_NA_SIMT
  static_cast<void>(stream);
  return simt::launch(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, params...);
#else
  constexpr int kAlwaysAllowed = 48 << 10;
  const void* entry = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kAlwaysAllowed &&
      cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) == cudaErrorInvalidValue)
    return "the kernel needs more shared memory than a block of this GPU has";
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))...};
  const cudaError_t error = cudaLaunchKernel(entry, dim3(static_cast<unsigned>(blocks)),
                                             dim3(static_cast<unsigned>(threads)), arguments, shared_bytes, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

}  // namespace jax_na::cuda
