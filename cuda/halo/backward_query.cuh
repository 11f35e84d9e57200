// SPDX-License-Identifier: Apache-2.0
// Gradient of the queries and of the bias for small windows: as fused/backward_query.cuh, with the halos of
// halo/forward.cuh. LSE is known, so no maximum is corrected, and a box goes part by part.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/halo/bias.cuh"
#include "cuda/halo/copies.cuh"
#include "cuda/halo/key_mask.cuh"
#include "cuda/halo/make.cuh"
#include "cuda/halo/scores.cuh"
#include "cuda/halo/store.cuh"
#include "cuda/halo/suspects.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// LSE, in the units of the exponents, and delta of a thread's own queries; 0 for those that do not exist.
template <class Shape>
struct HaloStatistics {
  float lse[2] = {}, delta[2] = {};
  bool is_exact[2] = {true, true};

  // `first_row`: of the head, in [batch, tokens, heads].
  __device__ __forceinline__ HaloStatistics(const HaloTables<Shape>& tables, int64_t first_row) {
    for_each_own<2>([&](Own half) {
      const int within = tables.row_place(first_own_row() + 8 * half);
      if (within < 0) return;
      const float given = tables.p.call.lse[first_row + within];
      is_exact[half] = has_exact_lse(given);
      lse[half] = exponent_of(given);
      delta[half] = tables.p.call.delta[first_row + within];
    });
  }
};

// The gradient of one head.
template <class Shape>
struct HaloQueryGradient : HaloScores<Shape> {
  using Math = typename Shape::Math;
  using Base = HaloScores<Shape>;
  using Base::tables, Base::lane, Base::geometry, Base::in_row, Base::thread;

  __device__ __forceinline__ void run(uint32_t batch, int head) const {
    const BackwardParams& call = tables.p.call;
    const int64_t first_row = batch * query_tokens(tables.problem()) * call.query.heads + head;
    typename Math::Left queries[Shape::kSteps], douts[Shape::kSteps];
    load_rows(tables, call.query.data, first_row, tables.problem().head_dim, queries);
    load_rows(tables, call.dout.data, first_row, tables.problem().value_dim, douts);
    const HaloStatistics<Shape> statistics(tables, first_row);

    Fragment<1, Shape::kFeatureTiles> dquery = {};
    const int* keys = tables.template at<int>(tables.p.layout.columns);
#pragma unroll 1
    for (int part = 0; part < tables.p.sizes.parts; ++part) {
      typename Shape::Scores scores, dweights;
      this->multiply(scores, queries, 0, keys);
      this->finish(scores, part);
      for_each(dweights, [&](float& dweight, Own row, Own) { dweight = -statistics.delta[row]; });
      this->multiply_add(dweights, douts, tables.p.layout.second, keys);
      for_each(scores, [&](float& score, Own row, Own column) {
        // What is not seen may make a query a suspect, but never the bias, which is a sum over queries. Where LSE is
        // not exact, finite scores may have become -inf as well: that query is a suspect.
        const bool counts = !Shape::kAddsBias || score != -INFINITY || !statistics.is_exact[row];
        const float weight = exp2_approx(score * geometry().factor - statistics.lse[row]);
        score = counts ? weight * at(dweights, row, column) : 0;
      });
      this->add_weighted(dquery, scores, 0, keys);
      if constexpr (Shape::kAddsBias) add_to_bias(scores, statistics, part);
      keys += Shape::kColumns;
    }
    const float scale = tables.is_complete() ? call.scale : NAN;
    store_halo_rows(tables, lane(), {call.dquery, call.query.heads, call.query.features}, first_row, dquery, scale);
  }

  // dS of queries whose LSE is not exact is added by the definition, in the end.
  __device__ __forceinline__ void add_to_bias(const typename Shape::Scores& dscores,
                                              const HaloStatistics<Shape>& statistics, int part) const {
    uint32_t visible[2];
    this->find_visible(visible, part);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (!statistics.is_exact[half]) visible[half] = 0;
    HaloBias<Shape>{tables, thread}.add(dscores, visible, part, in_row);
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    fused_halo_backward_query_kernel(const __grid_constant__ HaloParams<BackwardParams> params) {
  const HaloMaker<Shape> maker{{params, dynamic_shared()}};
  const HaloTables<Shape>& tables = maker;
  const HaloWork<Shape> work(params);
  const uint32_t tiles = params.call.geometry.tiles;
  maker.prepare();
  if constexpr (Shape::kAddsBias) HaloBias<Shape>{tables, static_cast<int>(threadIdx.x)}.begin();
  uint32_t opened = tiles;
#pragma unroll 1
  for (uint32_t unit = work.first; unit < params.units; unit += work.step) {
    const uint32_t batch = unit / tiles, tile = unit - batch * tiles;
    maker.open(tile, opened);
    if (!tables.has_rows()) continue;
    if constexpr (Shape::kHasMask) find_existing<Shape>(params, dynamic_shared(), batch);
#pragma unroll 1
    for (int first_head = work.first_head; first_head < work.stop_head; first_head += Shape::kHeads) {
      load_halo(tables, batch, first_head);
      cp_async_wait<0>();
      block_sync();
#pragma unroll 1
      for (int i = 0; i < Shape::kHeads && first_head + i < params.call.query.heads; ++i)
        HaloQueryGradient<Shape>{{tables, i, static_cast<int>(renewed(threadIdx.x))}}.run(batch, first_head + i);
      block_sync();  // nobody reads these heads any more
    }
    if (Shape::kAddsBias && !tables.is_complete() && threadIdx.x == 0)
      for (int i = 0; i < Shape::kHeads; ++i) HaloBias<Shape>{tables, 0}.table(i)[0] = NAN;
  }
  block_sync();  // all has been stored
  if constexpr (Shape::kAddsBias) HaloBias<Shape>{tables, static_cast<int>(threadIdx.x)}.end(work.first_head);
  if (tables.some_suspects()) {
    block_sync();
    compute_query_suspects<Shape>(params, dynamic_shared());
  }
}

}  // namespace jax_na::cuda
