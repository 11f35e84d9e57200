// SPDX-License-Identifier: Apache-2.0
// Gradients of keys and values for small windows: as fused/backward_key.cuh, with the halos of halo/forward.cuh, whose
// rows are keys here and whose columns are the queries that see them. All query heads of a key head follow each other
// in one block, which adds them up.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/halo/copies.cuh"
#include "cuda/halo/make.cuh"
#include "cuda/halo/scores.cuh"
#include "cuda/halo/store.cuh"
#include "cuda/halo/suspects.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// The sums of one key head.
template <class Shape>
struct HaloKeySums {
  using Left = typename Shape::Math::Left;
  using Sums = Fragment<1, Shape::kFeatureTiles>;

  Left key[Shape::kSteps], value[Shape::kSteps];
  Sums dkey, dvalue;

  // The first row of a head in [batch, tokens, kv_heads]. It would occupy registers if it was not computed again.
  static __device__ __forceinline__ int64_t first_row(const Problem& problem, uint32_t batch, int head) {
    return renewed(batch) * key_tokens(problem) * problem.kv_heads + head;
  }

  __device__ __forceinline__ void begin(const HaloTables<Shape>& tables, uint32_t batch, int head) {
    const BackwardParams& call = tables.p.call;
    const Problem& problem = tables.problem();
    load_rows(tables, call.key.data, first_row(problem, batch, head), problem.head_dim, key);
    load_rows(tables, call.value.data, first_row(problem, batch, head), problem.value_dim, value);
    clear(dkey);
    clear(dvalue);
  }

  __device__ __forceinline__ void store(const HaloTables<Shape>& tables, int lane, uint32_t batch, int head) {
    const BackwardParams& call = tables.p.call;
    const int64_t row = first_row(tables.problem(), batch, head);
    if constexpr (Shape::kHasMask) clear_masked(tables, batch);
    store_halo_rows(tables, lane, {call.dkey, call.key.heads, call.key.features}, row, dkey, call.scale);
    store_halo_rows(tables, lane, {call.dvalue, call.key.heads, call.value.features}, row, dvalue, 1);
  }

  // Zeros for the sums of the thread's own keys that do not exist, whatever these sums are.
  __device__ __forceinline__ void clear_masked(const HaloTables<Shape>& tables, uint32_t batch) {
    const Problem& problem = tables.problem();
    const uint8_t* mask = tables.p.call.key_mask + renewed(batch) * key_tokens(problem);
    for_each_own<2>([&](Own half) {
      const int within = tables.row_place(first_own_row() + 8 * half);
      if (within < 0 || mask[within / problem.kv_heads] != 0) return;
      const auto clear_pair = [](float& first, float& second, Own) { first = second = 0; };
      for_each_pair(dkey, half, clear_pair);
      for_each_pair(dvalue, half, clear_pair);
    });
  }
};

// What the queries of one head add to them.
template <class Shape>
struct HaloKeyGradients : HaloScores<Shape> {
  using Base = HaloScores<Shape>;
  using Base::tables, Base::lane, Base::geometry, Base::in_row;

  struct alignas(8) Places {  // of neighbours, read at once
    int even, odd;
  };

  // Calls body(column, LSE or delta) for the thread's own columns of a part, whose places are in `columns`.
  template <class Body>
  __device__ __forceinline__ void for_each_statistic(int offset, const int* columns, const Body& body) const {
    constexpr uint32_t kBytesPerByte = Shape::kRowBytes / sizeof(float);  // of a row, for each of its number
    const int start = in_row * tables.p.sizes.halo_tokens + tables.warp_box().place / Shape::kRowBytes;
    const char* first = reinterpret_cast<const char*>(tables.template at<float>(offset) + start);
    const auto number = [&](int place) {
      return *reinterpret_cast<const float*>(first + static_cast<uint32_t>(place) / kBytesPerByte);
    };
    const int* mine = columns + first_column(lane());
#pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile) {
      const Places places = *reinterpret_cast<const Places*>(mine + 8 * tile);
      body(Own{tile, 0}, number(places.even));
      body(Own{tile, 1}, number(places.odd));
    }
  }

  __device__ __forceinline__ void add_to(HaloKeySums<Shape>& sums) const {
    const HaloLayout& layout = tables.p.layout;
    const int parts = tables.parts();
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      uint32_t visible[2];
      this->find_visible(visible, part);
      if (!warp_any((visible[0] | visible[1]) != 0)) continue;  // at borders, boxes of other warps are longer
      const int* queries = tables.template at<int>(layout.columns) + part * Shape::kColumns;
      typename Shape::Scores weights, dscores;
      this->multiply(weights, sums.key, 0, queries);
      this->finish(weights, visible, part);
      for_each_statistic(layout.lse, queries, [&](Own column, float lse) {
        for_each_own<2>([&](Own row) {
          float& weight = at(weights, row, column);
          weight = exp2_approx(weight * geometry().factor - lse);
        });
      });
      this->add_weighted(sums.dvalue, weights, layout.second, queries);
      for_each_statistic(layout.delta, queries, [&](Own column, float delta) {
        for_each_own<2>([&](Own row) { at(dscores, row, column) = -delta; });
      });
      this->multiply_add(dscores, sums.value, layout.second, queries);
      for_each(dscores, [&](float& dscore, Own row, Own column) { dscore *= at(weights, row, column); });
      this->add_weighted(sums.dkey, dscores, 0, queries);
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    fused_halo_backward_key_kernel(const __grid_constant__ HaloParams<BackwardParams> params) {
  const HaloMaker<Shape> maker{{params, dynamic_shared()}};
  const HaloTables<Shape>& tables = maker;
  const Problem& problem = tables.problem();
  const uint32_t tiles = params.call.geometry.tiles;
  const int repeats = query_heads_per_kv_head(problem);
  maker.prepare();
  uint32_t opened = tiles;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < params.units; unit += gridDim.x) {
    const uint32_t batch = unit / tiles, tile = unit - batch * tiles;
    maker.open(tile, opened);
    if (!tables.has_rows()) continue;
    HaloKeySums<Shape> sums;
    int kv_head = 0, repeat = 0;  // of the query heads of a key head
#pragma unroll 1
    for (int first_head = 0; first_head < problem.heads; first_head += Shape::kHeads) {
      load_halo(tables, batch, first_head);
      load_statistics(tables, batch, first_head);
      cp_async_wait<0>();
      block_sync();
#pragma unroll 1
      for (int i = 0; i < Shape::kHeads && first_head + i < problem.heads; ++i) {
        const HaloKeyGradients<Shape> head{{tables, i, static_cast<int>(renewed(threadIdx.x))}};
        if (repeat == 0) sums.begin(tables, batch, kv_head);
        head.add_to(sums);
        if (++repeat < repeats) continue;
        sums.store(tables, head.lane(), batch, kv_head);
        repeat = 0;
        ++kv_head;
      }
      block_sync();  // nobody reads these heads any more
    }
  }
  block_sync();  // all has been stored
  if (tables.some_suspects()) compute_key_suspects<Shape>(params, dynamic_shared());
}

}  // namespace jax_na::cuda
