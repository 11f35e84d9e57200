// SPDX-License-Identifier: Apache-2.0
// Parameters of the GEMM kernels, and how many blocks of them a multiprocessor holds.
#pragma once

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/gemm/config.h"

namespace jax_na::cuda {

struct GemmParams {
  Geometry geometry;
  Operand queries, keys;  // the arrays with features on each side; one of the two is a result of av and inverse
  const void* weights;
  void* out;
  Staging staging;
  int slot_stride[kAxes];
  int pitch;
  int slices;  // of the features
};

// Blocks that a multiprocessor shall have room for. What limits these kernels is memory, so the more warps wait for it
// the better: 16 leave 128 registers to a thread, 12 leave 168, and 8, for the sums of many features, 255.
template <class Shape, Pass operation>
constexpr int min_blocks() {
  constexpr bool kSums = operation != Pass::kQk;
  if (Shape::kRowBytes == kWidestRow) return (kSums ? 8 : 12) / Shape::kWarps;
  return (Shape::kRowBytes == 128 && operation == Pass::kAv ? 12 : 16) / Shape::kWarps;
}

// Slices of the features: only rows of the widest kernels can be too narrow.
template <class Shape>
__device__ __forceinline__ int slices_of(const GemmParams& params) {
  return Shape::kRowBytes == kWidestRow ? params.slices : 1;
}

}  // namespace jax_na::cuda
