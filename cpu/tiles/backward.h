// SPDX-License-Identifier: Apache-2.0
// Fused backward in one pass over query tiles, five matrix products, no atomics.
//
//   S, P = exp(S - lse)  again from q, k;   dP = dout v^T;   dS = P (dP - delta)
//   dq = scale dS k;   dk += scale dS^T q;   dv += P^T dout;   drpb += dS
//
// dk and dv are sums over query tiles that overlap in keys: slabs.h says in which order.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/backward_operands.h"
#include "cpu/tiles/micro.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/scores.h"
#include "cpu/tiles/slabs.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// scores -> P, dscores -> dS = P (dP - delta). Lanes that do not exist have an infinite lse, so their P is exactly 0.
// For the gradient of a bias, which adds up all lanes, dS is 0 where P is, whatever dP is.
template <bool kBiased, class Packed>
inline void softmax_gradient(int keys, const BackwardScratch<Packed>& scratch) {
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    const Vec lse = load(scratch.lse + lane), delta = load(scratch.delta + lane);
    for (int key = 0; key < keys; ++key) {
      float *score = scratch.scores + key * kLanes + lane, *gradient = scratch.dscores + key * kLanes + lane;
      const Vec probability = exp2(load(score) - lse);
      store(score, probability);
      Vec dscore = probability * (load(gradient) - delta);
      if constexpr (kBiased) dscore = select(probability == Vec{}, Vec{}, dscore);
      store(gradient, dscore);
    }
  }
}
template <class Packed>
inline void softmax_gradient(int keys, bool is_biased, const BackwardScratch<Packed>& scratch) {
  if (is_biased)
    softmax_gradient<true>(keys, scratch);
  else
    softmax_gradient<false>(keys, scratch);
}

// Rounds the weights of the three sums to pairs: P and dS of two lanes in dk and dv, dS of two keys in dq. Pairs of
// queries and keys are not scaled, so dS is.
template <class Packed>
inline void round_weights(int keys, float scale, const BackwardScratch<Packed>& scratch) {
  static_assert(kTerms<Packed> == 1 || kVecs == 1, "a register has all lanes of a key");
  if constexpr (kTerms<Packed> == 2) {
    const Vec factor = splat(scale);
    for (int key = 0; key < keys; key += 2) {
      float *scores = scratch.scores + key * kLanes, *dscores = scratch.dscores + key * kLanes;
      const int pair = key / 2 * kLanes;
      const Vec gradients = narrow(factor * load(dscores), factor * load(dscores + kLanes));
      store(scratch.scores + pair, narrow(load(scores), load(scores + kLanes)));
      store(scratch.dscore_rows + pair, gradients);
      store(scratch.dscores + pair, interleave(gradients));
    }
  }
}

// dk or dv of a head: the panel of their sums beside the view.
using VisitedSums = VisitedOperand<float, float>;

// The chunk's rows of dk or dv, to be added to: in the panel of sums, or in memory when the panel is streamed.
inline void sum_rows(const VisitedTokens<Side::kQueries>& visited, const VisitedSums& sums, const BoxChunk& chunk,
                     Streamed<float>& rows) {
  const TokenPanel& panel = visited.panel;
  const HeadView<float>& view = sums.view;
  rows.runs = 0;
  rows.dim = view.dim;
  rows.stride = panel.resident ? view.dim : token_step(visited) * view.stride;
  int first = 0;
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    if (panel.resident)
      add_run(rows, panel_row(panel, sums, segment.position), first, segment.count);
    else
      add_run(rows, view.base + token_at(visited, segment.position) * view.stride, first, real_tokens(panel, segment));
    first += segment.count;
  }
}

// Adds a resident panel of sums to memory.
inline void flush_panel(const VisitedTokens<Side::kQueries>& visited, const VisitedSums& sums) {
  const TokenPanel& panel = visited.panel;
  if (!panel.resident) return;
  const HeadView<float> view = sums.view;  // copied: what is stored could be the one referred to
  const int64_t next = token_step(visited) * view.stride;
  const int tokens = extent(panel.box[2]);
  for_each_row(visited, [&](int64_t token, const int (&position)[kAxes]) {
    const float* from = panel_row(panel, sums, position);
    float* to = view.base + token * view.stride;
    for (int j = 0; j < tokens; ++j, from += view.dim, to += next) add_to(to, from, view.dim);
  });
}

