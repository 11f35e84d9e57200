// SPDX-License-Identifier: Apache-2.0
// What a halo kernel reads: two halos, rows, bias.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Sizes of the arrays of columns: keys and values, or queries and their dO. The problem has all of them: others of the
// same value would occupy registers.
template <class Shape>
__device__ __forceinline__ int64_t column_tokens(const HaloTables<Shape>& tables) {
  return HaloTables<Shape>::kOfQueries ? key_tokens(tables.problem()) : query_tokens(tables.problem());
}
template <class Shape>
__device__ __forceinline__ int column_heads(const HaloTables<Shape>& tables) {
  return HaloTables<Shape>::kOfQueries ? tables.problem().kv_heads : tables.problem().heads;
}

template <class Shape>
__device__ __forceinline__ void load_bias(const HaloTables<Shape>& tables, int thread, int first_head) {
  const Problem& problem = tables.problem();
  const int entries = bias_entries(problem), heads = min(Shape::kHeads, problem.heads - first_head);
  float* bias = tables.template at<float>(tables.p.layout.bias);
  for (int i = thread; i < heads * entries; i += Shape::kThreads)
    bias[i] = kLog2E * read_only(tables.geometry().rpb + int64_t{first_head} * entries + i);
}

// Starts copying the columns of the query heads from `first_head` on, as one group, and reads their bias.
template <class Shape>
__device__ __forceinline__ void load_halo(const HaloTables<Shape>& tables, uint32_t batch, int first_head) {
  constexpr bool kOfQueries = HaloTables<Shape>::kOfQueries;
  const auto& p = tables.p;
  const Problem& problem = tables.problem();
  const int thread = static_cast<int>(renewed(threadIdx.x));  // what depends on it occupies no registers outside
  const int chunk = thread % Shape::kChunks, first = thread / Shape::kChunks;
  const int head = first_head + chunk * 16 / Shape::kHeadBytes, feature = chunk * 8 % Shape::kFeatures;
  const bool exists = head < problem.heads && column_tokens(tables) > 0;
  const int own_head = exists ? (kOfQueries ? head / query_heads_per_kv_head(problem) : head) : 0;
  const bool in_key = exists && feature < problem.head_dim, in_value = exists && feature < problem.value_dim;
  const int64_t row = renewed(batch) * column_tokens(tables) * column_heads(tables) + own_head;
  const uint32_t key_bytes = 2 * problem.head_dim, value_bytes = 2 * problem.value_dim;
  const void *keys, *values;
  if constexpr (kOfQueries) {
    keys = p.call.key.data;
    values = p.call.value.data;
  } else {
    keys = p.call.query.data;
    values = p.call.dout.data;
  }
  // The compiler would add up rows before it multiplies, which costs more for each column.
  const char* key = renewed(static_cast<const char*>(keys) + row * key_bytes + (in_key ? 2 * feature : 0));
  const char* value = renewed(static_cast<const char*>(values) + row * value_bytes + (in_value ? 2 * feature : 0));
  const auto* tokens = tables.template at<HaloToken>(p.layout.tokens);
  const uint32_t base = shared_address(tables.shared);
  const int stop = tables.halo_tokens();
#pragma unroll 4
  for (int i = first; i < stop; i += Shape::kTokens) {
    const HaloToken token = tokens[i];
    const uint32_t to = base + (token.place ^ chunk * 16);
    cp_async16(to, key + uint64_t{token.row} * key_bytes, in_key);
    cp_async16(to + p.layout.second, value + uint64_t{token.row} * value_bytes, in_value);
  }
  cp_async_commit();
  if constexpr (Shape::kHasBias) load_bias(tables, thread, first_head);
}

// Reads LSE, in the units of the exponents, and delta of the columns of the heads from `first_head` on.
template <class Shape>
__device__ __forceinline__ void load_statistics(const HaloTables<Shape>& tables, uint32_t batch, int first_head) {
  const auto& p = tables.p;
  const auto* tokens = tables.template at<HaloToken>(p.layout.tokens);
  const int heads = column_tokens(tables) > 0 ? min(Shape::kHeads, column_heads(tables) - first_head) : 0;
  const int64_t first_row = renewed(batch) * column_tokens(tables) * column_heads(tables) + first_head;
  const int stop = tables.halo_tokens();
  for (int i = static_cast<int>(renewed(threadIdx.x)); i < stop; i += Shape::kThreads) {
    const int64_t row = first_row + tokens[i].row;
#pragma unroll
    for (int head = 0; head < Shape::kHeads; ++head) {
      const int to = head * p.sizes.halo_tokens + i;
      tables.template at<float>(p.layout.lse)[to] = head < heads ? exponent_of(p.call.lse[row + head]) : 0;
      tables.template at<float>(p.layout.delta)[to] = head < heads ? p.call.delta[row + head] : 0;
    }
  }
}

// The row of a warp that a thread's first own is, in the block's tile; its second is eight rows on.
__device__ __forceinline__ int first_own_row() {
  const int thread = static_cast<int>(renewed(threadIdx.x));
  return thread / 32 * 16 + thread % 32 / 4;
}

// A warp's rows of an array as left operands; `first_row`: of the head, in [batch, tokens, heads].
template <class Shape>
__device__ __forceinline__ void load_rows(const HaloTables<Shape>& tables, const void* data, int64_t first_row,
                                          int features, typename Shape::Math::Left (&rows)[Shape::kSteps]) {
  const int column = static_cast<int>(threadIdx.x) % 4, words = features / 2;
  const auto* base = static_cast<const uint32_t*>(data) + first_row * words + column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tables.row_place(first_own_row() + 8 * half);
    const uint32_t* from = base + static_cast<uint64_t>(max(row, 0)) * words;
#pragma unroll
    for (int k = 0; k < 2 * Shape::kSteps; ++k)
      rows[k / 2].bits[2 * (k % 2) + half] = row >= 0 && 8 * k < features ? from[4 * k] : 0;
  }
}

}  // namespace jax_na::cuda
