// SPDX-License-Identifier: Apache-2.0
// Scores of the row kernels: a few query rows against the columns of one key row, lanes are queries.
#pragma once

#include <array>
#include <utility>

#include "cpu/rows/ring.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Scores of R query rows and C columns with one key row: sum[r][c] = sum_d tile_r[d][lane] * key_{lane, c}[d], where
// d counts elements: features, or pairs of them.
template <int R, int C, bool kShifted, class E>
[[gnu::always_inline]] inline void score_block(const E* const* tiles, const E* keys, ptrdiff_t pitch, int elements,
                                               Vec (&sum)[R][C]) {
  const E* tile[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) tile[r] = tiles[r];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = Vec{};
  const auto key = [&](int c) {
    if constexpr (kShifted)
      return load(keys + c);
    else
      return splat(keys[c]);
  };
#pragma GCC unroll 2
  for (int d = 0; d < elements; ++d, keys += pitch) {
    if constexpr (R <= C) {  // the smaller side stays in registers
      Vec t[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) t[r] = in_register(load(tile[r] + d * kWidth));
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const Vec k = R == 1 ? key(c) : in_register(key(c));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][c] = add_product<E>(sum[r][c], t[r], k);
      }
    } else {
      Vec k[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) k[c] = in_register(key(c));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec t = C == 1 ? load(tile[r] + d * kWidth) : in_register(load(tile[r] + d * kWidth));
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] = add_product<E>(sum[r][c], t, k[c]);
      }
    }
  }
}

template <int R, int C>
[[gnu::always_inline]] inline void scale_scores(float scale, Vec (&sum)[R][C]) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] *= splat(scale);
}

constexpr int kScoreBlock = kRegisters >= 32 ? 24 : 12;  // accumulators, beside the operands
constexpr int kScoreColumns = 8;  // enough to hide the latency of two fused multiply-adds a cycle

// The operands of scores: tiles of query rows, one key row from column 0 of the lanes on.
template <class E>
struct ScoreOperands {
  const E* const* tiles;
  const E* keys;
  ptrdiff_t pitch;
  int elements;
};

// Scores of one block of columns, handed to finish(first column, sums).
template <int R, int C, class Finish, class E>
void score_columns(const Finish& finish, const LaneTile& tile, const ScoreOperands<E>& x, int first) {
  Vec sum[R][C];
  if (tile.shifted)
    score_block<R, C, true>(x.tiles, x.keys + first, x.pitch, x.elements, sum);
  else
    score_block<R, C, false>(x.tiles, x.keys + first, x.pitch, x.elements, sum);
  finish(first, sum);
}

template <int R, class Finish, class E, int... C>
constexpr auto score_table(std::integer_sequence<int, C...>) {
  return std::array{score_columns<R, C + 1, Finish, E>...};
}

// All columns of R query rows, in nearly equal blocks.
template <int R, class Finish, class E>
inline void score_rows(const Finish& finish, const LaneTile& tile, const ScoreOperands<E>& operands) {
  constexpr int kMax = min(kScoreColumns, kScoreBlock / R);
  static constexpr auto kTable = score_table<R, Finish, E>(std::make_integer_sequence<int, kMax>{});
  const int blocks = (tile.columns + kMax - 1) / kMax, size = tile.columns / blocks, larger = tile.columns % blocks;
  for (int i = 0, first = 0; i < blocks; ++i) {
    const int count = size + (i < larger);
    kTable[count - 1](finish, tile, operands, first);
    first += count;
  }
}

template <class Finish, class E>
inline void score_rows(int rows, const Finish& finish, const LaneTile& tile, const ScoreOperands<E>& operands) {
  match<1, 2, 3, 4>(rows, [&](auto count) { score_rows<decltype(count)::value>(finish, tile, operands); });
}

// First element of the packed key row for column 0 of a lane tile.
template <class E>
inline const E* key_columns(const Ring& ring, const LaneTile& tile, const E* row) {
  return row + (tile.shifted ? tile.first : 0) + tile.low - ring.columns.start;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
