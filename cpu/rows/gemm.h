// SPDX-License-Identifier: Apache-2.0
// The unfused operations of the row kernels: the products of rows.h, with the scores of a block moved to and from rows
// of weights in memory.
#pragma once

#include "cpu/rows/scores.h"
#include "cpu/rows/sums.h"
#include "cpu/tiles/gemm.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kGemmPanel = 120 << 10;  // floats, 480 KB

inline RowFeatures gemm_features(const Problem& p, Pass pass) {
  const int dim = padded(p.value_dim);
  return {pass == Pass::kQk ? dim : 0, pass == Pass::kAv ? dim : 0, kGemmPanel};
}

// E: element of the packed operands; float for av and inverse, as in gemm.h.
template <class E>
struct RowGemmScratch {
  E* rows;        // qk: queries, [row][dim][kWidth]; av and inverse: x, [row][lane][dim]
  E* keys;        // ring: qk transposed, av natural
  float* scores;  // [row][key row][column][kWidth]
};

template <class E>
inline RowGemmScratch<E> make_row_gemm_scratch(Arena& arena, const Problem& p, Pass pass) {
  return {arena.take<E>(int64_t{padded(p.value_dim)} * kBlockRows * kWidth),
          arena.take<E>(row_panel(p, gemm_features(p, pass))), arena.take<float>(row_scores(p))};
}

inline int64_t row_gemm_scratch(const Problem& p) {
  int64_t most = 0;
  for (Pass pass : {Pass::kQk, Pass::kAv, Pass::kInverse}) {
    const int64_t bytes = arena_bytes([&](Arena& arena) { make_row_gemm_scratch<float>(arena, p, pass); });
    most = most > bytes ? most : bytes;
  }
  return most;
}

// A query row and its place in memory: the weights of every lane, and the query token of the first.
struct WeightRows {
  float* lane[kWidth];  // lanes that do not exist repeat the last
  int64_t token;
};

inline WeightRows weight_rows(const UnfusedArgs& args, const RowUnit& unit, const QueryRow& row, const LaneTile& tile) {
  const Problem& p = args.problem;
  const int position[kAxes] = {row.z, row.y, tile.first};
  WeightRows rows;
  rows.token = query_token(p, unit.tile, position);
  for (int l = 0; l < kWidth; ++l) {
    const int64_t token = rows.token + int64_t{min(l, tile.count - 1)} * p.axis[2].dilation;
    rows.lane[l] = weights_row(args, unit.tile.batch, token, unit.tile.head);
  }
  return rows;
}

// Whether the slots of every lane are the columns of its scores in order, so that registers can be moved.
inline bool slots_are_columns(const Problem& p, const QueryRow& row, const LaneTile& tile) {
  return tile.full && tile.columns == p.axis[2].kernel_size && extent(row.keys[0]) == p.axis[0].kernel_size &&
         extent(row.keys[1]) == p.axis[1].kernel_size;
}

// Calls body(slot, scores) for every register of scores of a query row, in the order of slots.
template <class Body>
inline void for_each_slot(const LaneTile& tile, int rows, float* scores, const Body& body) {
  for (int row = 0, slot = 0; row < rows; ++row, scores += tile.pitch)
    for (int c = 0; c < tile.columns; ++c, ++slot) body(slot, scores + (tile.margin + c) * kWidth);
}

// Calls body(lane, slot, scores of the slot's key, count) for every run of keys that a lane sees.
template <class Body>
inline void for_each_lane_slots(const Problem& p, const QueryRow& row, const LaneTile& tile, float* scores,
                                const Body& body) {
  for (int z = 0; z < extent(row.keys[0]); ++z)
    for (int y = 0; y < extent(row.keys[1]); ++y, scores += tile.pitch)
      for (int l = 0; l < tile.count; ++l)
        body(l, (z * p.axis[1].kernel_size + y) * p.axis[2].kernel_size,
             scores + (tile.margin + tile.start[l]) * kWidth + l, tile.stop[l] - tile.start[l]);
}

