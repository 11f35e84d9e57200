// SPDX-License-Identifier: Apache-2.0
// The packed key rows that a block sees. Going down a unit, the next block sees most of them again, so they are kept in
// a ring: the row at y lies in place y % slots, and only rows that are new are packed.
//
//   transposed row   [dim][kWidth + columns + kWidth], for scores: lane l of a load at column c is the key c + l; a
//                    load may reach a register beyond either end, in lanes that do not see those columns
//   natural row      [columns][dim], for weighted sums: features are the lanes
#pragma once

#include <stdint.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/rows/block.h"
#include "cpu/rows/grid.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/panel.h"
#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// What the ring of a unit has room for: [z][slots] rows of `columns`, which are positions along the last axis.
struct KeyRing {
  Range z, columns;
  int slots;
  int packed;  // rows before this one (along axis 1) have been packed
};

inline KeyRing make_ring(const Problem& problem, const RowUnit& unit) {
  const auto keys = [&](int axis) {
    const Range queries = unit.queries[axis];
    return tile_keys(problem.axis[axis], unit.tile.group[axis].length, queries.start, queries.stop - 1);
  };
  return {keys(0), keys(2), visited_keys(problem.axis[1], problem.tile[1]), INT32_MIN};
}

// Place of a key row.
inline int slot(const KeyRing& ring, int z, int y) { return (z - ring.z.start) * ring.slots + y % ring.slots; }

// Address of column 0.
template <class Packed>
inline Packed* transposed_row(const KeyRing& ring, Packed* base, int dim, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * padded(dim) * transposed_pitch(extent(ring.columns)) + kWidth;
}
template <class Packed>
inline Packed* natural_row(const KeyRing& ring, Packed* base, int dim, int z, int y) {
  return base + int64_t{slot(ring, z, y)} * padded(dim) * extent(ring.columns);
}

// Floats of all transposed rows of a ring.
inline int64_t ring_floats(const KeyRing& ring, int dim) {
  return int64_t{extent(ring.z)} * ring.slots * padded(dim) * transposed_pitch(extent(ring.columns));
}

// Calls body(z, y, index among the keys present of the row's first) for the key rows of a block that are not packed
// yet.
template <class Body>
inline void fill_rows(const Problem& problem, const RowUnit& unit, const RowBlock& block, KeyRing& ring,
                      const Body& body) {
  for (int y = max(ring.packed, block.keys[1].start); y < block.keys[1].stop; ++y)
    for (int z = ring.z.start; z < ring.z.stop; ++z) {
      const int position[kAxes] = {z, y, ring.columns.start};
      body(z, y, key_token(problem, unit.tile, position));
    }
  ring.packed = block.keys[1].stop;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
