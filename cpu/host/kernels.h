// SPDX-License-Identifier: Apache-2.0
// What the handlers can call: arguments as plain data, kernels as tables of function pointers, one per instruction set.
#pragma once

#include "common/problem.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"

namespace jax_na {

constexpr int kLanes = 16;  // queries (or keys) of one tile, the same for every instruction set

// The three unfused operations share one signature; of weights, x and y one is the result.
struct UnfusedArgs {
  Problem problem;  // value_dim is the feature size of x and y
  DType dtype;
  void* weights;  // [batch, queries, heads, pitch], accumulator type
  void* x;        // [batch, queries, heads, value_dim]
  void* y;        // [batch, keys, kv_heads, value_dim]; as the result of gemm_inverse float32
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

// Softmax of rows of scores.
struct SoftmaxArgs {
  int64_t rows;
  int slots, pitch;  // elements of a row, with padding
  float scale;
  const float* scores;  // [rows, pitch]
  float* weights;       // [rows, pitch], may be the scores; 0 in padding
  float* lse;           // [rows]
};

using UnfusedKernel = void (*)(const UnfusedArgs&, const Parallel&);

// Each with its own limits on what the row kernels can do.
enum class Pass { kForward, kBackward, kQk, kAv, kInverse };

struct Kernels {
  int width;  // float32 lanes of a register
  UnfusedKernel gemm_qk, gemm_av, gemm_inverse;
  void (*softmax)(const SoftmaxArgs&, const Parallel&);
  void (*fused_forward)(const ForwardArgs&, const Parallel&);
  void (*fused_backward)(const BackwardArgs&, const Parallel&);
  bool (*rows_fit)(const Problem&, Pass);  // whether tile[2] == 0, the row kernels, is possible
  // Scratch bytes of one worker; of the problem they depend on the axes, the tile and the dims.
  int64_t (*gemm_scratch)(const Problem&);
  int64_t (*forward_scratch)(const Problem&);
  int64_t (*backward_scratch)(const Problem&);
};

extern const Kernels kKernelsPortable;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx512Bf16;
#endif

void naive_qk(const UnfusedArgs&, const Parallel&);
void naive_av(const UnfusedArgs&, const Parallel&);
void naive_inverse(const UnfusedArgs&, const Parallel&);

}  // namespace jax_na
