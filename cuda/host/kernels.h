// SPDX-License-Identifier: Apache-2.0
// What the handlers can call: arguments as plain data, launchers as plain functions. No CUDA header is needed here.
//
// Every launcher enqueues its kernels on the stream and returns; it never waits, allocates or reads device memory.
// Result: null, or a static text of what went wrong. Results are written completely, whatever the sizes: with an empty
// batch drpb is zero. All pointers are to device memory.
#pragma once

#include "common/dtype.h"
#include "common/problem.h"

struct CUstream_st;

namespace jax_na::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Extents of the two sides of a kernel's tiles, powers of two. The side that stays has a product of 16, 64 or 128
// tokens, each of them another kernel; that of the other side is the number of tokens streamed per step.
struct Tiles {
  int query[kAxes], key[kAxes];
};

// Of products of float32 values: rounded to TF32, or exact to float32 by three products. Other types ignore it.
enum class Precision { kDefault, kExact };

// The three unfused operations share one signature; of weights, x and y one is the result.
//
// In all arguments below the problem has everything but the offsets q0 and k0 (and no tile): those are run-time values
// in device memory, [rank, 2], first query and first key of each axis. Where a window reaches beyond the keys present,
// results are NaN and nothing is read.
struct UnfusedArgs {
  Problem problem;  // value_dim is the feature size of x and y
  DType dtype;
  const int32_t* offsets;
  void* weights;  // [batch, queries, heads, pitch]; for the naive kernels float32, of float64 values float64
  void* x;        // [batch, queries, heads, value_dim]
  void* y;        // [batch, keys, kv_heads, value_dim]
};

// Tokens beside the grid that every query sees; null for none.
struct Additional {
  const void* key;    // [batch, tokens, kv_heads, head_dim]
  const void* value;  // [batch, tokens, kv_heads, value_dim]
  int tokens;
};

// Of the GEMM kernels. Weights that they read have the type `dtype`, those that they write are float32; rows of them
// are whole pieces of 16 bytes.
struct GemmArgs : UnfusedArgs {
  Tiles tiles;  // queries stay, for the inverse operation keys
  Precision precision;
};

struct ForwardArgs {
  Problem problem;
  Tiles tiles;         // queries stay
  Tiles hopper_tiles;  // of the kernel for compute capability 9.0; zeros not to use it
  DType dtype;
  Precision precision;
  const int32_t* offsets;
  const void* query;  // [batch, queries, heads, head_dim]
  const void* key;    // [batch, keys, kv_heads, head_dim]
  const void* value;  // [batch, keys, kv_heads, value_dim]
  const float* rpb;   // [heads, bias_entries] or null
  Additional additional;
  void* out;   // [batch, queries, heads, value_dim]
  float* lse;  // [batch, queries, heads], natural logarithm
};

struct BackwardArgs {
  Problem problem;
  Tiles query_tiles;  // of the kernel of dquery and drpb: queries stay
  Tiles key_tiles;    // of the kernel of dkey and dvalue: keys stay
  DType dtype;
  Precision precision;
  const int32_t* offsets;
  const void *query, *key, *value;
  const float* lse;
  const float* delta;  // [batch, queries, heads]: rowsum(dout * out) - dlse
  const void* dout;
  const float* rpb;
  Additional additional;  // their share of dquery; their own gradients are the caller's matter
  void *dquery, *dkey, *dvalue;
  float* drpb;  // [drpb_parts, heads, bias_entries] or null; the caller adds the parts
  int drpb_parts;
};

const char* naive_qk(const UnfusedArgs&, Stream);
const char* naive_av(const UnfusedArgs&, Stream);
const char* naive_inverse(const UnfusedArgs&, Stream);
const char* gemm(Unfused, const GemmArgs&, Stream);
const char* fused_forward(const ForwardArgs&, Stream);
const char* fused_backward(const BackwardArgs&, Stream);

}  // namespace jax_na::cuda
