// SPDX-License-Identifier: Apache-2.0
// Parameters of the fused kernels: what the host hands over with a launch.
#pragma once

#include <stdint.h>

#include "cuda/block/block.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/geometry/strip.cuh"

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
  void* out;                // [batch, queries, heads, value_dim]
  float* lse;               // [batch, queries, heads]
  const uint8_t* key_mask;  // [batch, keys], 0 for keys that do not exist, or null
};

// Of both backward kernels, that of the queries and that of the keys.
struct BackwardParams {
  Geometry geometry;
  Operand query, key, value, dout;
  AdditionalTokens tokens;
  const float *lse, *delta;      // [batch, queries, heads]; delta = sum(dO O) - dLSE
  void *dquery, *dkey, *dvalue;  // as query, key and value
  float scale;
  // Of the kernel with a bias: a part for each warp, and a few of none.
  float* drpb;                  // [drpb_parts, heads, entries]
  int drpb_parts, drpb_blocks;  // blocks of one head
  Strip strip;
  int entries_of_strip;     // of the bias table, from a warp's first strip to its second
  bool tables_in_shared;    // what the warps add to until they store it
  const uint8_t* key_mask;  // as above
};

}  // namespace jax_na::cuda
