// SPDX-License-Identifier: Apache-2.0
// Distances inside of a strip: eight neighbouring rows of a tile, and the columns of a box. Along each axis the
// distance of a pair is column - row, from -(rows - 1) to columns - 1. No two columns have the same distance from one
// row.
//
// Places of rows and columns are sums of a term for each bit of their number, because extents are powers of two. So are
// the numbers of distances. Compiles for the host too.
#pragma once

#include "common/isa.h"
#include "common/problem.h"
#include "cuda/geometry/tile.cuh"

namespace jax_na::cuda {

constexpr int kStripRows = 8, kRowBits = 3, kMostColumnBits = 6;

struct Strip {
  int rows[kAxes];   // log2 of its extents
  int count[kAxes];  // distances along each axis
  int of_row[kRowBits], of_column[kMostColumnBits];
};

// Numbers of distances from one axis to the next.
JAX_NA_HD constexpr Strides distance_strides(const int (&count)[kAxes]) { return {{count[1] * count[2], count[2], 1}}; }

// The terms of the bits of a row's or a column's number.
template <int kBits>
JAX_NA_HD constexpr void find_terms(int (&terms)[kBits], const int (&log2)[kAxes], const Strides& stride) {
  int bit = 0;
  for (int axis = kAxes - 1; axis >= 0; --axis)
    for (int i = 0; i < log2[axis] && bit < kBits; ++i) terms[bit++] = stride.of[axis] << i;
}

JAX_NA_HD constexpr Strip make_strip(const Tiling& tiling) {
  Strip strip{};
  int left = kRowBits;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    strip.rows[axis] = min(tiling.rows[axis], left);
    left -= strip.rows[axis];
    strip.count[axis] = (1 << strip.rows[axis]) + (1 << tiling.columns[axis]) - 1;
  }
  find_terms(strip.of_row, strip.rows, distance_strides(strip.count));
  find_terms(strip.of_column, tiling.columns, distance_strides(strip.count));
  return strip;
}

JAX_NA_HD constexpr int distances(const Strip& strip) { return strip.count[0] * strip.count[1] * strip.count[2]; }

// The number of the distance between a column and a row of the strip.
JAX_NA_HD constexpr int distance_number(const Strip& strip, int row, int column) {
  int number = 0;
  for (int bit = 0; bit < kRowBits; ++bit) number += (row >> bit & 1) != 0 ? 0 : strip.of_row[bit];
  for (int bit = 0; bit < kMostColumnBits; ++bit) number += (column >> bit & 1) != 0 ? strip.of_column[bit] : 0;
  return number;
}

// What a distance adds to the entry of the bias table that a strip and a box have, those of their first tokens.
JAX_NA_HD constexpr int distance_entry(const Strip& strip, const Strides& stride, int number) {
  int entry = 0;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    entry += (number % strip.count[axis] - (1 << strip.rows[axis]) + 1) * stride.of[axis];
    number /= strip.count[axis];
  }
  return entry;
}

}  // namespace jax_na::cuda