// dq of a tile's lanes. Rows that are not finite by definition; what they hold may have reached any key of the tile.
template <class T>
inline void store_query_gradients(const BackwardArgs& args, const Tile& tile, const HeadView<T>& dquery,
                                  const BackwardScratch<PackedOf<T>>& scratch) {
  float factors[kLanes];
  for (float& factor : factors) factor = kTerms<PackedOf<T>> == 1 ? static_cast<float>(args.problem.scale) : 1.0f;
  unpack_tile(scratch.dquery, factors, *scratch.lanes, dquery, [&](int lane) {
    scratch.left_out->keys = true;
    define_query_gradient(args, query_row(args.problem, tile, scratch.lanes->token[lane]));
  });
}

// One tile of queries of one head, chunk by chunk: both score-like products first, then the three sums. P and dS take
// the place of S and dP.
// drpb: gradient table of the tile's head, or null.
template <class T>
void backward_tile(const BackwardArgs& args, const Tile& tile, const TokenPanel& panel, float* drpb,
                   const BackwardScratch<PackedOf<T>>& scratch) {
  using Packed = PackedOf<T>;
  const Problem& problem = args.problem;
  const BackwardViews<T> views = make_backward_views<T>(args, tile.batch, tile.head);
  const BiasTable bias = make_bias_table(problem, args.rpb, tile.head);
  const uint8_t* mask = mask_of_batch(problem, args.key_mask, tile.batch);
  const VisitedTokens<Side::kQueries> visited{problem, tile, panel};
  const Lanes& lanes = *scratch.lanes;
  const BoxChunk& chunk = *scratch.chunk;
  const float scale = static_cast<float>(problem.scale);

  load_queries(problem, views, scratch);
  for_each_chunk(lanes, *scratch.chunk, [&] {
    // S = scale q k^T + rpb, masked
    visit_rows(visited, VisitedOperand{views.key, scratch.keys, Along::kFeatures}, chunk, *scratch.key_rows);
    dot(scratch.query, *scratch.key_rows, score_factor(problem), scratch.scores);
    if (bias.entries != nullptr) add_bias(bias, lanes, chunk, scratch.scores);
    if (mask != nullptr) hide_keys(visited, mask, chunk, scratch.scores);
    mask_scores(lanes, chunk, scratch.scores, scratch.maximum);
    // dP = dout v^T;  P = exp(S - lse);  dS = P (dP - delta)
    visit_rows(visited, VisitedOperand{views.value, scratch.values, Along::kFeatures}, chunk, *scratch.value_rows);
    dot(scratch.dout, *scratch.value_rows, 1.0f, scratch.dscores);
    softmax_gradient(chunk.keys, drpb != nullptr, scratch);
    if (drpb != nullptr) add_bias_gradient(bias, lanes, chunk, scratch.dscores, drpb);
    round_weights(chunk.keys, scale, scratch);
    // dq += dS k, of pairs with pairs of keys: packed along tokens
    if constexpr (kTerms<Packed> == 2)
      visit_rows(visited, VisitedOperand{views.key, scratch.key_tokens, Along::kTokens}, chunk, *scratch.key_rows);
    accumulate(reinterpret_cast<const Packed*>(scratch.dscores), *scratch.key_rows, scratch.dquery);
    // dk += dS^T (scale q);  dv += P^T dout
    sum_rows(visited, {views.dkey, scratch.dkeys, Along::kFeatures}, chunk, *scratch.sums);
    outer<Packed>(scratch.dscore_rows, scratch.query_tokens, padded(problem.head_dim), *scratch.sums);
    sum_rows(visited, {views.dvalue, scratch.dvalues, Along::kFeatures}, chunk, *scratch.sums);
    outer(reinterpret_cast<const Packed*>(scratch.scores), scratch.dout_tokens, padded(problem.value_dim),
          *scratch.sums);
  });
  store_query_gradients(args, tile, views.dquery, scratch);
}

// Packs the keys and values that a run visits, and clears the sums that it adds to.
template <class T>
inline void fill_backward_panels(const VisitedTokens<Side::kQueries>& visited, const BackwardViews<T>& views,
                                 const BackwardScratch<PackedOf<T>>& scratch) {
  fill_panel(visited, VisitedOperand{views.key, scratch.keys, Along::kFeatures});
  fill_panel(visited, VisitedOperand{views.value, scratch.values, Along::kFeatures});
  if constexpr (kTerms<PackedOf<T>> == 2)
    fill_panel(visited, VisitedOperand{views.key, scratch.key_tokens, Along::kTokens});
  if (!visited.panel.resident) return;
  const int64_t tokens = panel_tokens(visited.panel);
  memset(scratch.dkeys, 0, tokens * views.dkey.dim * sizeof(float));
  memset(scratch.dvalues, 0, tokens * views.dvalue.dim * sizeof(float));
}

