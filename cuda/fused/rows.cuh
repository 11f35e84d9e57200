// SPDX-License-Identifier: Apache-2.0
// The suspects of the fused kernels (block/suspects.cuh), computed by a warp from common/definition.h.
//
// These functions are called, not inlined: hardly any launch needs them, and what they need of registers and of the
// compiler's time they need once for all kernels of an element type.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/definition.h"
#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// A warp as the team of common/definition.h: up to 256 features in one pass.
template <class Element_>
struct WarpTeam {
  using Element = Element_;
  static constexpr int kThreads = 32, kFeatures = 8;

  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ float widen(Element value) { return cuda::widen(value); }
  static __device__ __forceinline__ void narrow(Element& to, float value) { cuda::narrow(to, value); }
  __device__ __forceinline__ float sum(float value) const {
    warp_sync();  // from here on the compiler reads the problem anew: it would not fit into registers
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
  }
};

// LSE in the units of the exponents, for weights exp2(score - this). A query without keys (-inf) weighs nothing. Of one
// whose LSE is not exact, the weights are NaN: what depends on them is a suspect.
__device__ __forceinline__ float exponent_of(float lse) {
  if (lse == -INFINITY) return INFINITY;
  return has_exact_lse(lse) ? lse * kLog2E : NAN;
}

// Where a call has no mask (kHasMask), nothing of it is left: it would cost registers that the kernels have not.
template <class Element, bool kHasMask, class Params>
__device__ __forceinline__ AttentionOperands<Element> operands_of(const Params& params, const Problem& problem) {
  const auto features = [](const Operand& operand) { return static_cast<const Element*>(operand.data); };
  const AdditionalTokens& tokens = params.tokens;
  return {problem,
          features(params.query),
          features(params.key),
          features(params.value),
          params.geometry.rpb,
          features(tokens.key),
          features(tokens.value),
          tokens.count,
          kHasMask ? params.key_mask : nullptr};
}
template <class Element, bool kHasMask>
__device__ __forceinline__ AttentionOperands<Element> gradient_operands_of(const BackwardParams& params,
                                                                           const Problem& problem) {
  AttentionOperands<Element> operands = operands_of<Element, kHasMask>(params, problem);
  operands.lse = params.lse;
  operands.delta = params.delta;
  operands.dout = static_cast<const Element*>(params.dout.data);
  return operands;
}

// out and lse of one row.
template <class Element>
__device__ __forceinline__ void store_attention(const AttentionOperands<Element>& operands, int64_t row, void* out,
                                                float* lse) {
  const WarpTeam<Element> team;
  float found;
  attention_row(team, operands, row, static_cast<Element*>(out), found);
  if (team.thread() == 0) lse[row] = found;
}

// out and lse of a row.
template <class Element, bool kHasMask>
__device__ __noinline__ void attend_again(const ForwardParams& params, char* room, int64_t row) {
  const Problem& problem = placed(params.geometry, room);
  store_attention(operands_of<Element, kHasMask>(params, problem), row, params.out, params.lse);
}

// dquery of a row.
template <class Element, bool kHasMask>
__device__ __noinline__ void find_query_gradient(const BackwardParams& params, char* room, int64_t row) {
  const Problem& problem = placed(params.geometry, room);
  query_gradient_row(WarpTeam<Element>{}, gradient_operands_of<Element, kHasMask>(params, problem), row,
                     static_cast<Element*>(params.dquery));
}

// The tiles of queries of one head, of all batches.
__device__ __forceinline__ uint32_t bias_tiles(const BackwardParams& params) {
  return params.geometry.tiles * static_cast<uint32_t>(params.geometry.problem.batch);
}

// Which of them a block of the kernel with a bias computes: from `part` on, every drpb_blocks-th.
struct BiasPart {
  uint32_t part;
  int head;

  // `block` counts parts fastest, then heads.
  __device__ __forceinline__ BiasPart(const BackwardParams& params, uint32_t block)
      : part(block % params.drpb_blocks), head(static_cast<int>(block / params.drpb_blocks)) {}

  // Index of the block that `tile` would be in a kernel without a bias.
  __device__ __forceinline__ uint32_t index(const BackwardParams& params, uint32_t tile) const {
    const uint32_t each = params.geometry.tiles;
    return (tile / each * params.query.heads + head) * each + tile % each;
  }

  // The part of drpb of a warp, of `warps` in a block.
  __device__ __forceinline__ float* slot(const BackwardParams& params, int warps, int warp) const {
    const int64_t number = int64_t{part} * warps + warp;
    return params.drpb + (number * params.query.heads + head) * bias_entries(params.geometry.problem);
  }
};

// Adds the dS of the queries whose LSE is not exact to a warp's table, in its 16 rows, from `first_row` on, of every
// tile.
template <class Element, bool kHasMask>
__device__ __noinline__ void add_inexact_rows(const BackwardParams& params, char* room, int first_row, float* table) {
  const Geometry& geometry = params.geometry;
  const BiasPart mine(params, blockIdx.x);
  const int heads = params.query.heads;
#pragma unroll 1
  for (uint32_t tile = mine.part; tile < bias_tiles(params); tile += params.drpb_blocks) {
    Block block;
    if (!find_block<Side::kQueries>(geometry, mine.index(params, tile), heads, block) || !block.complete) continue;
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
      const int64_t row = row_index(geometry, block, heads, first_row + i);
      if (row < 0 || has_exact_lse(params.lse[row])) continue;
      const AttentionOperands<Element> operands =
          gradient_operands_of<Element, kHasMask>(params, placed(geometry, room));
      bias_gradient_row(WarpTeam<Element>{}, operands, row, table);
    }
  }
}

// dkey and dvalue of a row, the features in `range`.
template <class Element, bool kHasMask>
__device__ __noinline__ void find_key_gradients(const BackwardParams& params, char* room, int64_t row,
                                                FeatureRange range) {
  const Problem& problem = placed(params.geometry, room);
  const AttentionOperands<Element> operands = gradient_operands_of<Element, kHasMask>(params, problem);
#pragma unroll 1  // the same code for both
  for (int which = 0; which < 2; ++which)
    key_side_row(WarpTeam<Element>{}, operands, row, which == 0 ? OfKey::kKey : OfKey::kValue,
                 static_cast<Element*>(which == 0 ? params.dkey : params.dvalue), range);
}

}  // namespace jax_na::cuda