inline void store_weights(const Problem& p, const QueryRow& row, const LaneTile& tile, float* scores,
                          const WeightRows& rows) {
  if (slots_are_columns(p, row, tile)) {
    Vec block[kWidth];
    const auto flush = [&](int first) {
      transpose(block);
      for (int l = 0; l < tile.count; ++l) store_narrow(rows.lane[l] + first, block[l], p.pitch - first);
    };
    for_each_slot(tile, key_rows(row), scores, [&](int slot, const float* score) {
      block[slot % kWidth] = load(score);
      if (slot % kWidth == kWidth - 1) flush(slot - kWidth + 1);
    });
    const int done = slots(p) / kWidth * kWidth;
    for (int i = slots(p) - done; i < kWidth; ++i) block[i] = Vec{};
    for (int first = done; first < p.pitch; first += kWidth) {
      flush(first);
      for (Vec& v : block) v = Vec{};
    }
    return;
  }
  for (int l = 0; l < tile.count; ++l) memset(rows.lane[l], 0, p.pitch * sizeof(float));
  for_each_lane_slots(p, row, tile, scores, [&](int l, int slot, const float* score, int count) {
    for (int i = 0; i < count; ++i) rows.lane[l][slot + i] = score[i * kWidth];
  });
}

// Scores of a query row from weights; zero outside the windows and in the margins.
inline void load_weights(const Problem& p, const QueryRow& row, const LaneTile& tile, const WeightRows& rows,
                         float* scores) {
  if (slots_are_columns(p, row, tile)) {
    Vec block[kWidth];
    clear_margins(tile, key_rows(row), scores);
    for_each_slot(tile, key_rows(row), scores, [&](int slot, float* score) {
      if (slot % kWidth == 0) {
        for (int l = 0; l < kWidth; ++l) block[l] = load_wide(rows.lane[l] + slot, p.pitch - slot);
        transpose(block);
      }
      store(score, block[slot % kWidth]);
    });
    return;
  }
  memset(scores, 0, sizeof(float) * key_rows(row) * tile.pitch);
  for_each_lane_slots(p, row, tile, scores, [&](int l, int slot, float* score, int count) {
    for (int i = 0; i < count; ++i) score[i * kWidth] = rows.lane[l][slot + i];
  });
}

// Scores as they are.
struct PlainFinish {
  float* scores[kBlockRows];

  template <int R, int C>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[R][C]) const {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) store(scores[r] + (first + c) * kWidth, sum[r][c]);
  }
};

template <class T>
void row_qk_unit(const UnfusedArgs& args, RowUnit& unit, Ring& ring, const RowGemmScratch<Element<T>>& s) {
  using E = Element<T>;
  const Problem& p = args.problem;
  const int dim = padded(p.value_dim), count = extent(ring.columns), pitch = transposed_pitch(count);
  const int64_t step = p.axis[2].dilation;
  const auto keys = y_view<const T>(args, unit.tile.batch, unit.tile.head);
  const auto fill = [&](const Block& block) {
    fill_rows(p, unit, block, ring, [&](int z, int y, int64_t token) {
      pack_transposed(keys.base + token * keys.stride, step * keys.stride, count, p.value_dim, 1.0f,
                      transposed_row(ring, s.keys, p.value_dim, z, y), pitch);
    });
  };
  for_each_lane_tile(p, unit, false, fill, [&](const Block& block, const LaneTile& tile) {
    const auto queries = x_view<const T>(args, unit.tile.batch, unit.tile.head);
    WeightRows weights[kBlockRows];
    for (int r = 0; r < block.count; ++r) {
      weights[r] = weight_rows(args, unit, block.row[r], tile);
      pack_transposed(queries.base + weights[r].token * queries.stride, step * queries.stride, tile.count, p.value_dim,
                      1.0f, s.rows + int64_t{r} * dim * kWidth, kWidth);
    }
    PlainFinish finish;
    const int elements = row_elements<E>(Along::kFeatures, p.value_dim);
    for_each_key_row(block, tile, [&](int z, int y, const SeenBy& seen) {
      const E* tiles[kBlockRows];
      for (int i = 0; i < seen.count; ++i) {
        tiles[i] = s.rows + int64_t{seen.row[i]} * dim * kWidth;
        finish.scores[i] = s.scores + seen.at[i] + tile.margin * kWidth;
      }
      const E* columns = key_columns(ring, tile, transposed_row(ring, s.keys, p.value_dim, z, y));
      score_rows(seen.count, finish, tile, ScoreOperands<E>{tiles, columns, pitch, elements});
    });
    float* scores = s.scores;
    for (int r = 0; r < block.count; scores += ptrdiff_t{key_rows(block.row[r++])} * tile.pitch)
      store_weights(p, block.row[r], tile, scores, weights[r]);
  });
}

// The weights of a block as scores.
inline void load_block(const UnfusedArgs& args, const RowUnit& unit, const Block& block, const LaneTile& tile,
                       WeightRows (&weights)[kBlockRows], float* scores) {
  for (int r = 0; r < block.count; scores += ptrdiff_t{key_rows(block.row[r++])} * tile.pitch) {
    weights[r] = weight_rows(args, unit, block.row[r], tile);
    load_weights(args.problem, block.row[r], tile, weights[r], scores);
  }
}

