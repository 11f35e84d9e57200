// SPDX-License-Identifier: Apache-2.0
// Scores of the row kernels: a few query rows against the columns of one key row, lanes are queries.
#pragma once

#include <array>
#include <utility>

#include "row_ring.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// Scores of R query rows and C columns with one key row: sum[r][c] = sum_d tile_r[d][lane] * key_{lane, c}[d], where
// d counts features, or pairs of them.
template <int R, int C, bool kShifted, bool kPaired>
[[gnu::always_inline]] inline void score_block(const float* const* tiles, const float* keys, ptrdiff_t pitch, int dim,
                                               Vec (&sum)[R][C]) {
  const float* tile[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) tile[r] = tiles[r];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = Vec{};
  const auto key = [&](int c) {
    if constexpr (kShifted) return load(keys + c);
    if constexpr (!kPaired) return splat(keys[c]);
    int32_t pair;
    memcpy(&pair, keys + c, sizeof pair);
    return from_bits(splat(pair));
  };
  const auto add = [](Vec& to, Vec a, Vec b) {
    if constexpr (kPaired)
      to = dot_pairs(to, a, b);
    else
      to += a * b;
  };
#pragma GCC unroll 2
  for (int d = 0; d < dim; ++d, keys += pitch) {
    if constexpr (R <= C) {  // the smaller side stays in registers
      Vec t[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) t[r] = in_register(load(tile[r] + d * kWidth));
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const Vec k = R == 1 ? key(c) : in_register(key(c));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) add(sum[r][c], t[r], k);
      }
    } else {
      Vec k[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) k[c] = in_register(key(c));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec t = C == 1 ? load(tile[r] + d * kWidth) : in_register(load(tile[r] + d * kWidth));
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) add(sum[r][c], t, k[c]);
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

// Scores of one block of columns, handed to finish(first column, sums).
template <int R, int C, class Finish>
void score_columns(const Finish& finish, const LaneTile& tile, const float* const* tiles, const float* keys,
                   ptrdiff_t pitch, int dim, bool pairs, int first) {
  Vec sum[R][C];
  if constexpr (kDotPairs) {
    if (pairs) {
      if (tile.shifted)
        score_block<R, C, true, true>(tiles, keys + first, pitch, dim / 2, sum);
      else
        score_block<R, C, false, true>(tiles, keys + first, pitch, dim / 2, sum);
      return finish(first, sum);
    }
  }
  if (tile.shifted)
    score_block<R, C, true, false>(tiles, keys + first, pitch, dim, sum);
  else
    score_block<R, C, false, false>(tiles, keys + first, pitch, dim, sum);
  finish(first, sum);
}

template <int R, class Finish, int... C>
constexpr auto score_table(std::integer_sequence<int, C...>) {
  return std::array{score_columns<R, C + 1, Finish>...};
}

// All columns of R query rows, in nearly equal blocks.
template <int R, class Finish>
inline void score_rows(const Finish& finish, const LaneTile& tile, const float* const* tiles, const float* keys,
                       ptrdiff_t pitch, int dim, bool pairs) {
  constexpr int kMax = min(kScoreColumns, kScoreBlock / R);
  static constexpr auto kTable = score_table<R, Finish>(std::make_integer_sequence<int, kMax>{});
  const int blocks = (tile.columns + kMax - 1) / kMax, size = tile.columns / blocks, larger = tile.columns % blocks;
  for (int i = 0, first = 0; i < blocks; ++i) {
    const int count = size + (i < larger);
    kTable[count - 1](finish, tile, tiles, keys, pitch, dim, pairs, first);
    first += count;
  }
}

template <class Finish>
inline void score_rows(int rows, const Finish& finish, const LaneTile& tile, const float* const* tiles,
                       const float* keys, ptrdiff_t pitch, int dim, bool pairs) {
  match<1, 2, 3, 4>(
      rows, [&](auto count) { score_rows<decltype(count)::value>(finish, tile, tiles, keys, pitch, dim, pairs); });
}

// First element of the packed key row for column 0 of a lane tile.
inline const float* key_columns(const Ring& ring, const LaneTile& tile, const float* row) {
  return row + (tile.shifted ? tile.first : 0) + tile.low - ring.columns.start;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
