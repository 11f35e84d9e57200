// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what a tensor copy (TMA) reads. Plain host code, no call of the GPU, nothing linked: the one
// function of the driver is looked up.
#pragma once

#include <stdint.h>

#include "cuda/ptx/sm90.cuh"

#ifndef JAX_NA_SIMT
#include <cuda_runtime.h>
#endif

namespace jax_na::cuda {

// A tensor of 2-byte elements and the box of it that one copy takes; axes innermost first.
struct TensorView {
  const void* data;
  uint64_t extent[kTensorRank];
  uint64_t stride[kTensorRank - 1];  // bytes between neighbours along the axes 1 to 4
  uint32_t count[kTensorRank];       // elements of the box along each axis, in shared memory without gaps,
  uint32_t step[kTensorRank];        // every step-th one of the tensor; 1 along axis 0
  Swizzle swizzle;                   // of rows, which are the box's axis 0
};

constexpr uint32_t swizzle_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 0 : 256u >> static_cast<int>(swizzle);
}

// Null, or which limit of the hardware the view exceeds.
inline const char* illegal(const TensorView& view) {
  const uint32_t row_bytes = view.count[0] * 2;
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) return "a tensor must begin at a multiple of 16 bytes";
  if (row_bytes == 0 || row_bytes % 16 != 0) return "rows of a box must be whole chunks of 16 bytes";
  if (view.swizzle != Swizzle::kNone && row_bytes != swizzle_bytes(view.swizzle))
    return "rows of a box must be as long as the swizzle";
  if (view.step[0] != 1) return "rows of a box must be contiguous";
  for (int axis = 0; axis < kTensorRank; ++axis) {
    if (view.extent[axis] < 1 || view.extent[axis] > uint64_t{1} << 32) return "an axis has 1 to 2^32 elements";
    if (view.step[axis] < 1 || view.step[axis] > 8) return "a box takes every 1st to 8th element";
    if (view.count[axis] < 1 || view.count[axis] * view.step[axis] > 256)
      return "a box spans up to 256 elements along each axis";
    if (axis > 0 && (view.stride[axis - 1] % 16 != 0 || view.stride[axis - 1] >= uint64_t{1} << 40))
      return "strides must be multiples of 16 bytes below 2^40";
  }
  return nullptr;
}

// Null, or a static text of what went wrong.
inline const char* encode_tensor_map(TensorMap& map, const TensorView& view) {
  if (const char* error = illegal(view)) return error;
#ifdef JAX_NA_SIMT
  map.data = static_cast<char*>(const_cast<void*>(view.data));
  for (int axis = 0; axis < kTensorRank; ++axis) {
    map.extent[axis] = view.extent[axis];
    map.stride[axis] = axis == 0 ? 2 : view.stride[axis - 1];
    map.count[axis] = view.count[axis];
    map.step[axis] = view.step[axis];
  }
  map.swizzle = static_cast<int>(view.swizzle);
  return nullptr;
#else
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    constexpr unsigned kVersion = 12000;  // of CUDA, where the function has this signature
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found == cudaDriverEntryPointSuccess ? function
                                                                                                    : nullptr);
  }();
  if (!encode) return "the driver has no tensor maps";
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                              CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_32B};
  uint32_t box[kTensorRank];
  for (int axis = 0; axis < kTensorRank; ++axis) box[axis] = view.count[axis] * view.step[axis];
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kTensorRank, const_cast<void*>(view.data), view.extent, view.stride,
             box, view.step, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(view.swizzle)],
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refused the tensor map";
#endif
}

}  // namespace jax_na::cuda
