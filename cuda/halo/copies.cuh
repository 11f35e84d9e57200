// SPDX-License-Identifier: Apache-2.0
// What a halo kernel reads: halos of keys and values, queries, bias.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Starts copying the keys and values of the heads from `first_head` on, as one group, and reads their bias.
template <class Shape>
__device__ __forceinline__ void load_halo(const HaloTables<Shape>& tables, uint32_t batch, int first_head) {
  const HaloParams& p = tables.p;
  const Problem& problem = tables.problem();
  const int thread = static_cast<int>(renewed(threadIdx.x));  // what depends on it occupies no registers outside
  const int chunk = thread % Shape::kChunks, first = thread / Shape::kChunks;
  const int head = first_head + chunk * 16 / Shape::kHeadBytes, feature = chunk * 8 % Shape::kFeatures;
  const bool exists = head < problem.heads && key_tokens(problem) > 0;
  const int kv_head = exists ? head / query_heads_per_kv_head(problem) : 0;
  const bool in_key = exists && feature < problem.head_dim, in_value = exists && feature < problem.value_dim;
  const int64_t row = batch * key_tokens(problem) * problem.kv_heads + kv_head;
  const uint32_t key_bytes = 2 * problem.head_dim, value_bytes = 2 * problem.value_dim;
  // The compiler would add up rows before it multiplies, which costs more for each key.
  const char* key =
      renewed(static_cast<const char*>(p.forward.key.data) + row * key_bytes + (in_key ? 2 * feature : 0));
  const char* value =
      renewed(static_cast<const char*>(p.forward.value.data) + row * value_bytes + (in_value ? 2 * feature : 0));
  const auto* tokens = tables.template at<HaloToken>(p.layout.tokens);
  const uint32_t base = shared_address(tables.shared);
#pragma unroll 4
  for (int i = first; i < p.sizes.halo_tokens; i += Shape::kTokens) {
    const HaloToken token = tokens[i];
    const uint32_t to = base + (token.place ^ chunk * 16);
    cp_async16(to, key + uint64_t{token.row} * key_bytes, in_key);
    cp_async16(to + p.layout.value, value + uint64_t{token.row} * value_bytes, in_value);
  }
  cp_async_commit();
  if constexpr (!Shape::kHasBias) return;
  const int entries = bias_entries(problem), heads = min(Shape::kHeads, problem.heads - first_head);
  float* bias = tables.template at<float>(p.layout.bias);
  for (int i = thread; i < heads * entries; i += Shape::kThreads)
    bias[i] = kLog2E * read_only(p.forward.geometry.rpb + int64_t{first_head} * entries + i);
}

// The row of a warp that a thread's first own query is, in the block's tile; its second is eight rows on.
__device__ __forceinline__ int first_own_row() {
  const int thread = static_cast<int>(threadIdx.x);
  return thread / 32 * 16 + thread % 32 / 4;
}

// The queries of a warp as left operands.
template <class Shape>
__device__ __forceinline__ void load_queries(const HaloTables<Shape>& tables, uint32_t batch, int head,
                                             typename Shape::Math::Left (&queries)[Shape::kSteps]) {
  const Problem& problem = tables.problem();
  const int column = static_cast<int>(threadIdx.x) % 4, words = problem.head_dim / 2;
  const auto* base = static_cast<const uint32_t*>(tables.p.forward.query.data) +
                     (batch * query_tokens(problem) * problem.heads + head) * words + column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tables.query_row(first_own_row() + 8 * half);
    const uint32_t* from = base + static_cast<uint64_t>(max(row, 0)) * words;
#pragma unroll
    for (int k = 0; k < 2 * Shape::kSteps; ++k)
      queries[k / 2].bits[2 * (k % 2) + half] = row >= 0 && 8 * k < problem.head_dim ? from[4 * k] : 0;
  }
}

}  // namespace jax_na::cuda
