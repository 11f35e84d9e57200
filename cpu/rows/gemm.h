// SPDX-License-Identifier: Apache-2.0
// The unfused operations of the row kernels: the products of block.h, with the scores of a block moved to and from rows
// of weights in memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <type_traits>

#include "common/isa.h"
#include "common/problem.h"
#include "cpu/definition.h"
#include "cpu/host/kernels.h"
#include "cpu/rows/block.h"
#include "cpu/rows/grid.h"
#include "cpu/rows/key_sums.h"
#include "cpu/rows/pack.h"
#include "cpu/rows/ring.h"
#include "cpu/rows/scores.h"
#include "cpu/rows/sums.h"
#include "cpu/rows/weights.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/gemm.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/slabs.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kGemmPanel = 120 << 10;  // floats, 480 KB

inline RowFeatures gemm_features(const Problem& problem, Pass pass) {
  const int dim = padded(problem.value_dim);
  return {pass == Pass::kQk ? dim : 0, pass == Pass::kAv ? dim : 0, kGemmPanel};
}

// Packed: float for av and inverse, as in cpu/tiles/gemm.h.
template <class Packed>
struct RowGemmScratch {
  Packed* rows;   // qk: queries, [row][dim][kWidth]; av and inverse: x, [row][lane][dim]
  Packed* keys;   // ring: qk transposed, av natural
  float* scores;  // [row][key row][column][kWidth]
};

template <class Packed>
inline RowGemmScratch<Packed> make_row_gemm_scratch(Arena& arena, const Problem& problem, Pass pass) {
  RowGemmScratch<Packed> scratch{};
  scratch.rows = arena.take<Packed>(int64_t{padded(problem.value_dim)} * kBlockRows * kWidth);
  scratch.keys = arena.take<Packed>(row_panel(problem, gemm_features(problem, pass)));
  scratch.scores = arena.take<float>(row_scores(problem));
  return scratch;
}

inline int64_t row_gemm_scratch(const Problem& problem) {
  int64_t most = 0;
  for (Pass pass : {Pass::kQk, Pass::kAv, Pass::kInverse}) {
    const int64_t bytes = arena_bytes([&](Arena& arena) { make_row_gemm_scratch<float>(arena, problem, pass); });
    most = most > bytes ? most : bytes;
  }
  return most;
}

// Scores as they are.
struct PlainFinish {
  float* scores[kBlockRows];

  template <int kRows, int kColumns>
  [[gnu::always_inline]] void operator()(int first, Vec (&sum)[kRows][kColumns]) const {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) store(scores[r] + (first + c) * kWidth, sum[r][c]);
  }
};

// Scores of a block of packed queries with the keys of its ring.
template <class Packed>
inline void plain_scores(const BlockLanes& lanes, const KeyRing& ring, const RowGemmScratch<Packed>& scratch) {
  const LaneTile& tile = lanes.tile;
  const int dim = lanes.problem.value_dim, pitch = transposed_pitch(extent(ring.columns));
  const int elements = row_elements<Packed>(Along::kFeatures, dim);
  PlainFinish finish;
  for_each_key_row(lanes.block, tile, [&](int z, int y, const SeenBy& seen) {
    const Packed* queries[kBlockRows];
    for (int i = 0; i < seen.count; ++i) {
      queries[i] = block_row(scratch.rows, seen.row[i], dim);
      finish.scores[i] = scratch.scores + seen.at[i] + tile.margin * kWidth;
    }
    // The query rows that see this key row share what is loaded of it.
    const Packed* keys = key_columns(ring, tile, transposed_row(ring, scratch.keys, dim, z, y));
    score_rows(seen.count, finish, tile, ScoreOperands<Packed>{queries, keys, pitch, elements});
  });
}

template <class T>
void row_qk_unit(const UnfusedArgs& args, RowUnit& unit, KeyRing& ring, const RowGemmScratch<PackedOf<T>>& scratch) {
  const Problem& problem = args.problem;
  const int dim = problem.value_dim, count = extent(ring.columns), dilation = problem.axis[2].dilation;
  const auto keys = y_view<const T>(args, unit.tile.batch, unit.tile.head);
  const auto fill = [&](const RowBlock& block) {
    fill_rows(problem, unit, block, ring, [&](int z, int y, int64_t token) {
      pack_transposed(token_run(keys, token, dilation, count), 1.0f, transposed_row(ring, scratch.keys, dim, z, y),
                      transposed_pitch(count));
    });
  };
  for_each_lane_tile(problem, unit, false, fill, [&](const BlockLanes& lanes) {
    const auto queries = x_view<const T>(args, unit.tile.batch, unit.tile.head);
    WeightRows weights[kBlockRows];
    for (int r = 0; r < lanes.block.count; ++r) {
      weights[r] = weight_rows(args, lanes, lanes.block.row[r]);
      pack_transposed(token_run(queries, weights[r].token, dilation, lanes.tile.count), 1.0f,
                      block_row(scratch.rows, r, dim), kWidth);
    }
    plain_scores(lanes, ring, scratch);
    store_block_weights(lanes, weights, scratch.scores);
  });
}

