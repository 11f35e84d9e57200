// SPDX-License-Identifier: Apache-2.0
// What the CPU's handlers know beyond common/decode.h: here offsets can be read, and tiles are those of these kernels.
#pragma once

#include <string>

#include "common/call/decode.h"
#include "cpu/host/instruction_set.h"
#include "cpu/host/kernels.h"

namespace jax_na {

inline std::string interval(int64_t first, int64_t count) {
  return "[" + std::to_string(first) + ", " + std::to_string(first + count) + ")";
}

// Where the region lies, and whether all its windows are there.
inline ffi::Error place_region(const int32_t* offsets, Problem& p) {
  place(p, offsets);
  for (int a = 0; a < kAxes; ++a)
    if (!windows_present(p, a))
      return invalid("on axis " + std::to_string(a - (kAxes - p.rank)) + " the windows of the queries " +
                     interval(p.q0[a], p.nq[a]) + " reach beyond the keys " + interval(p.k0[a], p.nk[a]) +
                     " of an axis of length " + std::to_string(p.axis[a].length));
  return ffi::Error::Success();
}

constexpr char kBadTile[] = "the product of tile must be 16, or its last size 0 where the row kernels fit";

inline ffi::Error decode_tile(Integers tile, Pass pass, Problem& p) {
  if (tile.size() != static_cast<size_t>(p.rank)) return invalid(kBadTile);
  for (int a = 0; a < kAxes; ++a) {
    const int i = a - (kAxes - p.rank);
    p.tile[a] = i < 0 ? 1 : static_cast<int>(tile[i]);
  }
  if (p.tile[0] < 1 || p.tile[1] < 1 || p.tile[2] < 0) return invalid(kBadTile);
  const bool valid = p.tile[2] == 0 ? best_kernels().rows_fit(p, pass) : p.tile[0] * p.tile[1] * p.tile[2] == kLanes;
  return valid ? ffi::Error::Success() : invalid(kBadTile);
}

}  // namespace jax_na
