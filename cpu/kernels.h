// SPDX-License-Identifier: Apache-2.0
// What the handlers can call: arguments as plain data, kernels as tables of function pointers, one per instruction set.
#pragma once

#include "../common/problem.h"
#include "numeric.h"
#include "parallel.h"

namespace jax_na {

constexpr int kLanes = 16;  // queries (or keys) of one tile, the same for every instruction set

// The three unfused operations share one signature; of weights, x and y one is the result.
struct UnfusedArgs {
  Problem problem;  // value_dim is the feature size of x and y
  DType dtype;
  void* weights;  // [batch, queries, heads, pitch], accumulator type
  void* x;        // [batch, queries, heads, value_dim]
  void* y;        // [batch, keys, kv_heads, value_dim]
};

struct ForwardArgs {
  Problem problem;
  DType dtype;
  const void* query;  // [batch, queries, heads, head_dim]
  const void* key;    // [batch, keys, kv_heads, head_dim]
  const void* value;  // [batch, keys, kv_heads, value_dim]
  const float* rpb;   // [heads, bias_entries] or null
  void* out;          // [batch, queries, heads, value_dim]
  float* lse;         // [batch, queries, heads], natural logarithm
};

struct BackwardArgs {
  Problem problem;
  DType dtype;
  const void *query, *key, *value;
  const float* lse;
  const float* delta;  // [batch, queries, heads]: rowsum(dout * out) - dlse
  const void* dout;
  const float* rpb;
  void* dquery;
  float* dkey;  // float32: these are sums over many tiles
  float* dvalue;
  float* drpb;  // [drpb_parts, heads, bias_entries] or null; the caller adds the parts
  int drpb_parts;
};

using UnfusedKernel = void (*)(const UnfusedArgs&, const Parallel&);

struct Kernels {
  UnfusedKernel gemm_qk, gemm_av, gemm_inverse;
  void (*fused_forward)(const ForwardArgs&, const Parallel&);
  void (*fused_backward)(const BackwardArgs&, const Parallel&);
  // Scratch bytes of one worker.
  int64_t (*gemm_scratch)(int value_dim);
  int64_t (*forward_scratch)(int head_dim, int value_dim);
  int64_t (*backward_scratch)(int head_dim, int value_dim);
};

extern const Kernels kKernelsPortable;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
#endif

void naive_qk(const UnfusedArgs&, const Parallel&);
void naive_av(const UnfusedArgs&, const Parallel&);
void naive_inverse(const UnfusedArgs&, const Parallel&);

}  // namespace jax_na
