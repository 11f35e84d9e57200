// SPDX-License-Identifier: Apache-2.0
// The keys and values that stream past a block of queries: boxes of the grid, then the additional tokens.
#pragma once

#include <math.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/fused/key_mask.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Calls without additional tokens and without a mask have kernels of their own (kIsExtended), in which nothing of both
// is left: a second source of keys costs registers.
template <class Shape, bool kIsExtended>
struct KeyStream {
  const Geometry& geometry;
  const Block& block;
  const Operand &key, &value;
  const AdditionalTokens& tokens;
  ColumnTiles<Shape> tiles;
  Walk walk;       // over the boxes of the grid
  int boxes;       // of the grid
  int loaded = 0;  // boxes, of the grid and of additional tokens
  ExistingKeys<Shape> existing;

  template <class Params>
  __device__ __forceinline__ KeyStream(const Warp<Shape>& warp, const Params& params, ColumnTiles<Shape> tiles_)
      : geometry(warp.geometry),
        block(warp.block),
        key(params.key),
        value(params.value),
        tokens(params.tokens),
        tiles(tiles_),
        walk(make_walk(geometry.tiling, block.axis)),
        boxes(walk.total()),
        existing{params.key_mask} {}

  __device__ __forceinline__ int total() const {
    return kIsExtended ? boxes + (tokens.count + Shape::kColumns - 1) / Shape::kColumns : boxes;
  }

  __device__ __forceinline__ Box box() const { return column_box(geometry.tiling, block, walk); }

  // Where the box loaded last is, if it is of the grid; steps to the next.
  __device__ __forceinline__ Box next_box() {
    const Box last = box();
    walk.step();
    if constexpr (kIsExtended) existing.land();
    return last;
  }

  // Starts copying the next box, as one group; next_box() has been called for the one before.
  __device__ __forceinline__ void load(int stage) {
    const int head = block.head / query_heads_per_kv_head(geometry.problem);
    const typename Shape::Tile to[2] = {tiles.at(0, stage), tiles.at(1, stage)};
    if (!kIsExtended || loaded < boxes) {
      load_box<Shape>(geometry, block, box(), {key, value}, head, to);
      if constexpr (kIsExtended) existing.load(geometry, block, box());
    } else {
      load_tokens<Shape, Shape::kColumns>(BoxTokens(block, tokens.count, (loaded - boxes) * Shape::kColumns),
                                          {0, 0, log2_of(Shape::kColumns)}, {tokens.key, tokens.value}, head, to);
      cp_async_commit();
      existing.load_all();
    }
    ++loaded;
  }

  // Whether all keys of the box that next_box() has returned are masked.
  __device__ __forceinline__ bool is_empty() const { return kIsExtended && existing.bits == 0; }

  // Scores of box number `step`, of which `place` is the place if it is of the grid, as finish_scores.
  __device__ __forceinline__ void finish(const Warp<Shape>& warp, int step, const Box& place,
                                         typename Shape::Scores& scores) const {
    if (!kIsExtended || step < boxes) {
      finish_scores<Side::kQueries>(warp, place.start, block.head, scores);
      if constexpr (kIsExtended) existing.hide_others(warp.lane, scores);
      return;
    }
    scale_scores(geometry, scores);
    const int left = tokens.count - (step - boxes) * Shape::kColumns;
    if (left >= Shape::kColumns) return;
    const int mine = left - first_column(warp.lane);  // from this thread's first on
    for_each(scores, [&](float& score, Own, Own column) {
      if (column_step(column) >= mine) score = -INFINITY;
    });
  }
};

}  // namespace jax_na::cuda
