// SPDX-License-Identifier: Apache-2.0
// Which columns of a box a row sees, as bits. Windows are separable: per axis an interval of the box, repeated over
// the axes that vary faster and slower. A box has as many columns as Word has bits, or fewer; bit c is column c.
#pragma once

#include "cuda/geometry/tile.cuh"

namespace jax_na::cuda {

// Bits [start, stop); both in [0, number of bits].
template <class Word>
JAX_NA_HD constexpr Word interval_bits(int start, int stop) {
  constexpr int kBits = 8 * sizeof(Word);
  return start < stop ? (~Word{0} >> (kBits - stop)) & (~Word{0} << start) : 0;
}

// Multipliers that repeat an interval of x over all rows of a box, and one of (y, x) over all its planes.
struct Repeats {
  uint64_t x, y;
};

JAX_NA_HD constexpr Repeats make_repeats(const Tiling& t) {
  Repeats r{0, 0};
  const int row = 1 << t.columns[2], plane = row << t.columns[1], box = min(plane << t.columns[0], 64);
  for (int i = 0; i < box; i += row) r.x |= uint64_t{1} << i;
  for (int i = 0; i < box; i += plane) r.y |= uint64_t{1} << i;
  return r;
}

// `seen`: what the row sees per axis, `start`: the first position of the box per axis.
template <class Word>
JAX_NA_HD constexpr Word visible_columns(const Tiling& t, const Repeats& repeats, const Range (&seen)[kAxes],
                                         const int (&start)[kAxes]) {
  Word bits = ~Word{0};
  int unit = 0;  // log2 of the columns that a step along the axis skips
  for (int a = kAxes - 1; a >= 0; --a) {
    const int extent = 1 << t.columns[a];
    const int from = min(max(seen[a].start - start[a], 0), extent), to = min(max(seen[a].stop - start[a], 0), extent);
    const Word interval = interval_bits<Word>(from << unit, to << unit);
    bits &= a == 2   ? interval * static_cast<Word>(repeats.x)
            : a == 1 ? interval * static_cast<Word>(repeats.y)
                     : interval;
    unit += t.columns[a];
  }
  return bits;
}

}  // namespace jax_na::cuda
