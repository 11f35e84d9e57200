// SPDX-License-Identifier: Apache-2.0
// From products of queries and keys to scores: scale, mask and bias, for the rows of one warp.
#pragma once

#include <type_traits>

#include "cuda/block/block.cuh"

namespace jax_na::cuda {

// What the rows of a block see, [2 * kAxes][kRows] in shared memory: starts, then stops. Rows that do not exist see
// [0, missing).
template <class S, Rows rows>
__device__ __forceinline__ void store_windows(const Geometry& g, const Block& b, int missing, int* windows) {
  for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      const Extent& e = b.axis[a];
      const int position = e.origin + inside_box(g.tiling.rows, row, a);
      Range seen{0, missing};
      if (position < e.rows.stop) {
        seen = seen_from<rows>(g.problem.axis[a], e.length, position);
        seen = {max(seen.start, e.present.start), min(seen.stop, e.present.stop)};
      }
      windows[a * S::kRows + row] = seen.start;
      windows[(kAxes + a) * S::kRows + row] = seen.stop;
    }
  }
}

template <class S, Rows rows>
__device__ __forceinline__ void store_windows(const Geometry& g, const Block& b, int* windows) {
  // Nobody reads the results of a row that does not exist: it needs no mask, unless a bias would be looked up for it.
  store_windows<S, rows>(g, b, g.rpb == nullptr ? INT32_MAX : 0, windows);
}

// Columns that all rows of this warp see: boxes inside need no mask.
template <class S>
__device__ __forceinline__ void find_inner(const int* windows, int first_row, int lane, Range (&inner)[kAxes]) {
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    int start = 0, stop = INT32_MAX;
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
      const int row = first_row + 16 * m + lane % 16;
      start = max(start, windows[a * S::kRows + row]);
      stop = min(stop, windows[(kAxes + a) * S::kRows + row]);
    }
    inner[a] = {warp_max(start), warp_min(stop)};
  }
}

// The same, kept behind the windows: they are needed once a box, and registers are scarce.
template <class S>
__device__ __forceinline__ void store_inner(int* windows, int first_row, int lane) {
  Range inner[kAxes];
  find_inner<S>(windows, first_row, lane, inner);
  int* own = windows + 2 * kAxes * (S::kRows + first_row / (16 * S::kRowTiles));
#pragma unroll
  for (int a = 0; a < kAxes; ++a)
    if (lane == 0) own[2 * a] = inner[a].start, own[2 * a + 1] = inner[a].stop;
  warp_sync();
}

// -inf for the scores of columns that a row does not see.
template <class S>
__device__ __forceinline__ void mask_scores(const Geometry& g, const int* windows, const int (&start)[kAxes],
                                            int first_row, int lane, typename S::Scores& scores) {
  const int* inner = windows + 2 * kAxes * (S::kRows + first_row / (16 * S::kRowTiles));
  bool needs_mask = false;
#pragma unroll
  for (int a = 0; a < kAxes; ++a)
    needs_mask = needs_mask || start[a] < inner[2 * a] || start[a] + (1 << g.tiling.columns[a]) > inner[2 * a + 1];
  if (!needs_mask) return;  // the same for the whole warp
  using Word = std::conditional_t<(S::kColumns > 32), uint64_t, uint32_t>;
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * m + 8 * half + lane / 4;
      Range seen[kAxes];
#pragma unroll
      for (int a = 0; a < kAxes; ++a) seen[a] = {windows[a * S::kRows + row], windows[(kAxes + a) * S::kRows + row]};
      const Word bits = visible_columns<Word>(g.tiling, g.repeats, seen, start) >> (2 * (lane % 4));
#pragma unroll
      for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (!(bits >> (8 * c + e) & 1)) scores[m][c][2 * half + e] = -INFINITY;
    }
}

// Bias of a query head, added in the units of the exponents; scores of columns that a row does not see stay -inf.
// The entry of a pair is (key - query) + w - 1 per axis.
template <class S, Rows rows>
__device__ __forceinline__ void add_bias(const Geometry& g, const Block& b, const int (&start)[kAxes], int query_head,
                                         int first_row, int lane, typename S::Scores& scores) {
  constexpr int kSign = rows == Rows::kQueries ? 1 : -1;
  const Strides stride = bias_strides(g.problem);
  const float* table = g.rpb + int64_t{query_head} * bias_entries(g.problem);
  int base = 0;
#pragma unroll
  for (int a = 0; a < kAxes; ++a)
    base += (kSign * (start[a] - b.axis[a].origin) + g.problem.axis[a].kernel_size - 1) * stride.of[a];
#pragma unroll
  for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int column = base;
#pragma unroll
      for (int a = 0; a < kAxes; ++a)
        column += kSign * inside_box(g.tiling.columns, 8 * c + 2 * (lane % 4) + e, a) * stride.of[a];
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int entry = column;
#pragma unroll
          for (int a = 0; a < kAxes; ++a)
            entry -= kSign * inside_box(g.tiling.rows, first_row + 16 * m + 8 * half + lane / 4, a) * stride.of[a];
          float& score = scores[m][c][2 * half + e];
          if (score > -INFINITY) score += kLog2E * read_only(table + entry);
        }
    }
}

// Products in the units of the exponents up to `factor`.
template <class S>
__device__ __forceinline__ void scale_scores(const Geometry& g, typename S::Scores& scores) {
  if (g.premultiplier == 1) return;
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
    for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[m][c][e] *= g.premultiplier;
}

// Scores of a box of the grid: scaled, masked, with bias.
template <class S, Rows rows>
__device__ __forceinline__ void finish_scores(const Geometry& g, const Block& b, const int* windows,
                                              const int (&start)[kAxes], int query_head, int first_row, int lane,
                                              typename S::Scores& scores) {
  scale_scores<S>(g, scores);
  mask_scores<S>(g, windows, start, first_row, lane, scores);
  if (g.rpb != nullptr) add_bias<S, rows>(g, b, start, query_head, first_row, lane, scores);
}

}  // namespace jax_na::cuda
