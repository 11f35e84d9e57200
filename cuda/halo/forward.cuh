// SPDX-License-Identifier: Apache-2.0
// Fused attention, forward, for small windows: as fused/forward.cuh, but a block keeps all keys and values that its
// queries see.
//
// Where a box fits into the registers, all scores of a query exist at once and no maximum is corrected. Blocks stay:
// they go from head to head and from tile to tile, and several on a multiprocessor hide each other's copies.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/arithmetic.cuh"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/softmax.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/halo/copies.cuh"
#include "cuda/halo/key_mask.cuh"
#include "cuda/halo/make.cuh"
#include "cuda/halo/scores.cuh"
#include "cuda/halo/store.cuh"
#include "cuda/halo/suspects.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// The attention of one head.
template <class Shape>
struct HaloAttention : HaloScores<Shape> {
  using Math = typename Shape::Math;
  using Base = HaloScores<Shape>;
  using Base::tables, Base::lane, Base::geometry;

  __device__ __forceinline__ void run(const typename Math::Left (&queries)[Shape::kSteps], uint32_t batch,
                                      int head) const {
    Fragment<1, Shape::kFeatureTiles> out = {};
    OnlineSoftmax<2> softmax;
    typename Shape::Scores scores;
    const int value = tables.p.layout.second;
    const int* keys = tables.template at<int>(tables.p.layout.columns);
    if constexpr (Shape::kIsWhole) {
      this->multiply(scores, queries, 0, keys);
      this->finish(scores, 0);
      softmax.begin(scores, geometry().factor);
      this->add_weighted(out, scores, value, keys);
    } else {
      softmax.start();
#pragma unroll 1
      for (int part = 0; part < tables.p.sizes.parts; ++part) {
        this->multiply(scores, queries, 0, keys);
        this->finish(scores, part);
        softmax.update(scores, out, geometry().factor);
        this->add_weighted(out, scores, value, keys);
        keys += Shape::kColumns;
      }
    }
    store(out, softmax, batch, head);
  }

  __device__ __forceinline__ void store(const Fragment<1, Shape::kFeatureTiles>& out, OnlineSoftmax<2>& softmax,
                                        uint32_t batch, int head) const {
    const ForwardParams& call = tables.p.call;
    const int64_t first_row = renewed(batch) * query_tokens(tables.problem()) * call.query.heads + head;
    const int features = call.value.features;
    const float valid = tables.is_complete() ? 1.f : NAN;  // a window reaches beyond the keys present: say so
    bool all_finite = true, sees_some[2] = {true, true};
    if constexpr (Shape::kHasMask) this->find_seen(sees_some);
    for_each_own<2>([&](Own half) {
      const float sum = row_sum(softmax.sum[half]);
      const int within = tables.row_place(first_own_row() + 8 * half);
      if (within < 0) return;
      const int64_t row = first_row + within;
      const float scale = !sees_some[half] ? 0 * valid : sum < INFINITY ? valid / sum : NAN;
      auto* to = static_cast<typename Shape::Element*>(call.out) + row * features;
      all_finite = store_halo_row(to, features, lane(), out, half, scale) && all_finite;
      if (lane() % 4 == 0)  // one of the four threads of a row
        call.lse[row] = valid * kLn2 * (softmax.top[half] + log2f(sum));
    });
    note_suspects(tables, lane(), all_finite);
  }
};

template <class Shape>
__device__ __forceinline__ void load_queries(const HaloTables<Shape>& tables, uint32_t batch, int head,
                                             typename Shape::Math::Left (&queries)[Shape::kSteps]) {
  const Problem& problem = tables.problem();
  load_rows(tables, tables.p.call.query.data, renewed(batch) * query_tokens(problem) * problem.heads + head,
            problem.head_dim, queries);
}

// Blocks take the tiles in turns, so that neighbours, which share keys, are computed at the same time. A tile is the
// same in every batch entry.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    fused_halo_forward_kernel(const __grid_constant__ HaloParams<ForwardParams> params) {
  const HaloMaker<Shape> maker{{params, dynamic_shared()}};
  const HaloTables<Shape>& tables = maker;
  const int heads = params.call.query.heads;
  const uint32_t tiles = params.call.geometry.tiles;
  maker.prepare();
  uint32_t opened = tiles;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < params.units; unit += gridDim.x) {
    const uint32_t batch = unit / tiles, tile = unit - batch * tiles;
    maker.open(tile, opened);
    if (!tables.has_rows()) continue;
    if constexpr (Shape::kHasMask) find_existing<Shape>(params, dynamic_shared(), batch);
#pragma unroll 1
    for (int first_head = 0; first_head < heads; first_head += Shape::kHeads) {
      load_halo(tables, batch, first_head);
      typename Shape::Math::Left queries[Shape::kSteps];
      load_queries(tables, batch, first_head, queries);
      cp_async_wait<0>();
      block_sync();
#pragma unroll 1
      for (int i = 0; i < Shape::kHeads && first_head + i < heads; ++i) {
        if (i > 0) load_queries(tables, batch, first_head + i, queries);
        HaloAttention<Shape>{{tables, i, static_cast<int>(renewed(threadIdx.x))}}.run(queries, batch, first_head + i);
      }
      block_sync();  // nobody reads these heads any more
    }
  }
  block_sync();  // all has been stored
  if (tables.some_suspects()) compute_suspects<Shape>(params, dynamic_shared());
}

}  // namespace jax_na::cuda
