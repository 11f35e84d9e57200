// SPDX-License-Identifier: Apache-2.0
// Fused attention, forward, for small windows: as fused/forward.cuh, but a block keeps all keys and values that its
// queries see. A warp reads the keys of its box one after the other as if they were packed, because ldmatrix takes an
// address for each row: so the products are done for little more than the windows, and a halo needs no padding.
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
#include "cuda/block/scores.cuh"
#include "cuda/block/softmax.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/halo/copies.cuh"
#include "cuda/halo/suspects.cuh"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// One head of the 16 queries of a warp; `in_row`: number of the head in a row of the halo.
template <class Shape>
struct HaloAttention {
  using Math = typename Shape::Math;
  using Scores = typename Shape::Scores;

  const HaloTables<Shape>& tables;
  int in_row;
  int thread;  // renewed: what depends on it occupies no registers outside

  __device__ __forceinline__ int lane() const { return thread % 32; }

  __device__ __forceinline__ const Geometry& geometry() const { return tables.p.forward.geometry; }

  // Address of the chunk `chunk` of the box's key number lane % 8, were the box's keys one after the other: a lane's
  // keys all have the same turn.
  __device__ __forceinline__ uint32_t first_address(int offset, int chunk) const {
    const HaloBox box = tables.warp_box();
    const uint32_t turn = HaloTables<Shape>::turn_of(box.key + lane() % 8);
    const uint32_t base = shared_address(tables.shared) + offset + box.place;
    return base + (turn ^ in_row * Shape::kHeadBytes ^ chunk * 16);
  }

