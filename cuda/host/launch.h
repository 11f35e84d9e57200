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

#ifndef JAX_NA_SIMT
// Lets a kernel have so much dynamic shared memory. Null, or a static text of what went wrong.
inline const char* allow_shared(const void* entry, int bytes) {
  constexpr int kAlwaysAllowed = 48 << 10;
  if (bytes > kAlwaysAllowed &&
      cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaErrorInvalidValue)
    return "the kernel needs more shared memory than a block of this GPU has";
  return nullptr;
}
#endif

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
  const void* entry = reinterpret_cast<const void*>(kernel);
  if (const char* error = allow_shared(entry, shared_bytes)) return error;
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))...};
  const cudaError_t error = cudaLaunchKernel(entry, dim3(static_cast<unsigned>(blocks)),
                                             dim3(static_cast<unsigned>(threads)), arguments, shared_bytes, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

// Units of work that blocks take in turns; every `period` of them have something in common that a block keeps.
struct Units {
  int64_t count, period;
};

// As launch, with as many blocks as the device runs at a time: a multiple of the period where that idles few of them.
template <class... Params>
const char* launch_resident(void (*kernel)(Params...), const Units& units, int threads, int shared_bytes, Stream stream,
                            const Params&... params) {
#ifdef JAX_NA_SIMT
  int64_t blocks = 3;
#else
  const void* entry = reinterpret_cast<const void*>(kernel);
  if (const char* error = allow_shared(entry, shared_bytes)) return error;
  // None of these waits for the device.
  int device = 0, processors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, entry, threads, shared_bytes);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (each == 0) return "the kernel needs more shared memory than a block of this GPU has";
  int64_t blocks = int64_t{processors} * each;
#endif
  if (blocks > units.count) blocks = units.count;
  const int64_t idle = units.period > 0 ? blocks % units.period : 0;
  if (idle < blocks && idle * 10 <= blocks) blocks -= idle;
  return launch(kernel, blocks, threads, shared_bytes, stream, params...);
}

}  // namespace jax_na::cuda
