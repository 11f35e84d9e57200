// SPDX-License-Identifier: Apache-2.0
// The unfused operations as matrix products over haloed tiles (the paper's GEMM-based kernels, in 1-D to 3-D).
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/isa.h"
#include "common/problem.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/micro.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"
#include "cpu/tiles/weights.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Packed: element of the streamed operand, and for qk of the tile. The weights of av and inverse are float32 in memory:
// rounded for pairs, they would not be what the caller gave.
template <class Packed>
struct GemmScratch {
  Packed* query;  // tile, [dim][kLanes]
  float* sums;    // tile
  float* scores;  // [kChunk][kLanes]
  Packed* panel;
  Lanes* lanes;
  BoxChunk* chunk;
  Streamed<const Packed>* rows;
};

// Tokens of a panel.
inline int64_t gemm_capacity(const Problem& problem) {
  return smaller(kPanelFloats / problem.value_dim, group_tokens(problem));
}

template <class Packed>
inline GemmScratch<Packed> make_gemm_scratch(Arena& arena, const Problem& problem) {
  const int64_t tile = int64_t{padded(problem.value_dim)} * kLanes;
  GemmScratch<Packed> scratch{};
  scratch.query = arena.take<Packed>(tile);
  scratch.sums = arena.take<float>(tile);
  scratch.scores = arena.take<float>(kChunk * kLanes);
  scratch.panel = arena.take<Packed>(panel_floats(problem.value_dim, gemm_capacity(problem)));
  scratch.lanes = arena.take<Lanes>(1);
  scratch.chunk = arena.take<BoxChunk>(1);
  scratch.rows = arena.take<Streamed<const Packed>>(1);
  return scratch;
}

inline int64_t gemm_scratch(const Problem& problem) {
  return arena_bytes([&](Arena& arena) { make_gemm_scratch<float>(arena, problem); });
}

template <class T>
inline HeadView<T> x_view(const UnfusedArgs& args, int64_t batch, int head) {
  return query_view(args.problem, static_cast<T*>(args.x), batch, head, args.problem.value_dim);
}
template <class T>
inline HeadView<T> y_view(const UnfusedArgs& args, int64_t batch, int kv_head) {
  return key_view(args.problem, static_cast<T*>(args.y), batch, kv_head, args.problem.value_dim);
}

constexpr float kOnes[kLanes] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// What the body of a tile needs: the streamed operand is filled into the panel once per run of tiles.
template <class Packed>
struct GemmTile {
  const UnfusedArgs& args;
  const Tile& tile;
  const TokenPanel& panel;
  const GemmScratch<Packed>& scratch;
};

// weights[lane, slot] = <x[lane], y[key]>
template <class T>
void gemm_qk_tile(const GemmTile<PackedOf<T>>& work, const HeadView<const T>& keys) {
  const UnfusedArgs& args = work.args;
  const Tile& tile = work.tile;
  const auto& scratch = work.scratch;
  const Lanes& lanes = *scratch.lanes;
  const BoxChunk& chunk = *scratch.chunk;
  clear_rows(args, tile, lanes);
  pack_tile(x_view<const T>(args, tile.batch, tile.head), lanes, 1.0f, scratch.query);
  const VisitedTokens<Side::kQueries> visited{args.problem, tile, work.panel};
  for_each_chunk(lanes, *scratch.chunk, [&] {
    visit_rows(visited, VisitedOperand{keys, scratch.panel, Along::kFeatures}, chunk, *scratch.rows);
    dot(scratch.query, *scratch.rows, 1.0f, scratch.scores);
    scatter_weights(args, tile, lanes, chunk, scratch.scores);
  });
}

// x[lane] = sum over its keys of weights[lane, slot] y[key]
template <class T>
void gemm_av_tile(const GemmTile<float>& work, const HeadView<const T>& values) {
  const UnfusedArgs& args = work.args;
  const Tile& tile = work.tile;
  const auto& scratch = work.scratch;
  const Lanes& lanes = *scratch.lanes;
  const BoxChunk& chunk = *scratch.chunk;
  memset(scratch.sums, 0, padded(args.problem.value_dim) * kLanes * sizeof(float));
  const VisitedTokens<Side::kQueries> visited{args.problem, tile, work.panel};
  for_each_chunk(lanes, *scratch.chunk, [&] {
    visit_rows(visited, VisitedOperand{values, scratch.panel, Along::kTokens}, chunk, *scratch.rows);
    gather_weights(args, tile, lanes, chunk, scratch.scores);
    accumulate<float>(scratch.scores, *scratch.rows, scratch.sums);
  });
  unpack_tile(scratch.sums, kOnes, lanes, x_view<T>(args, tile.batch, tile.head),
              [&](int lane) { define_av(args, query_row(args.problem, tile, lanes.token[lane])); });
}