  __device__ __forceinline__ void multiply(Scores& scores, const typename Math::Left (&queries)[Shape::kSteps],
                                           const int* rows) const {
    const uint32_t base = first_address(0, lane() / 8);
    clear(scores);
#pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile) {
      const uint32_t address = base + rows[8 * tile + lane() % 8];
#pragma unroll
      for (int k = 0; k < Shape::kSteps; k += 2) {
        uint32_t raw[4];
        ldmatrix_x4(raw, address ^ k * 32);
        Math::multiply_add(scores[0][tile], queries[k], Math::right(raw[0], raw[1]));
        Math::multiply_add(scores[0][tile], queries[k + 1], Math::right(raw[2], raw[3]));
      }
    }
  }

  // What the thread's own queries see of a part, as bits of the thread's own columns.
  __device__ __forceinline__ void find_visible(uint32_t (&visible)[2], int part) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_own_row() + 8 * half;
      if constexpr (Shape::kIsWhole) {
        visible[half] = tables.template at<uint32_t>(tables.p.layout.masks)[row * 4 + lane() % 4];
      } else {
        int position[kAxes];
        tables.row_position(row, position);
        visible[half] = tables.seen(part, position, lane() % 4);
      }
    }
  }

  // Products -> scores: scaled, with bias, -inf where a query does not see a key.
  __device__ __forceinline__ void finish(Scores& scores, int part) const {
    uint32_t visible[2];
    find_visible(visible, part);
    scale_scores(geometry(), scores);
    if constexpr (!Shape::kHasBias) {
      for_each(scores, [&](float& score, Own row, Own column) {
        if (!(visible[row.part] >> column & 1)) score = -INFINITY;
      });
      return;
    }
    const HaloLayout& layout = tables.p.layout;
    const int* keys = tables.template at<int>(layout.bias_keys) + part * Shape::kColumns + first_column(lane());
    const float* bias = tables.template at<float>(layout.bias) + in_row * bias_entries(geometry().problem);
    const int* of_rows = tables.template at<int>(layout.bias_rows) + first_own_row();
    const int of_row[2] = {of_rows[0], of_rows[8]};
    for_each_own<2 * Shape::kColumnTiles>([&](Own column) {
      const int entry = keys[column_step(column)];
      for_each_own<2>([&](Own row) {
        float& score = at(scores, row, column);
        score = visible[row.part] >> column & 1 ? score + bias[entry + of_row[row.part]] : -INFINITY;
      });
    });
  }

  // out += weights * values of a part.
  __device__ __forceinline__ void add_values(Fragment<1, Shape::kFeatureTiles>& out, const Scores& weights,
                                             const int* rows) const {
    const uint32_t base = first_address(tables.p.layout.value, lane() / 16);
#pragma unroll
    for (int k = 0; k < (Shape::kColumnTiles + 1) / 2; ++k) {
      typename Math::Left left;
      if (2 * k + 1 < Shape::kColumnTiles) {
        left = Math::left_of_sums(weights[0], k);
      } else {
        const float last[2][4] = {
            {weights[0][2 * k][0], weights[0][2 * k][1], weights[0][2 * k][2], weights[0][2 * k][3]}, {}};
        left = Math::left_of_sums(last, 0);
      }
      const uint32_t address = base + rows[16 * k + lane() % 16];
#pragma unroll
      for (int tile = 0; tile < Shape::kFeatureTiles; tile += 2) {
        uint32_t raw[4];
        ldmatrix_x4_trans(raw, address ^ tile * 16);
        Math::multiply_add(out[0][tile], left, Math::right(raw[0], raw[1]));
        Math::multiply_add(out[0][tile + 1], left, Math::right(raw[2], raw[3]));
      }
    }
  }

  __device__ __forceinline__ void run(const typename Math::Left (&queries)[Shape::kSteps], uint32_t batch,
                                      int head) const {
    Fragment<1, Shape::kFeatureTiles> out = {};
    OnlineSoftmax<2> softmax;
    Scores scores;
    const int* rows = tables.template at<int>(tables.p.layout.rows);
    if constexpr (Shape::kIsWhole) {
      multiply(scores, queries, rows);
      finish(scores, 0);
      softmax.begin(scores, geometry().factor);
      add_values(out, scores, rows);
    } else {
      softmax.start();
#pragma unroll 1
      for (int part = 0; part < tables.p.sizes.parts; ++part) {
        multiply(scores, queries, rows);
        finish(scores, part);
        softmax.update(scores, out, geometry().factor);
        add_values(out, scores, rows);
        rows += Shape::kColumns;
      }
    }
    store(out, softmax, batch, head);
  }

  __device__ __forceinline__ void store(const Fragment<1, Shape::kFeatureTiles>& out, OnlineSoftmax<2>& softmax,
                                        uint32_t batch, int head) const {
    const ForwardParams& forward = tables.p.forward;
    const int64_t first_row = batch * query_tokens(tables.problem()) * forward.query.heads + head;
    const int features = forward.value.features;
    const float valid = tables.is_complete() ? 1.f : NAN;  // a window reaches beyond the keys present: say so
    bool finite_rows = true;
    for_each_own<2>([&](Own half) {
      const float sum = row_sum(softmax.sum[half]);
      const int within = tables.query_row(first_own_row() + 8 * half);
      if (within < 0) return;
      const int64_t row = first_row + within;
      const float scale = sum < INFINITY ? valid / sum : NAN;
      auto* to = static_cast<typename Shape::Element*>(forward.out) + row * features;
      Finite finite;
      for_each_pair(out, half, [&](float first, float second, Own column) {
        first *= scale;
        second *= scale;
        finite.add(first);
        finite.add(second);
        if (column_step(column) < features) store_aligned_pair(to + column_of(column, lane()), first, second);
      });
      finite_rows = finite_rows && finite.all();
      if (lane() % 4 == 0) forward.lse[row] = valid * kLn2 * (softmax.top[half] + log2f(sum));
    });
    if (warp_any(!finite_rows) && lane() == 0) tables.has_suspects() = 1;
  }
};

// Blocks take the tiles in turns, so that neighbours, which share keys, are computed at the same time. A tile is the
// same in every batch entry.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    fused_halo_forward_kernel(const __grid_constant__ HaloParams params) {
  const HaloTables<Shape> tables{params, dynamic_shared()};
  const int heads = params.forward.query.heads;
  const uint32_t tiles = params.forward.geometry.tiles;
  tables.prepare();
  uint32_t opened = tiles;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < params.units; unit += gridDim.x) {
    const uint32_t batch = unit / tiles, tile = unit - batch * tiles;
    if (tile != opened) {
      block_sync();  // what prepare() made is there, and nobody reads the tables of the tile before
      tables.open(tile);
      block_sync();
      opened = tile;
    }
    if (!tables.has_queries()) continue;
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
        HaloAttention<Shape>{tables, i, static_cast<int>(renewed(threadIdx.x))}.run(queries, batch, first_head + i);
      }
      block_sync();  // nobody reads these heads any more
    }
  }
  block_sync();  // all has been stored
  if (tables.some_suspects()) compute_suspects<Shape>(params, dynamic_shared());
}

}  // namespace jax_na::cuda
