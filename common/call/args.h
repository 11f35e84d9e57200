// SPDX-License-Identifier: Apache-2.0
// The arguments of the kernels as plain data, the same on every platform. On CPUs the offsets of the call are placed in
// the problem; on GPUs they are in device memory, where the host cannot read them, and problem.q0 and k0 are not set.
#pragma once

#include "common/dtype.h"
#include "common/problem.h"

namespace jax_na {

// Extents of the two sides of a kernel's tiles. A kernel with one tile has its extents in `query`, whichever side the
// tokens of it are on.
struct Tiles {
  int query[kAxes], key[kAxes];
};

// The three unfused operations; of weights, x and y one is the result.
struct UnfusedArgs {
  Problem problem;  // value_dim is the feature size of x and y
  DType dtype;
  const int32_t* offsets;  // [rank, 2]
  void* weights;           // [batch, queries, heads, pitch]
  void* x;                 // [batch, queries, heads, value_dim]
  void* y;                 // [batch, keys, kv_heads, value_dim]
  Tiles tiles;
  bool is_exact;  // products of float32 values: exact, else rounded as the platform prefers
};

// Additional tokens, which every query sees; null and 0 for none.
struct TokenArrays {
  const void* key;    // [batch, count, kv_heads, head_dim]
  const void* value;  // [batch, count, kv_heads, value_dim]
  int count;
};

struct ForwardArgs {
  Problem problem;
  Tiles tiles;
  DType dtype;
  bool is_exact;
  const int32_t* offsets;   // [rank, 2]
  const void* query;        // [batch, queries, heads, head_dim]
  const void* key;          // [batch, keys, kv_heads, head_dim]
  const void* value;        // [batch, keys, kv_heads, value_dim]
  const float* rpb;         // [heads, bias_entries] or null
  const uint8_t* key_mask;  // [batch, keys], 0 for keys that nobody sees, or null
  TokenArrays tokens;
  void* out;   // [batch, queries, heads, value_dim]
  float* lse;  // [batch, queries, heads], natural logarithm
};

// Where the backward has two passes, each has these arguments with its own tiles.
struct BackwardArgs {
  Problem problem;
  Tiles tiles;
  DType dtype;
  bool is_exact;
  const int32_t* offsets;   // [rank, 2]
  const void* query;        // [batch, queries, heads, head_dim]
  const void* key;          // [batch, keys, kv_heads, head_dim]
  const void* value;        // [batch, keys, kv_heads, value_dim]
  const float* lse;         // [batch, queries, heads]
  const float* delta;       // [batch, queries, heads]: rowsum(dout * out) - dlse
  const void* dout;         // [batch, queries, heads, value_dim]
  const float* rpb;         // [heads, bias_entries] or null
  const uint8_t* key_mask;  // [batch, keys], 0 for keys that nobody sees, or null
  TokenArrays tokens;       // their share of dquery; their own gradients are the caller's matter
  void* dquery;             // [batch, queries, heads, head_dim]
  void* dkey;               // [batch, keys, kv_heads, head_dim]; on CPUs float32
  void* dvalue;             // [batch, keys, kv_heads, value_dim]; on CPUs float32
  float* drpb;              // [drpb_parts, heads, bias_entries] or null; the caller adds the parts, 4 or more on CUDA
  int drpb_parts;
};

// Softmax of rows of scores.
struct SoftmaxArgs {
  int64_t rows;
  int slots, pitch;  // elements of a row, with padding
  float scale;
  const float* scores;  // [rows, pitch]
  float* weights;       // [rows, pitch], may be the scores; 0 in padding
  float* lse;           // [rows]
};

}  // namespace jax_na