// y[lane] = sum over the queries that see it of weights[query, slot] x[query]. The lanes are keys of one kv head; the
// query heads that share it are added up.
template <class T>
void gemm_inverse_tile(const GemmTile<float>& work) {
  const UnfusedArgs& args = work.args;
  const Tile& tile = work.tile;
  const auto& scratch = work.scratch;
  const Lanes& lanes = *scratch.lanes;
  const BoxChunk& chunk = *scratch.chunk;
  const int repeats = query_heads_per_kv_head(args.problem);
  TokenPanel panel = work.panel;
  panel.resident &= repeats == 1;  // of another head each time: not worth keeping
  memset(scratch.sums, 0, padded(args.problem.value_dim) * kLanes * sizeof(float));
  const VisitedTokens<Side::kKeys> visited{args.problem, tile, panel};
  for (int head = tile.head * repeats; head < (tile.head + 1) * repeats; ++head) {
    const auto queries = x_view<const T>(args, tile.batch, head);
    for_each_chunk(lanes, *scratch.chunk, [&] {
      visit_rows(visited, VisitedOperand{queries, scratch.panel, Along::kTokens}, chunk, *scratch.rows);
      gather_weights_inverse(args, tile, head, lanes, chunk, scratch.scores);
      accumulate<float>(scratch.scores, *scratch.rows, scratch.sums);
    });
  }
  unpack_tile(scratch.sums, kOnes, lanes, y_view<float>(args, tile.batch, tile.head),
              [&](int lane) { define_inverse(args, key_row(args.problem, tile, lanes.token[lane])); });
}

// Runs every tile whose lanes are of one side; fill(tile, panel, scratch) packs the visited tokens of a run, body(
// GemmTile) does one tile.
template <class Packed, class Fill, class Body>
void for_each_gemm_tile(const UnfusedArgs& args, const Parallel& parallel, Side side, const Fill& fill,
                        const Body& body) {
  const Problem& problem = args.problem;
  const int heads = side == Side::kQueries ? problem.heads : problem.kv_heads;
  const TileGrid grid = make_tile_grid(problem, side, gemm_capacity(problem), units_per_head(problem, heads));
  auto unit_body = [&](int64_t unit, char* memory) {
    Tile tile;
    int stop;
    const UnitIndex index = split_unit(unit, heads, grid.units);
    if (!locate_run(problem, grid, index.unit, tile, stop)) return;
    tile.head = index.head;
    tile.batch = index.batch;
    Arena arena{memory};
    const auto scratch = make_gemm_scratch<Packed>(arena, problem);
    const TokenPanel panel = make_panel<Packed>(problem, tile, side, stop, problem.value_dim);
    fill(tile, panel, scratch);
    for (; tile.first[2] < stop; tile.first[2] += problem.tile[2]) {
      make_lanes(problem, tile, side, *scratch.lanes);
      body(GemmTile<Packed>{args, tile, panel, scratch});
    }
  };
  parallel_for(parallel, problem.batch * heads * grid.units, unit_body);
}

// qk and av: the lanes are queries, the keys (or values) of the shared head are streamed.
template <class T, class Packed, class Body>
void for_each_query_tile(const UnfusedArgs& args, const Parallel& parallel, const Body& body) {
  const Problem& problem = args.problem;
  const auto view = [&](const Tile& tile) {
    return y_view<const T>(args, tile.batch, tile.head / query_heads_per_kv_head(problem));
  };
  const auto fill = [&](const Tile& tile, const TokenPanel& panel, const GemmScratch<Packed>& scratch) {
    const VisitedTokens<Side::kQueries> visited{problem, tile, panel};
    fill_panel(visited, VisitedOperand{view(tile), scratch.panel, Along::kFeatures});
  };
  for_each_gemm_tile<Packed>(args, parallel, Side::kQueries, fill,
                             [&](const GemmTile<Packed>& work) { body(work, view(work.tile)); });
}

inline void gemm_qk(const UnfusedArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    using Packed = PackedOf<T>;
    for_each_query_tile<T, Packed>(
        args, parallel, [](const GemmTile<Packed>& work, const HeadView<const T>& keys) { gemm_qk_tile(work, keys); });
  });
}
inline void gemm_av(const UnfusedArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_query_tile<T, float>(args, parallel, [](const GemmTile<float>& work, const HeadView<const T>& values) {
      gemm_av_tile(work, values);
    });
  });
}
inline void gemm_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    const auto fill = [&](const Tile& tile, const TokenPanel& panel, const GemmScratch<float>& scratch) {
      if (query_heads_per_kv_head(problem) > 1) return;
      const VisitedTokens<Side::kKeys> visited{problem, tile, panel};
      const auto queries = x_view<const T>(args, tile.batch, tile.head);
      fill_panel(visited, VisitedOperand{queries, scratch.panel, Along::kTokens});
    };
    for_each_gemm_tile<float>(args, parallel, Side::kKeys, fill,
                              [](const GemmTile<float>& work) { gemm_inverse_tile<T>(work); });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