// A run of query tiles that ends before `stop`, for every query head that shares the kv head.
template <class T>
void backward_run(const BackwardArgs& args, Tile& tile, int stop, int kv_head, float* drpb,
                  const BackwardScratch<PackedOf<T>>& scratch) {
  using Packed = PackedOf<T>;
  const Problem& problem = args.problem;
  const int repeats = query_heads_per_kv_head(problem), first_head = kv_head * repeats;
  const TokenPanel panel =
      make_panel<Packed>(problem, tile, Side::kQueries, stop, 2 * (problem.head_dim + problem.value_dim));
  const VisitedTokens<Side::kQueries> visited{problem, tile, panel};
  const BackwardViews<T> views = make_backward_views<T>(args, tile.batch, first_head);
  fill_backward_panels(visited, views, scratch);
  for (; tile.first[2] < stop; tile.first[2] += problem.tile[2]) {
    make_lanes(problem, tile, Side::kQueries, *scratch.lanes);
    visit_pairs<Packed>(panel, *scratch.lanes);
    for (tile.head = first_head; tile.head < first_head + repeats; ++tile.head)
      backward_tile<T>(args, tile, panel, bias_table_of_head(problem, drpb, tile.head), scratch);
  }
  flush_panel(visited, {views.dkey, scratch.dkeys, Along::kFeatures});
  flush_panel(visited, {views.dvalue, scratch.dvalues, Along::kFeatures});
}

// Puts a tile at an index of the grid, in tiles from the first query of its group; false when the group is too short.
inline bool place_tile(const Problem& problem, const int (&index)[kAxes], Tile& tile) {
  bool exists = true;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Range queries = tile.group[axis].queries;
    tile.first[axis] = queries.start + index[axis] * problem.tile[axis];
    exists &= tile.first[axis] < queries.stop;
  }
  return exists;
}

// All query tiles of one slab of one (batch entry, kv head, dilation group), run by run.
template <class T>
void backward_slab(const BackwardArgs& args, const SlabbedGrid& cut, int slab, Tile& tile, float* drpb,
                   const BackwardScratch<PackedOf<T>>& scratch) {
  const Problem& problem = args.problem;
  const TileGrid& grid = cut.grid;
  const int kv_head = tile.head, axis = cut.slabs.axis;
  Range tiles[kAxes] = {{0, grid.tiles[0]}, {0, grid.tiles[1]}, {0, grid.tiles[2]}};
  tiles[axis] = {slab_start(grid.tiles[axis], cut.slabs, slab), slab_start(grid.tiles[axis], cut.slabs, slab + 1)};
  for (int z = tiles[0].start; z < tiles[0].stop; ++z)
    for (int y = tiles[1].start; y < tiles[1].stop; ++y)
      for (int x = tiles[2].start; x < tiles[2].stop; x += grid.run) {
        if (!place_tile(problem, {z, y, x}, tile)) continue;
        const int length = min(grid.run, tiles[2].stop - x) * problem.tile[2];
        const int stop = min(tile.first[2] + length, tile.group[2].queries.stop);
        backward_run<T>(args, tile, stop, kv_head, drpb, scratch);
      }
}

inline void fused_backward(const BackwardArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const TileGrid grid = make_tile_grid(problem, Side::kQueries, backward_capacity(problem), 0);
  const SlabbedGrid cut{grid, choose_slabs(problem, grid)};
  clear_sums(args, parallel);
  LeftOut left_out;
  with_half_or_single(args.dtype, [&](auto element) {
    using T = decltype(element);
    const auto body = [&](int slab, Tile& tile, int64_t part, char* memory) {
      Arena arena{memory};
      auto scratch = make_backward_scratch<PackedOf<T>>(arena, problem);
      scratch.left_out = &left_out;
      backward_slab<T>(args, cut, slab, tile, bias_table_of(args, part), scratch);
    };
    for_each_slab(problem, parallel, cut.slabs, args.drpb_parts, body);
  });
  finish_gradients(args, parallel, left_out);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