template <class T>
void row_av_unit(const UnfusedArgs& args, RowUnit& unit, Ring& ring, const RowGemmScratch<float>& s) {
  const Problem& p = args.problem;
  const int64_t step = p.axis[2].dilation;
  const auto values = y_view<const T>(args, unit.tile.batch, unit.tile.head);
  const auto fill = [&](const Block& block) {
    fill_rows(p, unit, block, ring, [&](int z, int y, int64_t token) {
      pack_natural(values.base + token * values.stride, step * values.stride, extent(ring.columns), p.value_dim, 1.0f,
                   natural_row(ring, s.keys, p.value_dim, z, y));
    });
  };
  for_each_lane_tile(p, unit, false, fill, [&](const Block& block, const LaneTile& tile) {
    WeightRows weights[kBlockRows];
    load_block(args, unit, block, tile, weights, s.scores);
    row_products<float>(p.value_dim, block, tile, ring, s.scores, s.keys, s.rows);
    const auto out = x_view<T>(args, unit.tile.batch, unit.tile.head);
    for (int r = 0; r < block.count; ++r)
      unpack_natural(
          s.rows + int64_t{r} * kWidth * padded(p.value_dim), tile.count, p.value_dim, [](int) { return 1.0f; },
          out.base + weights[r].token * out.stride, step * out.stride);
  });
}

template <class T>
void row_inverse_unit(const UnfusedArgs& args, RowUnit& unit, const RowGemmScratch<float>& s) {
  const Problem& p = args.problem;
  const int dim = padded(p.value_dim);
  const int64_t step = p.axis[2].dilation;
  const auto sums = y_view<float>(args, unit.tile.batch, unit.tile.head);
  for_each_lane_tile(
      p, unit, false, [](const Block&) {},
      [&](const Block& block, const LaneTile& tile) {
        WeightRows weights[kBlockRows];
        load_block(args, unit, block, tile, weights, s.scores);
        const auto x = x_view<const T>(args, unit.tile.batch, unit.tile.head);
        for (int r = 0; r < block.count; ++r)
          pack_natural(x.base + weights[r].token * x.stride, step * x.stride, tile.count, p.value_dim, 1.0f,
                       s.rows + int64_t{r} * kWidth * dim);
        add_key_sums<float>(p, unit, block, tile, {{s.scores, s.rows, sums}});
      });
}

// qk and av; body(T{}, unit, ring, scratch) for every unit.
template <Pass pass, class Body>
void for_each_gemm_unit(const UnfusedArgs& args, const Parallel& parallel, const Body& body) {
  const Problem& p = args.problem;
  with_half_or_single(args.dtype, [&](auto element) {
    using E = std::conditional_t<pass == Pass::kQk, Element<decltype(element)>, float>;
    for_each_row_unit(p, gemm_features(p, pass), parallel, [&](RowUnit& unit, char* memory) {
      Arena arena{memory};
      const auto s = make_row_gemm_scratch<E>(arena, p, pass);
      Ring ring = make_ring(p, unit);
      body(element, unit, ring, s);
    });
  });
}

inline void row_gemm_qk(const UnfusedArgs& args, const Parallel& parallel) {
  for_each_gemm_unit<Pass::kQk>(args, parallel, [&](auto element, RowUnit& unit, Ring& ring, const auto& s) {
    row_qk_unit<decltype(element)>(args, unit, ring, s);
  });
}
inline void row_gemm_av(const UnfusedArgs& args, const Parallel& parallel) {
  for_each_gemm_unit<Pass::kAv>(args, parallel, [&](auto element, RowUnit& unit, Ring& ring, const auto& s) {
    row_av_unit<decltype(element)>(args, unit, ring, s);
  });
}
inline void row_gemm_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& p = args.problem;
  const RowSlabs rows = make_row_slabs(p);
  clear(parallel, static_cast<float*>(args.y), p.batch * key_tokens(p) * p.kv_heads * p.value_dim);
  with_half_or_single(args.dtype, [&](auto element) {
    for_each_slab(p, parallel, rows.slabs, 0, [&](int slab, const Tile& tile, int64_t, char* memory) {
      Arena arena{memory};
      const auto s = make_row_gemm_scratch<float>(arena, p, Pass::kInverse);
      for_each_slab_unit(p, rows.grid, rows.slabs, slab, rows.grid.tiles[2], tile,
                         [&](RowUnit& unit) { row_inverse_unit<decltype(element)>(args, unit, s); });
    });
  });
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
