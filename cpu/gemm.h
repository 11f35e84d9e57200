// SPDX-License-Identifier: Apache-2.0
// The unfused operations as matrix products over haloed tiles (the paper's GEMM-based kernels, in 1-D to 3-D).
// A tile's weights are dense, [visited tokens][kLanes]; between that form and the rows of weights in memory,
// [tokens][heads][pitch], they are scattered (qk) or gathered (av, inverse) through a table of row positions.
#pragma once

#include "panel.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

struct GemmScratch {
  float *tile, *scores, *panel;
  Lanes* lanes;
  Chunk* chunk;
  Rows<const float>* rows;
};

// Tokens of a panel.
inline int64_t gemm_capacity(const Problem& p) { return smaller(kPanelFloats / p.value_dim, group_tokens(p)); }

inline GemmScratch make_gemm_scratch(Arena& arena, const Problem& p) {
  return {arena.take<float>(int64_t{padded(p.value_dim)} * kLanes),
          arena.take<float>(kChunk * kLanes),
          arena.take<float>(panel_floats(p.value_dim, gemm_capacity(p))),
          arena.take<Lanes>(1),
          arena.take<Chunk>(1),
          arena.take<Rows<const float>>(1)};
}

inline int64_t gemm_scratch(const Problem& p) {
  Arena arena{nullptr};
  make_gemm_scratch(arena, p);
  return reinterpret_cast<int64_t>(arena.next) + 64;
}

inline float* weights_row(const UnfusedArgs& args, int64_t batch, int64_t token, int head) {
  const Problem& p = args.problem;
  return static_cast<float*>(args.weights) + ((batch * query_tokens(p) + token) * p.heads + head) * p.pitch;
}

// Part of a segment that lies in the lane's window, and the slot of its first key; empty when count <= 0.
struct Overlap {
  int first, count, slot;
};

inline Overlap overlap(const Problem& p, const Lanes& lanes, int lane, const Segment& segment) {
  const int z = segment.position[0] - lanes.start[0][lane], y = segment.position[1] - lanes.start[1][lane];
  if (z < 0 || y < 0 || segment.position[0] >= lanes.stop[0][lane] || segment.position[1] >= lanes.stop[1][lane])
    return {0, 0, 0};
  const int x = segment.position[2];
  const int start = max(lanes.start[2][lane], x), stop = min(lanes.stop[2][lane], x + segment.count);
  const int slot = (z * p.axis[1].kernel_size + y) * p.axis[2].kernel_size + start - lanes.start[2][lane];
  return {start - x, stop - start, slot};
}

// Calls body(lane, key of the chunk, slot, count) for the keys of every lane that exists, but square(first lane, key,
// slots) for squares of kWidth keys and kWidth lanes that lie in the windows of all of them: those can be transposed.
template <class Body, class Square>
inline void for_each_overlap(const Problem& p, const Lanes& lanes, const Chunk& chunk, const Body& body,
                             const Square& square) {
  int key = 0;
  for (int i = 0; i < chunk.segments; key += chunk.segment[i++].count)
    for (int first = 0; first < kLanes; first += kWidth) {
      Overlap overlaps[kWidth];
      int start = 0, stop = chunk.segment[i].count;  // keys that all lanes see
      for (int l = 0; l < kWidth; ++l) {
        overlaps[l] = overlap(p, lanes, first + l, chunk.segment[i]);
        if (!lanes.valid[first + l]) continue;
        start = max(start, overlaps[l].first);
        stop = min(stop, overlaps[l].first + max(overlaps[l].count, 0));
      }
      const int squares = max(stop - start, 0) / kWidth;
      stop = start + squares * kWidth;
      for (int k = start; k < stop; k += kWidth) {
        int slots[kWidth];
        for (int l = 0; l < kWidth; ++l) slots[l] = overlaps[l].slot + k - overlaps[l].first;
        square(first, key + k, slots);
      }
      for (int l = 0; l < kWidth; ++l) {
        const Overlap& o = overlaps[l];
        if (!lanes.valid[first + l] || o.count <= 0) continue;
        const int end = o.first + o.count;
        if (squares == 0) {
          body(first + l, key + o.first, o.slot, o.count);
        } else {
          body(first + l, key + o.first, o.slot, start - o.first);
          body(first + l, key + stop, o.slot + stop - o.first, end - stop);
        }
      }
    }
}

