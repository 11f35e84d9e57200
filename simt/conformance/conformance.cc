// SPDX-License-Identifier: Apache-2.0
// C interface of the conformance kernels, the same for a GPU (nvcc) and the executor (JAX_NA_SIMT). All functions
// return null, or what went wrong.
#include <string.h>

#include "cuda/host/launch.h"
#include "simt/conformance/sm90.cuh"

namespace {

using namespace jax_na::cuda;

#ifdef JAX_NA_SIMT

// Runs launch(in, out) between copying `in` to the device and `out` back.
template <class Launch>
const char* on_device(const void* in, size_t in_bytes, void* out, size_t out_bytes, const Launch& launch) {
  simt::reset();
  simt::set_seed(1);
  simt::register_buffer(in, in_bytes, "in", false);
  simt::register_buffer(out, out_bytes, "out", true);
  const char* error = launch(static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out));
  return error ? error : simt::findings() ? simt::report() : nullptr;
}

#else

struct DeviceMemory {
  void* data = nullptr;
  explicit DeviceMemory(size_t bytes) { cudaMalloc(&data, bytes); }
  ~DeviceMemory() { cudaFree(data); }
};

template <class Launch>
const char* on_device(const void* in, size_t in_bytes, void* out, size_t out_bytes, const Launch& launch) {
  const DeviceMemory device_in(in_bytes), device_out(out_bytes);
  cudaMemcpy(device_in.data, in, in_bytes, cudaMemcpyHostToDevice);
  cudaMemcpy(device_out.data, out, out_bytes, cudaMemcpyHostToDevice);
  const char* error = launch(static_cast<const uint32_t*>(device_in.data), static_cast<uint32_t*>(device_out.data));
  if (error) return error;
  const cudaError_t status = cudaMemcpy(out, device_out.data, out_bytes, cudaMemcpyDeviceToHost);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

#endif

using Kernel = void (*)(const Words);
struct Case {
  const char* name;
  Kernel kernel;
  int blocks, threads, shared_bytes;
};
const Case kCases[] = {
    {"numbers", numbers, 256, 256, 0},
    {"warps", warps, 1, 128, 1024},
    {"copies", copies, 1, 128, 8192},
    {"products", products, 1, 32, 0},
    {"hand_over", hand_over, 1, 64, 512},
    {"parts", parts, 1, 384, 512},
    {"wgmma_f16_32", wgmmas<Half, 32>, 1, 128, kWgmmaShared},
    {"wgmma_f16_64", wgmmas<Half, 64>, 1, 128, kWgmmaShared},
    {"wgmma_f16_128", wgmmas<Half, 128>, 1, 128, kWgmmaShared},
    {"wgmma_f16_256", wgmmas<Half, 256>, 1, 128, kWgmmaShared},
    {"wgmma_bf16_32", wgmmas<BFloat16, 32>, 1, 128, kWgmmaShared},
    {"wgmma_bf16_64", wgmmas<BFloat16, 64>, 1, 128, kWgmmaShared},
    {"wgmma_bf16_128", wgmmas<BFloat16, 128>, 1, 128, kWgmmaShared},
    {"wgmma_bf16_256", wgmmas<BFloat16, 256>, 1, 128, kWgmmaShared},
};

// A contiguous tensor of 2-byte elements; extents, box and steps innermost first.
const char* make_map(TensorMap& map, const void* data, const int* extent, const int* count, const int* step,
                     int swizzle) {
  TensorView view{data, {}, {}, {}, {}, static_cast<Swizzle>(swizzle)};
  uint64_t stride = 2;
  for (int i = 0; i < kTensorRank; ++i) {
    if (i > 0) view.stride[i - 1] = stride;
    view.extent[i] = static_cast<uint64_t>(extent[i]);
    view.count[i] = static_cast<uint32_t>(count[i]);
    view.step[i] = static_cast<uint32_t>(step[i]);
    stride *= view.extent[i];
  }
  return encode_tensor_map(map, view);
}

int box_bytes(const int* count) { return 2 * count[0] * count[1] * count[2] * count[3] * count[4]; }

}  // namespace

extern "C" {

const char* conformance_run(const char* name, const void* in, size_t in_bytes, void* out, size_t out_bytes) {
  for (const Case& c : kCases)
    if (strcmp(c.name, name) == 0)
      return on_device(in, in_bytes, out, out_bytes, [&](const uint32_t* device_in, uint32_t* device_out) {
        return launch(c.kernel, c.blocks, c.threads, c.shared_bytes, nullptr, Words{device_in, device_out});
      });
  return "no such case";
}

// in: the tensor, then `boxes` coordinates; out: as many boxes.
const char* conformance_load(const void* in, size_t in_bytes, void* out, size_t out_bytes, const int* extent,
                             const int* count, const int* step, int swizzle, int boxes) {
  return on_device(in, in_bytes, out, out_bytes, [&](const uint32_t* device_in, uint32_t* device_out) {
    const size_t tensor_words = size_t{1} * extent[0] * extent[1] * extent[2] * extent[3] * extent[4] / 2;
    LoadParams p{{}, {device_in + tensor_words, device_out}, box_bytes(count)};
    const char* error = make_map(p.map, device_in, extent, count, step, swizzle);
    return error ? error : launch(tensor_load, boxes, 128, p.bytes + 8, nullptr, p);
  });
}
}