template <class T>
void row_av_unit(const UnfusedArgs& args, RowUnit& unit, KeyRing& ring, const RowGemmScratch<float>& scratch) {
  const Problem& problem = args.problem;
  const int dim = problem.value_dim, dilation = problem.axis[2].dilation;
  const auto values = y_view<const T>(args, unit.tile.batch, unit.tile.head);
  const auto fill = [&](const RowBlock& block) {
    fill_rows(problem, unit, block, ring, [&](int z, int y, int64_t token) {
      pack_natural(token_run(values, token, dilation, extent(ring.columns)), 1.0f,
                   natural_row(ring, scratch.keys, dim, z, y));
    });
  };
  for_each_lane_tile(problem, unit, false, fill, [&](const BlockLanes& lanes) {
    WeightRows weights[kBlockRows];
    load_block_weights(args, lanes, weights, scratch.scores);
    row_products<float>(lanes, {ring, scratch.scores, scratch.keys, scratch.rows, dim});
    const auto out = x_view<T>(args, unit.tile.batch, unit.tile.head);
    for (int r = 0; r < lanes.block.count; ++r)
      unpack_natural(
          block_row(scratch.rows, r, dim), [](int) { return 1.0f; },
          token_run(out, weights[r].token, dilation, lanes.tile.count),
          [&](int lane) {
            const int64_t token = weights[r].token + int64_t{lane} * dilation;
            define_av(args, query_row(problem, unit.tile, token));
          });
  });
}

// Returns whether all inputs are finite.
template <class T>
bool row_inverse_unit(const UnfusedArgs& args, RowUnit& unit, const RowGemmScratch<float>& scratch) {
  const Problem& problem = args.problem;
  const int dim = problem.value_dim, dilation = problem.axis[2].dilation;
  const auto sums = y_view<float>(args, unit.tile.batch, unit.tile.head);
  const auto fill_nothing = [](const RowBlock&) {};
  bool finite = true;
  for_each_lane_tile(problem, unit, false, fill_nothing, [&](const BlockLanes& lanes) {
    WeightRows weights[kBlockRows];
    load_block_weights(args, lanes, weights, scratch.scores);
    const auto queries = x_view<const T>(args, unit.tile.batch, unit.tile.head);
    for (int r = 0; r < lanes.block.count; ++r) {
      float* rows = block_row(scratch.rows, r, dim);
      pack_natural(token_run(queries, weights[r].token, dilation, lanes.tile.count), 1.0f, rows);
      finite &= all_finite(rows, lanes.tile.count, dim);
    }
    add_key_sums<float>(lanes, {{scratch.scores, scratch.rows, sums}});
  });
  return finite;
}

// qk and av; body(T{}, unit, ring, scratch) for every unit.
template <Pass kPass, class Body>
void for_each_gemm_unit(const UnfusedArgs& args, const Parallel& parallel, const Body& body) {
  const Problem& problem = args.problem;
  with_half_or_single(args.dtype, [&](auto element) {
    using Packed = std::conditional_t<kPass == Pass::kQk, PackedOf<decltype(element)>, float>;
    for_each_row_unit(problem, gemm_features(problem, kPass), parallel, [&](RowUnit& unit, char* memory) {
      Arena arena{memory};
      const auto scratch = make_row_gemm_scratch<Packed>(arena, problem, kPass);
      KeyRing ring = make_ring(problem, unit);
      body(element, unit, ring, scratch);
    });
  });
}

inline void row_gemm_qk(const UnfusedArgs& args, const Parallel& parallel) {
  for_each_gemm_unit<Pass::kQk>(args, parallel, [&](auto element, RowUnit& unit, KeyRing& ring, const auto& scratch) {
    row_qk_unit<decltype(element)>(args, unit, ring, scratch);
  });
}
inline void row_gemm_av(const UnfusedArgs& args, const Parallel& parallel) {
  for_each_gemm_unit<Pass::kAv>(args, parallel, [&](auto element, RowUnit& unit, KeyRing& ring, const auto& scratch) {
    row_av_unit<decltype(element)>(args, unit, ring, scratch);
  });
}
inline void row_gemm_inverse(const UnfusedArgs& args, const Parallel& parallel) {
  const Problem& problem = args.problem;
  const SlabbedGrid rows = make_row_slabs(problem);
  const int64_t key_rows = problem.batch * key_tokens(problem) * problem.kv_heads;
  clear(parallel, static_cast<float*>(args.y), key_rows * problem.value_dim);
  std::atomic<bool> finite{true};
  with_half_or_single(args.dtype, [&](auto element) {
    const auto body = [&](int slab, const Tile& tile, int64_t, char* memory) {
      Arena arena{memory};
      const auto scratch = make_row_gemm_scratch<float>(arena, problem, Pass::kInverse);
      for_each_slab_unit(problem, rows, slab, rows.grid.tiles[2], tile, [&](RowUnit& unit) {
        if (!row_inverse_unit<decltype(element)>(args, unit, scratch)) finite = false;
      });
    };
    for_each_slab(problem, parallel, rows.slabs, 0, body);
  });
  if (finite) return;
  auto body = [&](int64_t row, char*) {
    if (!is_finite(static_cast<const float*>(args.y) + row * problem.value_dim, problem.value_dim))
      define_inverse(args, row);
  };
  parallel_for(parallel, key_rows, body);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
