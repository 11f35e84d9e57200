// SPDX-License-Identifier: Apache-2.0
// The unfused operations as matrix products over haloed tiles (the paper's GEMM-based kernels, in 1-D to 3-D).
#pragma once

#include "cpu/tiles/weights.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// E: element of the streamed operand, and for qk of the tile. The weights of av and inverse are float32 in memory:
// rounded for pairs, they would not be what the caller gave.
template <class E>
struct GemmScratch {
  E* query;
  float *sums, *scores;
  E* panel;
  Lanes* lanes;
  Chunk* chunk;
  Rows<const E>* rows;
};

// Tokens of a panel.
inline int64_t gemm_capacity(const Problem& p) { return smaller(kPanelFloats / p.value_dim, group_tokens(p)); }

template <class E>
inline GemmScratch<E> make_gemm_scratch(Arena& arena, const Problem& p) {
  const int64_t tile = int64_t{padded(p.value_dim)} * kLanes;
  return {arena.take<E>(tile),
          arena.take<float>(tile),
          arena.take<float>(kChunk * kLanes),
          arena.take<E>(panel_floats(p.value_dim, gemm_capacity(p))),
          arena.take<Lanes>(1),
          arena.take<Chunk>(1),
          arena.take<Rows<const E>>(1)};
}

inline int64_t gemm_scratch(const Problem& p) {
  return arena_bytes([&](Arena& arena) { make_gemm_scratch<float>(arena, p); });
}

template <class T>
inline View<T> x_view(const UnfusedArgs& args, int64_t batch, int head) {
  const Problem& p = args.problem;
  return make_view(static_cast<T*>(args.x), batch, query_tokens(p), p.heads, head, p.value_dim);
}
template <class T>
inline View<T> y_view(const UnfusedArgs& args, int64_t batch, int kv_head) {
  const Problem& p = args.problem;
  return make_view(static_cast<T*>(args.y), batch, key_tokens(p), p.kv_heads, kv_head, p.value_dim);
}

constexpr float kOnes[kLanes] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// What the body of a tile needs: the streamed operand is filled into the panel once per run of tiles.
template <class E>
struct GemmTile {
  const UnfusedArgs& args;
  const Tile& tile;
  const Panel& panel;
  const GemmScratch<E>& s;
};

template <class T>
void gemm_qk_tile(const GemmTile<Element<T>>& t, const View<const T>& keys) {
  const Problem& p = t.args.problem;
  clear_rows(t.args, t.tile, *t.s.lanes);
  pack_tile(x_view<const T>(t.args, t.tile.batch, t.tile.head), *t.s.lanes, 1.0f, t.s.query);
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, t.tile, i); };
  for_each_chunk(*t.s.lanes, *t.s.chunk, [&] {
    visit_rows(t.panel, keys, *t.s.chunk, p.axis[2].dilation, token_of, Along::kFeatures, t.s.panel, *t.s.rows);
    dot(t.s.query, *t.s.rows, 1.0f, t.s.scores);
    scatter_weights(t.args, t.tile, *t.s.lanes, *t.s.chunk, t.s.scores);
  });
}

template <class T>
void gemm_av_tile(const GemmTile<float>& t, const View<const T>& values) {
  const Problem& p = t.args.problem;
  memset(t.s.sums, 0, p.value_dim * kLanes * sizeof(float));
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, t.tile, i); };
  for_each_chunk(*t.s.lanes, *t.s.chunk, [&] {
    visit_rows(t.panel, values, *t.s.chunk, p.axis[2].dilation, token_of, Along::kTokens, t.s.panel, *t.s.rows);
    gather_weights(t.args, t.tile, *t.s.lanes, *t.s.chunk, t.s.scores);
    accumulate<float>(t.s.scores, *t.s.rows, t.s.sums);
  });
  unpack_tile(t.s.sums, kOnes, *t.s.lanes, x_view<T>(t.args, t.tile.batch, t.tile.head));
}