// The rows of weights of all lanes; lanes that do not exist repeat the last.
struct LaneRows {
  float* row[kLanes];
};
inline LaneRows lane_rows(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes) {
  LaneRows rows;
  for (int lane = 0; lane < kLanes; ++lane)
    rows.row[lane] = weights_row(args, tile.batch, lanes.token[lane], tile.head);
  return rows;
}

inline void scatter_weights(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes, const Chunk& chunk,
                            const float* scores) {
  const LaneRows rows = lane_rows(args, tile, lanes);
  for_each_overlap(
      args.problem, lanes, chunk,
      [&](int lane, int key, int slot, int count) {
        for (int j = 0; j < count; ++j) rows.row[lane][slot + j] = scores[(key + j) * kLanes + lane];
      },
      [&](int first, int key, const int* slots) {
        Vec block[kWidth];
        for (int j = 0; j < kWidth; ++j) block[j] = load(scores + (key + j) * kLanes + first);
        transpose(block);
        for (int l = 0; l < kWidth; ++l)
          if (lanes.valid[first + l]) store(rows.row[first + l] + slots[l], block[l]);
      });
}

inline void gather_weights(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes, const Chunk& chunk,
                           float* scores) {
  memset(scores, 0, chunk.keys * kLanes * sizeof(float));
  const LaneRows rows = lane_rows(args, tile, lanes);
  for_each_overlap(
      args.problem, lanes, chunk,
      [&](int lane, int key, int slot, int count) {
        for (int j = 0; j < count; ++j) scores[(key + j) * kLanes + lane] = rows.row[lane][slot + j];
      },
      [&](int first, int key, const int* slots) {
        Vec block[kWidth];
        for (int l = 0; l < kWidth; ++l)
          block[l] = lanes.valid[first + l] ? load(rows.row[first + l] + slots[l]) : Vec{};
        transpose(block);
        for (int j = 0; j < kWidth; ++j) store(scores + (key + j) * kLanes + first, block[j]);
      });
}

// The lanes are keys, the visited tokens queries: each query's row gives one weight to every lane it sees.
inline void gather_weights_inverse(const UnfusedArgs& args, const Tile& tile, int head, const Lanes& lanes,
                                   const Chunk& chunk, float* scores) {
  const Problem& p = args.problem;
  for (int i = 0; i < chunk.segments; ++i)
    for (int j = 0; j < chunk.segment[i].count; ++j, scores += kLanes) {
      int query[kAxes], start[kAxes];
      for (int a = 0; a < kAxes; ++a) {
        query[a] = chunk.segment[i].position[a] + (a == kAxes - 1 ? j : 0);
        start[a] = window(p.axis[a], tile.group[a].length, query[a]).start;
      }
      const float* row = weights_row(args, tile.batch, query_token(p, tile, query), head);
      for (int lane = 0; lane < kLanes; ++lane) {
        bool seen = true;
        int slot = 0;
        for (int a = 0; a < kAxes; ++a) {
          seen &= lanes.start[a][lane] <= query[a] && query[a] < lanes.stop[a][lane];
          slot = slot * p.axis[a].kernel_size + lanes.position[a][lane] - start[a];
        }
        scores[lane] = seen ? row[slot] : 0.0f;
      }
    }
}

inline void clear_rows(const UnfusedArgs& args, const Tile& tile, const Lanes& lanes) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (lanes.valid[lane])
      memset(weights_row(args, tile.batch, lanes.token[lane], tile.head), 0, args.problem.pitch * sizeof(float));
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
struct GemmTile {
  const UnfusedArgs& args;
  const Tile& tile;
  const Panel& panel;
  const GemmScratch& s;
};

template <class T>
void gemm_qk_tile(const GemmTile& t, const View<const T>& keys) {
  const Problem& p = t.args.problem;
  clear_rows(t.args, t.tile, *t.s.lanes);
  pack_tile(x_view<const T>(t.args, t.tile.batch, t.tile.head), *t.s.lanes, 1.0f, t.s.tile);
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, t.tile, i); };
  for_each_chunk(*t.s.lanes, *t.s.chunk, [&] {
    visit_rows(t.panel, keys, *t.s.chunk, p.axis[2].dilation, token_of, t.s.panel, *t.s.rows);
    dot(t.s.tile, *t.s.rows, t.s.scores);
    scatter_weights(t.args, t.tile, *t.s.lanes, *t.s.chunk, t.s.scores);
  });
}

