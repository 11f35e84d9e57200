// SPDX-License-Identifier: Apache-2.0
// Which columns of a box a row sees, as bits of the columns that one thread has: of every 8 the two from 2 * (lane % 4)
// on, so bit 2 c + e is column 8 c + 2 (lane % 4) + e. A box of 128 columns fits into one word.
//
// Bits 1 and 2 of a column's number are the lane's, the others are free. An axis of the box has some consecutive bits
// of the column's number, so an interval of its coordinates is an interval of the coordinates that the thread has of
// it, and that is repeated over the other axes as in mask.cuh.
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cuda/geometry/mask.cuh"
#include "cuda/geometry/tile.cuh"

namespace jax_na::cuda {

// One axis of the box.
struct OwnedAxis {
  int low, high;     // bits of a coordinate below those of the lane, and below those above them
  int shift;         // from lane % 4 to the lane's bits of a coordinate
  int unit;          // log2 of the thread's columns that a step along the axis skips
  uint32_t repeats;  // multiplier that repeats an interval over the slower axes
};

struct OwnedColumns {
  OwnedAxis axis[kAxes];
};

JAX_NA_HD constexpr OwnedColumns make_owned_columns(const Tiling& tiling) {
  OwnedColumns owned{};
  const int all = tiling.columns[0] + tiling.columns[1] + tiling.columns[2];
  int first = 0;  // bit of the column's number where the axis begins
  for (int number = kAxes - 1; number >= 0; --number) {
    OwnedAxis& axis = owned.axis[number];
    const int bits = tiling.columns[number], above = min(max(first - 1, 0), 2);
    axis.low = min(max(1 - first, 0), bits);
    axis.high = min(max(3 - first, 0), bits);
    axis.shift = above;
    axis.unit = first - above;
    const int period = axis.unit + bits - (axis.high - axis.low);  // log2 of the thread's columns up to the next axis
    for (int bit = 0; bit < 1 << (all - 2); bit += 1 << period) axis.repeats |= uint32_t{1} << bit;
    first += bits;
  }
  return owned;
}

// How many of the coordinates below `stop` are the thread's.
JAX_NA_HD constexpr int owned_below(const OwnedAxis& axis, int lane, int stop) {
  const int period = 1 << axis.high, run = 1 << axis.low;
  const int mine = (lane % 4 >> axis.shift & ((1 << (axis.high - axis.low)) - 1)) << axis.low;
  return (stop >> axis.high << axis.low) + min(max((stop & (period - 1)) - mine, 0), run);
}

// Along one axis: what the row sees, `seen`, in a box from `start` on with 2^log2 coordinates.
JAX_NA_HD constexpr uint32_t owned_columns(const OwnedAxis& axis, int lane, Range seen, int start, int log2) {
  const int extent = 1 << log2;
  const int from = owned_below(axis, lane, min(max(seen.start - start, 0), extent));
  const int to = owned_below(axis, lane, min(max(seen.stop - start, 0), extent));
  return interval_bits<uint32_t>(from << axis.unit, to << axis.unit) * axis.repeats;
}

}  // namespace jax_na::cuda
