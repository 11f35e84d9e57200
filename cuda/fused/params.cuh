// SPDX-License-Identifier: Apache-2.0
// Parameters of the fused kernels: what the host hands over with a launch.
#pragma once

#include "cuda/block/block.cuh"
#include "cuda/block/tokens.cuh"

namespace jax_na::cuda {

// Tokens beside the grid, [batch, count, kv_heads, features], which every query sees.
struct AdditionalTokens {
  Operand key, value;
  int count;
};

struct ForwardParams {
  Geometry geometry;
  Operand query, key, value;
  AdditionalTokens tokens;
  void* out;   // [batch, queries, heads, value_dim]
  float* lse;  // [batch, queries, heads]
};

// Of both backward kernels, that of the queries and that of the keys.
struct BackwardParams {
  Geometry geometry;
  Operand query, key, value, dout;
  AdditionalTokens tokens;
  const float *lse, *delta;      // [batch, queries, heads]; delta = sum(dO O) - dLSE
  void *dquery, *dkey, *dvalue;  // as query, key and value
  float* drpb;                   // [drpb_parts, heads, entries]
  int drpb_parts;
  float scale;
};

}  // namespace jax_na::cuda