template <class T>
void gemm_av_tile(const GemmTile& t, const View<const T>& values) {
  const Problem& p = t.args.problem;
  memset(t.s.tile, 0, p.value_dim * kLanes * sizeof(float));
  const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, t.tile, i); };
  for_each_chunk(*t.s.lanes, *t.s.chunk, [&] {
    visit_rows(t.panel, values, *t.s.chunk, p.axis[2].dilation, token_of, t.s.panel, *t.s.rows);
    gather_weights(t.args, t.tile, *t.s.lanes, *t.s.chunk, t.s.scores);
    accumulate(t.s.scores, *t.s.rows, t.s.tile);
  });
  unpack_tile(t.s.tile, kOnes, *t.s.lanes, x_view<T>(t.args, t.tile.batch, t.tile.head));
}

// The lanes are keys of one kv head; the query heads that share it are added up.
template <class T>
void gemm_inverse_tile(const GemmTile& t) {
  const Problem& p = t.args.problem;
  const int repeats = query_heads_per_kv_head(p);
  const Panel streamed{};  // of another head each time: not worth keeping
  memset(t.s.tile, 0, p.value_dim * kLanes * sizeof(float));
  const auto token_of = [&](const int (&i)[kAxes]) { return query_token(p, t.tile, i); };
  for (int head = t.tile.head * repeats; head < (t.tile.head + 1) * repeats; ++head) {
    const auto queries = x_view<const T>(t.args, t.tile.batch, head);
    for_each_chunk(*t.s.lanes, *t.s.chunk, [&] {
      visit_rows(repeats == 1 ? t.panel : streamed, queries, *t.s.chunk, p.axis[2].dilation, token_of, t.s.panel,
                 *t.s.rows);
      gather_weights_inverse(t.args, t.tile, head, *t.s.lanes, *t.s.chunk, t.s.scores);
      accumulate(t.s.scores, *t.s.rows, t.s.tile);
    });
  }
  unpack_tile(t.s.tile, kOnes, *t.s.lanes, y_view<float>(t.args, t.tile.batch, t.tile.head));
}

// Runs every tile of one side; fill(tile, panel, scratch) packs the visited tokens, body(GemmTile) does one tile.
template <class Fill, class Body>
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
    const GemmScratch scratch = make_gemm_scratch(arena, p);
    const Panel panel = make_panel(p, tile, side, stop, p.value_dim);
    fill(tile, panel, scratch);
    for (; tile.first[2] < stop; tile.first[2] += p.tile[2]) {
      make_lanes(p, tile, side, *scratch.lanes);
      body(GemmTile{args, tile, panel, scratch});
    }
  };
  parallel_for(parallel, p.batch * heads * grid.units, unit_body);
}

// qk and av: the lanes are queries, the keys (or values) of the shared head are streamed.
template <class T, class Body>
void for_each_query_tile(const UnfusedArgs& args, const Parallel& parallel, const Body& body) {
  const Problem& p = args.problem;
  const auto view = [&](const Tile& tile) {
    return y_view<const T>(args, tile.batch, tile.head / query_heads_per_kv_head(p));
  };
  for_each_gemm_tile(
      args, parallel, Side::kQueries,
      [&](const Tile& tile, const Panel& panel, const GemmScratch& s) {
        const auto token_of = [&](const int (&i)[kAxes]) { return key_token(p, tile, i); };
        fill_panel(panel, view(tile), p.axis[2].dilation, token_of, s.panel);
      },
      [&](const GemmTile& t) { body(t, view(t.tile)); });
}

inline void gemm_qk(const UnfusedArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_query_tile<T>(args, parallel, [](const GemmTile& t, const View<const T>& keys) { gemm_qk_tile(t, keys); });
  });
}
inline void gemm_av(const UnfusedArgs& args, const Parallel& parallel) {
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_query_tile<T>(args, parallel,
                           [](const GemmTile& t, const View<const T>& values) { gemm_av_tile(t, values); });
  });
}
inline void gemm_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_gemm_tile(
        args, parallel, Side::kKeys,
        [&](const Tile& tile, const Panel& panel, const GemmScratch& s) {
          if (query_heads_per_kv_head(p) > 1) return;
          const auto token_of = [&](const int (&i)[kAxes]) { return query_token(p, tile, i); };
          fill_panel(panel, x_view<const T>(args, tile.batch, tile.head), p.axis[2].dilation, token_of, s.panel);
        },
        [](const GemmTile& t) { gemm_inverse_tile<T>(t); });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
