// SPDX-License-Identifier: Apache-2.0
// Scores of the row kernels: a few query rows against the columns of one key row, lanes are queries.
#pragma once

#include <stddef.h>

#include <array>
#include <utility>

#include "common/dispatch.h"
#include "common/isa.h"
#include "common/window.h"
#include "cpu/rows/block.h"
#include "cpu/rows/ring.h"
#include "cpu/simd/vec.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// The operands of scores: tiles of query rows, [elements][kWidth], and one key row from column 0 of the lanes on,
// [elements][pitch].
template <class Packed>
struct ScoreOperands {
  const Packed* const* tiles;
  const Packed* keys;
  ptrdiff_t pitch;
  int elements;
};

// Adds the products of one element, a feature or a pair of them, of kRows query rows with kColumns columns of a key
// row. Shifted, the key of a lane is its own: one load for all lanes; else all lanes have the same: a broadcast. The
// smaller side stays in registers.
template <int kRows, int kColumns, bool kShifted, class Packed>
[[gnu::always_inline]] inline void add_element(const Packed* (&queries)[kRows], int element, const Packed* keys,
                                               Vec (&sum)[kRows][kColumns]) {
  const auto query_lanes = [&](int r) { return load(queries[r] + element * kWidth); };
  const auto key_lanes = [&](int c) {
    if constexpr (kShifted)
      return load(keys + c);
    else
      return splat(keys[c]);
  };
  if constexpr (kRows <= kColumns) {
    Vec rows[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) rows[r] = in_register(query_lanes(r));
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const Vec column = kRows == 1 ? key_lanes(c) : in_register(key_lanes(c));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][c] = add_product<Packed>(sum[r][c], rows[r], column);
    }
  } else {
    Vec columns[kColumns];
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) columns[c] = in_register(key_lanes(c));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec row = kColumns == 1 ? query_lanes(r) : in_register(query_lanes(r));
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) sum[r][c] = add_product<Packed>(sum[r][c], row, columns[c]);
    }
  }
}

// Scores of kRows query rows and kColumns columns, from `first` on, with one key row:
//   sum[r][c] = sum_d tile_r[d][lane] * key_{lane, c}[d]
template <int kRows, int kColumns, bool kShifted, class Packed>
[[gnu::always_inline]] inline void score_block(const ScoreOperands<Packed>& operands, int first,
                                               Vec (&sum)[kRows][kColumns]) {
  const Packed* queries[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) queries[r] = operands.tiles[r];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sum[r][c] = Vec{};
  const Packed* keys = operands.keys + first;
  const ptrdiff_t pitch = operands.pitch;
  const int elements = operands.elements;
#pragma GCC unroll 2
  for (int d = 0; d < elements; ++d, keys += pitch) add_element<kRows, kColumns, kShifted>(queries, d, keys, sum);
}

template <int kRows, int kColumns>
[[gnu::always_inline]] inline void scale_scores(float scale, Vec (&sum)[kRows][kColumns]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sum[r][c] *= splat(scale);
}

constexpr int kScoreBlock = kRegisters >= 32 ? 24 : 12;  // accumulators, beside the operands
constexpr int kScoreColumns = 8;  // enough to hide the latency of two fused multiply-adds a cycle

// Scores of one block of columns, handed to finish(first column, sums).
template <int kRows, int kColumns, class Finish, class Packed>
void score_columns(const Finish& finish, const LaneTile& tile, const ScoreOperands<Packed>& operands, int first) {
  Vec sum[kRows][kColumns];
  if (tile.shifted)
    score_block<kRows, kColumns, true>(operands, first, sum);
  else
    score_block<kRows, kColumns, false>(operands, first, sum);
  finish(first, sum);
}

template <int kRows, class Finish, class Packed, int... kIndices>
constexpr auto score_table(std::integer_sequence<int, kIndices...>) {
  return std::array{score_columns<kRows, kIndices + 1, Finish, Packed>...};
}

// All columns of kRows query rows, in nearly equal blocks.
template <int kRows, class Finish, class Packed>
inline void score_rows(const Finish& finish, const LaneTile& tile, const ScoreOperands<Packed>& operands) {
  constexpr int kMost = min(kScoreColumns, kScoreBlock / kRows);
  static constexpr auto kTable = score_table<kRows, Finish, Packed>(std::make_integer_sequence<int, kMost>{});
  const int blocks = (tile.columns + kMost - 1) / kMost;
  const int size = tile.columns / blocks, larger = tile.columns % blocks;
  for (int i = 0, first = 0; i < blocks; ++i) {
    const int count = size + (i < larger);
    kTable[count - 1](finish, tile, operands, first);
    first += count;
  }
}

template <class Finish, class Packed>
inline void score_rows(int rows, const Finish& finish, const LaneTile& tile, const ScoreOperands<Packed>& operands) {
  match<1, 2, 3, 4>(rows, [&](auto count) { score_rows<decltype(count)::value>(finish, tile, operands); });
}

// First element of a packed key row for column 0 of a lane tile.
template <class Packed>
inline const Packed* key_columns(const KeyRing& ring, const LaneTile& tile, const Packed* row) {
  return row + lane_origin(tile, 0) - ring.columns.start;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