// The lanes are keys of one kv head; the query heads that share it are added up.
template <class T>
void gemm_inverse_tile(const GemmTile<float>& t) {
  const Problem& p = t.args.problem;
  const int repeats = query_heads_per_kv_head(p);
  Panel panel = t.panel;
  panel.resident &= repeats == 1;  // of another head each time: not worth keeping
  memset(t.s.sums, 0, p.value_dim * kLanes * sizeof(float));
  const auto token_of = [&](const int (&i)[kAxes]) { return query_token(p, t.tile, i); };
  for (int head = t.tile.head * repeats; head < (t.tile.head + 1) * repeats; ++head) {
    const auto queries = x_view<const T>(t.args, t.tile.batch, head);
    for_each_chunk(*t.s.lanes, *t.s.chunk, [&] {
      visit_rows(panel, queries, *t.s.chunk, p.axis[2].dilation, token_of, Along::kTokens, t.s.panel, *t.s.rows);
      gather_weights_inverse(t.args, t.tile, head, *t.s.lanes, *t.s.chunk, t.s.scores);
      accumulate<float>(t.s.scores, *t.s.rows, t.s.sums);
    });
  }
  unpack_tile(t.s.sums, kOnes, *t.s.lanes, y_view<float>(t.args, t.tile.batch, t.tile.head));
}

// Runs every tile of one side; fill(tile, panel, scratch) packs the visited tokens, body(GemmTile) does one tile.
template <class E, class Fill, class Body>
void for_each_gemm_tile(const UnfusedArgs& args, const Parallel& parallel, Side side, const Fill& fill,
                        const Body& body) {
  const Problem& p = args.problem;
  const int heads = side == Side::kQueries ? p.heads : p.kv_heads;
  const TileGrid grid = make_tile_grid(p, side, gemm_capacity(p), units_per_head(p, heads));
  auto unit_body = [&](int64_t unit, char* memory) {
    Tile tile;
    int stop;
    const UnitIndex index = split_unit(unit, heads, grid.units);
    if (!locate_run(p, grid, index.unit, tile, stop)) return;
    tile.head = index.head;
    tile.batch = index.batch;
    Arena arena{memory};
    const auto scratch = make_gemm_scratch<E>(arena, p);
    const Panel panel = make_panel<E>(p, tile, side, stop, p.value_dim);
    fill(tile, panel, scratch);
    for (; tile.first[2] < stop; tile.first[2] += p.tile[2]) {
      make_lanes(p, tile, side, *scratch.lanes);
      body(GemmTile<E>{args, tile, panel, scratch});
    }
  };
  parallel_for(parallel, p.batch * heads * grid.units, unit_body);
}

// qk and av: the lanes are queries, the keys (or values) of the shared head are streamed.
template <class T, class E, class Body>
void for_each_query_tile(const UnfusedArgs& args, const Parallel& parallel, const Body& body) {
  const Problem& p = args.problem;
  const auto view = [&](const Tile& tile) {
    return y_view<const T>(args, tile.batch, tile.head / query_heads_per_kv_head(p));
  };
  for_each_gemm_tile<E>(
      args, parallel, Side::kQueries,
      [&](const Tile& tile, const Panel& panel, const GemmScratch<E>& s) {
        const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
        fill_panel(panel, view(tile), p.axis[2].dilation, token_of, Along::kFeatures, s.panel);
      },
      [&](const GemmTile<E>& t) { body(t, view(t.tile)); });
}

inline void gemm_qk(const UnfusedArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    using E = Element<T>;
    for_each_query_tile<T, E>(args, parallel,
                              [](const GemmTile<E>& t, const View<const T>& keys) { gemm_qk_tile(t, keys); });
  });
}
inline void gemm_av(const UnfusedArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_query_tile<T, float>(
        args, parallel, [](const GemmTile<float>& t, const View<const T>& values) { gemm_av_tile(t, values); });
  });
}
inline void gemm_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_gemm_tile<float>(
        args, parallel, Side::kKeys,
        [&](const Tile& tile, const Panel& panel, const GemmScratch<float>& s) {
          if (query_heads_per_kv_head(p) > 1) return;
          const auto token_of = [&](const int (&i)[kAxes]) { return query_token(p, tile, i); };
          fill_panel(panel, x_view<const T>(args, tile.batch, tile.head), p.axis[2].dilation, token_of, Along::kTokens,
                     s.panel);
        },
        [](const GemmTile<float>& t) { gemm_inverse_tile<T>(t); });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
