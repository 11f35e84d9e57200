// SPDX-License-Identifier: Apache-2.0
// Which forward kernel runs: the one for compute capability 9.0 takes a call unless one of these says why not, and then
// the portable kernel does. Plain C++; the planner asks the first function, so an obstacle that it can know shows as a
// pair of zeros in the attribute `tile`.
#pragma once

#include "cuda/fused/config.h"
#include "cuda/host/kernels.h"

namespace jax_na::cuda {

// Of what is known when a program is compiled.
inline const char* hopper_obstacle(int element_bytes, int head_dim, int value_dim, bool additional) {
  if (element_bytes != 2) return "it takes bfloat16 and float16";
  if (feature_bucket(head_dim, value_dim) == 0) return "it takes up to 256 features per head";
  if (head_dim % 8 != 0 || value_dim % 8 != 0) return "it takes a multiple of 8 features per head";
  if (additional) return "it takes no additional tokens";
  return nullptr;
}

// Of a call.
inline const char* hopper_obstacle(const ForwardArgs& a) {
  const Problem& p = a.problem;
  for (int axis = 0; axis < kAxes; ++axis)
    if (a.hopper_tiles.query[axis] == 0 || a.hopper_tiles.key[axis] == 0) return "it was given no tiles";
  const int bytes = a.dtype == DType::kBFloat16 || a.dtype == DType::kFloat16 ? 2 : 4;
  if (const char* obstacle = hopper_obstacle(bytes, p.head_dim, p.value_dim, a.additional.tokens > 0)) return obstacle;
  int64_t queries = p.batch * p.heads, keys = p.batch * p.kv_heads;
  for (int axis = 0; axis < kAxes; ++axis) queries *= p.nq[axis], keys *= p.nk[axis];
  if (queries > INT32_MAX || keys > INT32_MAX) return "it takes up to 2^31 - 1 rows: batch times tokens times heads";
  if (a.rpb != nullptr) return "it takes no relative positional bias";
  const void* const arrays[] = {a.query, a.key, a.value, a.out};
  for (const void* data : arrays)
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return "it takes arrays aligned to 16 bytes";
  return nullptr;
}

}  // namespace jax_na::cuda
