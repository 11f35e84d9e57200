// SPDX-License-Identifier: Apache-2.0
// Which forward kernel runs: the one for compute capability 9.0 takes a call unless one of these says why not, and then
// the portable kernel does. Plain C++; the planner asks the first function, so an obstacle that it can know shows as a
// pair of zeros in the attribute `tile`.
#pragma once

#include "fused_config.h"
#include "kernels.h"

namespace jax_na::cuda {

// What a tensor copy may take along an axis.
constexpr int kMostDilation = 8;  // every 8th element
constexpr int kMostSpan = 256;    // elements from the first to the last

// Of what is known when a program is compiled.
inline const char* hopper_obstacle(int element_bytes, int head_dim, int value_dim, int dilation) {
  if (element_bytes != 2) return "it takes bfloat16 and float16";
  if (feature_bucket(head_dim, value_dim) == 0) return "it takes up to 256 features per head";
  if (head_dim % 8 != 0 || value_dim % 8 != 0) return "it takes a multiple of 8 features per head";
  if (dilation > kMostDilation) return "it takes a dilation of up to 8";
  return nullptr;
}

// Tensors have five axes for copies. Where heads can be one of them, features beyond those of a head read as zero, else
// all heads' features are one axis, and a head must fill its rows in shared memory.
inline bool heads_are_an_axis(const Problem& p) { return p.rank < kAxes || p.batch == 1; }

// Of a call.
inline const char* hopper_obstacle(const ForwardArgs& a) {
  const Problem& p = a.problem;
  int dilation = 1;
  for (const Axis& axis : p.axis) dilation = max(dilation, axis.dilation);
  for (int axis = 0; axis < kAxes; ++axis)
    if (a.hopper_tiles.query[axis] == 0 || a.hopper_tiles.key[axis] == 0) return "it was given no tiles";
  const int bytes = a.dtype == DType::kBFloat16 || a.dtype == DType::kFloat16 ? 2 : 4;
  if (const char* obstacle = hopper_obstacle(bytes, p.head_dim, p.value_dim, dilation)) return obstacle;
  const int bucket = feature_bucket(p.head_dim, p.value_dim);
  if (!heads_are_an_axis(p) && (p.head_dim != bucket || p.value_dim != bucket))
    return "of a batch of volumes it takes 32, 64, 128 or 256 features per head";
  if (a.rpb != nullptr) return "it takes no relative positional bias";
  if (a.additional.tokens > 0) return "it takes no additional tokens";
  const void* const arrays[] = {a.query, a.key, a.value, a.out};
  for (const void* data : arrays)
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return "it takes arrays aligned to 16 bytes";
  return nullptr;
}

}  // namespace jax_na::cuda
