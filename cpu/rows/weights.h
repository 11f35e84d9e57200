// SPDX-License-Identifier: Apache-2.0
// Weights of a block between memory, [tokens][heads][pitch] with a slot per key, and the scores of the row kernels,
// [query row][key row][column][kWidth]. Inside the grid, the slots of every lane are the columns of its scores in
// order, and squares of kWidth slots and lanes are transposed in registers; near borders, lane by lane.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/host/kernels.h"
#include "cpu/rows/block.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/weights.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// A query row and its place in memory: the weights of every lane, and the query token of the first.
struct WeightRows {
  float* lane[kWidth];  // lanes that do not exist repeat the last
  int64_t token;
};

inline WeightRows weight_rows(const UnfusedArgs& args, const BlockLanes& lanes, const QueryRow& row) {
  const Tile& tile = lanes.unit.tile;
  WeightRows rows;
  rows.token = first_query(lanes, row);
  for (int lane = 0; lane < kWidth; ++lane) {
    const int64_t token = rows.token + int64_t{min(lane, lanes.tile.count - 1)} * args.problem.axis[2].dilation;
    rows.lane[lane] = weights_row(args, tile.batch, token, tile.head);
  }
  return rows;
}

// Whether the slots of every lane are the columns of its scores in order, so that registers can be moved.
inline bool slots_are_columns(const Problem& problem, const QueryRow& row, const LaneTile& tile) {
  return tile.full && tile.columns == problem.axis[2].kernel_size &&
         extent(row.keys[0]) == problem.axis[0].kernel_size && extent(row.keys[1]) == problem.axis[1].kernel_size;
}

// Calls body(slot, scores) for every register of scores of a query row, in the order of slots.
template <class Body>
inline void for_each_slot(const LaneTile& tile, int rows, float* scores, const Body& body) {
  int slot = 0;
  for (int row = 0; row < rows; ++row, scores += tile.pitch)
    for (int column = 0; column < tile.columns; ++column, ++slot) body(slot, scores + (tile.margin + column) * kWidth);
}

// Calls body(lane, slot, scores of the slot's key, count) for every run of keys that a lane sees.
template <class Body>
inline void for_each_lane_slots(const Problem& problem, const QueryRow& row, const LaneTile& tile, float* scores,
                                const Body& body) {
  for (int z = 0; z < extent(row.keys[0]); ++z)
    for (int y = 0; y < extent(row.keys[1]); ++y, scores += tile.pitch) {
      const int slot = (z * problem.axis[1].kernel_size + y) * problem.axis[2].kernel_size;
      for (int lane = 0; lane < tile.count; ++lane)
        body(lane, slot, scores + (tile.margin + tile.start[lane]) * kWidth + lane, tile.stop[lane] - tile.start[lane]);
    }
}

// Squares of scores to the weights of all lanes, with zeros from the last slot to the end of a row.
inline void store_squares(const Problem& problem, const QueryRow& row, const LaneTile& tile, float* scores,
                          const WeightRows& rows) {
  Vec square[kWidth];
  const auto flush = [&](int first) {
    transpose(square);
    for (int lane = 0; lane < tile.count; ++lane)
      store_narrow(rows.lane[lane] + first, square[lane], problem.pitch - first);
  };
  for_each_slot(tile, key_rows(row), scores, [&](int slot, const float* score) {
    square[slot % kWidth] = load(score);
    if (slot % kWidth == kWidth - 1) flush(slot - kWidth + 1);
  });
  // A square that the last slots do not fill, then padding.
  const int done = slots(problem) / kWidth * kWidth;
  for (int i = slots(problem) - done; i < kWidth; ++i) square[i] = Vec{};
  for (int first = done; first < problem.pitch; first += kWidth) {
    flush(first);
    for (Vec& slot : square) slot = Vec{};
  }
}

inline void store_weights(const Problem& problem, const QueryRow& row, const LaneTile& tile, float* scores,
                          const WeightRows& rows) {
  if (slots_are_columns(problem, row, tile)) return store_squares(problem, row, tile, scores, rows);
  for (int lane = 0; lane < tile.count; ++lane) memset(rows.lane[lane], 0, problem.pitch * sizeof(float));
  for_each_lane_slots(problem, row, tile, scores, [&](int lane, int slot, const float* score, int count) {
    for (int i = 0; i < count; ++i) rows.lane[lane][slot + i] = score[i * kWidth];
  });
}

// Scores of a query row from weights; zero outside the windows and in the margins.
inline void load_weights(const Problem& problem, const QueryRow& row, const LaneTile& tile, const WeightRows& rows,
                         float* scores) {
  if (slots_are_columns(problem, row, tile)) {
    Vec square[kWidth];
    clear_margins(tile, key_rows(row), scores);
    for_each_slot(tile, key_rows(row), scores, [&](int slot, float* score) {
      // A square is loaded with its first slot and given out slot by slot.
      if (slot % kWidth == 0) {
        for (int lane = 0; lane < kWidth; ++lane)
          square[lane] = load_wide(rows.lane[lane] + slot, problem.pitch - slot);
        transpose(square);
      }
      store(score, square[slot % kWidth]);
    });
    return;
  }
  memset(scores, 0, sizeof(float) * key_rows(row) * tile.pitch);
  for_each_lane_slots(problem, row, tile, scores, [&](int lane, int slot, float* score, int count) {
    for (int i = 0; i < count; ++i) score[i * kWidth] = rows.lane[lane][slot + i];
  });
}

// The scores of a block to and from its weights.
inline void store_block_weights(const BlockLanes& lanes, const WeightRows (&weights)[kBlockRows], float* scores) {
  for (int r = 0; r < lanes.block.count; ++r) {
    const QueryRow& row = lanes.block.row[r];
    store_weights(lanes.problem, row, lanes.tile, scores, weights[r]);
    scores += score_floats(row, lanes.tile);
  }
}
inline void load_block_weights(const UnfusedArgs& args, const BlockLanes& lanes, WeightRows (&weights)[kBlockRows],
                               float* scores) {
  for (int r = 0; r < lanes.block.count; ++r) {
    const QueryRow& row = lanes.block.row[r];
    weights[r] = weight_rows(args, lanes, row);
    load_weights(args.problem, row, lanes.tile, weights[r], scores);
    scores += score_floats(row, lanes.tile);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
