// SPDX-License-Identifier: Apache-2.0
// Which columns of a box a row sees, as bits. Windows are separable: per axis an interval of the box, repeated over
// the axes that vary faster and slower. A box has as many columns as Word has bits, or fewer; bit c is column c.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cuda/geometry/tile.cuh"

namespace jax_na::cuda {

// Bits [start, stop); both in [0, number of bits].
template <class Word>
JAX_NA_HD constexpr Word interval_bits(int start, int stop) {
  constexpr int kBits = 8 * sizeof(Word);
  return start < stop ? (~Word{0} >> (kBits - stop)) & (~Word{0} << start) : 0;
}

// Multipliers with a bit where each row of a box begins, and where each plane does: times an interval of one row, or of
// one plane, they repeat it over the whole box.
struct Repeats {
  uint64_t rows, planes;
};

JAX_NA_HD constexpr Repeats make_repeats(const Tiling& tiling) {
  Repeats repeats{0, 0};
  const int row = 1 << tiling.columns[2], plane = row << tiling.columns[1];
  const int box = min(plane << tiling.columns[0], 64);
  for (int first = 0; first < box; first += row) repeats.rows |= uint64_t{1} << first;
  for (int first = 0; first < box; first += plane) repeats.planes |= uint64_t{1} << first;
  return repeats;
}

// `seen`: what the row sees per axis, `start`: the first position of the box per axis.
template <class Word>
JAX_NA_HD constexpr Word visible_columns(const Tiling& tiling, const Repeats& repeats, const Range (&seen)[kAxes],
                                         const int (&start)[kAxes]) {
  Word bits = ~Word{0};
  int unit = 0;  // log2 of the columns that a step along the axis skips
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int extent = 1 << tiling.columns[axis];
    const int from = min(max(seen[axis].start - start[axis], 0), extent);
    const int to = min(max(seen[axis].stop - start[axis], 0), extent);
    const Word interval = interval_bits<Word>(from << unit, to << unit);
    bits &= axis == 2   ? interval * static_cast<Word>(repeats.rows)
            : axis == 1 ? interval * static_cast<Word>(repeats.planes)
                        : interval;
    unit += tiling.columns[axis];
  }
  return bits;
}

}  // namespace jax_na::cuda
