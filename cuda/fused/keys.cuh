// SPDX-License-Identifier: Apache-2.0
// The keys and values that stream past a block of queries: boxes of the grid, then the additional tokens.
#pragma once

#include "cuda/block/scores.cuh"

namespace jax_na::cuda {

// Tokens beside the grid, [batch, count, kv_heads, features], which every query sees.
struct AdditionalTokens {
  Operand key, value;
  int count;
};

// kBeside: there are additional tokens.
template <class S, bool kBeside>
struct KeyStream {
  const Geometry& g;
  const Block& b;
  const Operand &key, &value;
  const AdditionalTokens& additional;
  ColumnTiles<S> tiles;
  Walk walk;       // over the boxes of the grid
  int boxes;       // so many
  int loaded = 0;  // boxes, of the grid and beside it

  __device__ __forceinline__ KeyStream(const Geometry& g_, const Block& b_, const Operand& key_, const Operand& value_,
                                       const AdditionalTokens& additional_, ColumnTiles<S> tiles_)
      : g(g_),
        b(b_),
        key(key_),
        value(value_),
        additional(additional_),
        tiles(tiles_),
        walk(make_walk(g.tiling, b.axis)),
        boxes(walk.total()) {}

  __device__ __forceinline__ int total() const {
    return kBeside ? boxes + (additional.count + S::kColumns - 1) / S::kColumns : boxes;
  }

  // Where the box loaded last is, if it is of the grid; steps to the next.
  __device__ __forceinline__ Box next_box() {
    const Box box = column_box(g.tiling, b, walk);
    walk.step();
    return box;
  }

  // Starts copying the next box, as one group; next_box() has been called for the one before.
  __device__ __forceinline__ void load(int stage) {
    const int head = b.head / query_heads_per_kv_head(g.problem);
    const typename S::Tile to[2] = {tiles.at(0, stage), tiles.at(1, stage)};
    if (!kBeside || loaded < boxes) {
      load_tokens<S, S::kColumns>(BoxTokens(g, b.columns, b, column_box(g.tiling, b, walk)), g.tiling.columns,
                                  {key, value}, head, to);
    } else {
      load_tokens<S, S::kColumns>(BoxTokens(b, additional.count, (loaded - boxes) * S::kColumns),
                                  {0, 0, log2_of(S::kColumns)}, {additional.key, additional.value}, head, to);
    }
    cp_async_commit();
    ++loaded;
  }

  // Scores of box number `step`, of which `box` is the place if it is of the grid, as finish_scores.
  __device__ __forceinline__ void finish(int step, const Box& box, const int* windows, int first_row, int lane,
                                         typename S::Scores& scores) const {
    if (!kBeside || step < boxes) {
      finish_scores<S, Rows::kQueries>(g, b, windows, box.start, b.head, first_row, lane, scores);
      return;
    }
    scale_scores<S>(g, scores);
    const int left = additional.count - (step - boxes) * S::kColumns - 2 * (lane % 4);  // from this thread's first on
    if (left + 2 * (lane % 4) >= S::kColumns) return;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
      for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (8 * c + e % 2 >= left) scores[m][c][e] = -INFINITY;
  }
};

}  // namespace jax_na::cuda
