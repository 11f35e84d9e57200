// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what a tensor copy (TMA) reads or writes. Plain host code, no call of the GPU, nothing linked: the one
// function of the driver is looked up.
#pragma once

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

constexpr uint32_t swizzle_bytes(Swizzle s) { return s == Swizzle::kNone ? 0 : 256u >> static_cast<int>(s); }

// Null, or which limit of the hardware the view exceeds.
inline const char* illegal(const TensorView& v) {
  const uint32_t row_bytes = v.count[0] * 2;
  if (reinterpret_cast<uintptr_t>(v.data) % 16 != 0) return "a tensor must begin at a multiple of 16 bytes";
  if (row_bytes == 0 || row_bytes % 16 != 0) return "rows of a box must be whole chunks of 16 bytes";
  if (v.swizzle != Swizzle::kNone && row_bytes != swizzle_bytes(v.swizzle))
    return "rows of a box must be as long as the swizzle";
  if (v.step[0] != 1) return "rows of a box must be contiguous";
  for (int i = 0; i < kTensorRank; ++i) {
    if (v.extent[i] < 1 || v.extent[i] > uint64_t{1} << 32) return "an axis has 1 to 2^32 elements";
    if (v.step[i] < 1 || v.step[i] > 8) return "a box takes every 1st to 8th element";
    if (v.count[i] < 1 || v.count[i] * v.step[i] > 256) return "a box spans up to 256 elements along each axis";
    if (i > 0 && (v.stride[i - 1] % 16 != 0 || v.stride[i - 1] >= uint64_t{1} << 40))
      return "strides must be multiples of 16 bytes below 2^40";
  }
  return nullptr;
}

// Null, or a static text of what went wrong.
inline const char* encode_tensor_map(TensorMap& map, const TensorView& v) {
  if (const char* error = illegal(v)) return error;
#ifdef JAX_NA_SIMT
  map.data = static_cast<char*>(const_cast<void*>(v.data));
  for (int i = 0; i < kTensorRank; ++i) {
    map.extent[i] = v.extent[i];
    map.stride[i] = i == 0 ? 2 : v.stride[i - 1];
    map.count[i] = v.count[i];
    map.step[i] = v.step[i];
  }
  map.swizzle = static_cast<int>(v.swizzle);
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
  for (int i = 0; i < kTensorRank; ++i) box[i] = v.count[i] * v.step[i];
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kTensorRank, const_cast<void*>(v.data), v.extent, v.stride, box,
             v.step, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[static_cast<int>(v.swizzle)],
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refused the tensor map";
#endif
}

}  // namespace jax_na::cuda
