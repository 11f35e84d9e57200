// SPDX-License-Identifier: Apache-2.0
// From products of queries and keys to scores: scale, mask and bias, for the rows of one warp.
#pragma once

#include <math.h>
#include <stdint.h>

#include <type_traits>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/geometry/mask.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// The columns of a box that a row sees, as bits; a thread shifts them so that bit 0 is its own first column.
template <class Shape>
using ColumnBits = std::conditional_t<(Shape::kColumns > 32), uint64_t, uint32_t>;

// Of the box at `start`, the columns that an own row sees, from the thread's first column on.
template <class Shape>
__device__ __forceinline__ ColumnBits<Shape> columns_seen(const Warp<Shape>& warp, const int (&start)[kAxes], Own own) {
  const int row = warp.row(own);
  Range seen[kAxes];
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) seen[axis] = warp.windows.seen(axis, row);
  return visible_columns<ColumnBits<Shape>>(warp.geometry.tiling, warp.geometry.repeats, seen, start) >>
         first_column(warp.lane);
}

// Whether an own column is among them.
template <class Word>
__device__ __forceinline__ bool is_seen(Word bits, Own column) {
  return bits >> column_step(column) & 1;
}

// -inf for the scores of columns that a row does not see.
template <class Shape>
__device__ __forceinline__ void mask_scores(const Warp<Shape>& warp, const int (&start)[kAxes],
                                            typename Shape::Scores& scores) {
  const int* inner = warp.windows.inner(warp.first_row);
  const int (&log2)[kAxes] = warp.geometry.tiling.columns;
  bool needs_mask = false;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis)
    needs_mask = needs_mask || start[axis] < inner[2 * axis] || start[axis] + (1 << log2[axis]) > inner[2 * axis + 1];
  if (!needs_mask) return;  // the same for the whole warp
  for_each_own<Shape::kThreadRows>([&](Own row) {
    const ColumnBits<Shape> bits = columns_seen(warp, start, row);
    for_each_own<Shape::kThreadColumns>([&](Own column) {
      if (!is_seen(bits, column)) at(scores, row, column) = -INFINITY;
    });
  });
}

// Bias of a query head, added in the units of the exponents; scores of columns that a row does not see stay -inf: their
// pairs have no entry in the table. The entry of a pair is (key - query) + w - 1 per axis, a sum of parts of the box,
// of the column and of the row.
template <Side kRowSide, class Shape>
__device__ __forceinline__ void add_bias(const Warp<Shape>& warp, const int (&start)[kAxes], int query_head,
                                         typename Shape::Scores& scores) {
  constexpr int kSign = kRowSide == Side::kQueries ? 1 : -1;
  const Geometry& geometry = warp.geometry;
  const Strides stride = bias_strides(geometry.problem);
  const float* table = geometry.rpb + int64_t{query_head} * bias_entries(geometry.problem);
  int of_box = 0;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis)
    of_box += (kSign * (start[axis] - warp.block.axis[axis].origin) + geometry.problem.axis[axis].kernel_size - 1) *
              stride.of[axis];
  for_each_own<Shape::kThreadColumns>([&](Own column) {
    int of_column = of_box;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis)
      of_column += kSign * inside_box(geometry.tiling.columns, warp.column(column), axis) * stride.of[axis];
    for_each_own<Shape::kThreadRows>([&](Own row) {
      int entry = of_column;
#pragma unroll
      for (int axis = 0; axis < kAxes; ++axis)
        entry -= kSign * inside_box(geometry.tiling.rows, warp.row(row), axis) * stride.of[axis];
      float& score = at(scores, row, column);
      if (score > -INFINITY) score += kLog2E * read_only(table + entry);
    });
  });
}

// Products in the units of the exponents up to `factor`.
template <class Sums>
__device__ __forceinline__ void scale_scores(const Geometry& geometry, Sums& scores) {
  if (geometry.premultiplier == 1) return;
  for_each(scores, [&](float& score, Own, Own) { score *= geometry.premultiplier; });
}

// Scores of the box of the grid at `start`: scaled, masked, with bias.
template <Side kRowSide, class Shape>
__device__ __forceinline__ void finish_scores(const Warp<Shape>& warp, const int (&start)[kAxes], int query_head,
                                              typename Shape::Scores& scores) {
  scale_scores(warp.geometry, scores);
  mask_scores(warp, start, scores);
  if (warp.geometry.rpb != nullptr) add_bias<kRowSide>(warp, start, query_head, scores);
}

}  // namespace jax_na::cuda
