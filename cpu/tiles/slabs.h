// SPDX-License-Identifier: Apache-2.0
// How the backward pass is shared among workers. The query tiles of one (batch entry, kv head, dilation group) are cut
// into slabs along one axis; slabs of one colour never touch the same keys, and the colours run one after the other.
//
//   query tiles   | slab 0 | slab 1 | slab 2 | slab 3 |     of slabs that are longer than a window, only neighbours
//   keys of 0, 2  |-- 0 ----|     |---- 2 ----|             share keys: two colours, 0 2 ... and 1 3 ...
//
// The cut depends on the problem alone, so the order of every sum, and the result, is the same on every run.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/simd/parallel.h"
#include "cpu/tiles/tile.h"

namespace jax_na {

struct Slabs {
  int axis, count, colours;
};

inline namespace JAX_NA_ISA {

// First tile of a slab along an axis of `tiles` tiles.
inline int slab_start(int tiles, const Slabs& slabs, int slab) {
  return static_cast<int>(int64_t{tiles} * slab / slabs.count);
}

// Keys that a slab of a group visits along the slab axis; empty when the group is too short to have it.
inline Range slab_keys(const Problem& problem, const Group& group, int tiles, const Slabs& slabs, int slab) {
  const auto start = [&](int i) {
    return group.queries.start + slab_start(tiles, slabs, i) * problem.tile[slabs.axis];
  };
  const int first = start(slab);
  const int last = min(start(slab + 1), group.queries.stop) - 1;
  return first > last ? Range{0, 0} : tile_keys(problem.axis[slabs.axis], group.length, first, last);
}

// Fewest colours such that slabs i and i + colours of every group visit disjoint keys.
inline int count_colours(const Problem& problem, int tiles, const Slabs& slabs) {
  int colours = 1;
  for (int index = 0; index < problem.axis[slabs.axis].dilation; ++index) {
    const Group group = group_of(problem, slabs.axis, index);
    for (int slab = 0; slab < slabs.count; ++slab) {
      const Range keys = slab_keys(problem, group, tiles, slabs, slab);
      while (slab + colours < slabs.count) {
        const Range other = slab_keys(problem, group, tiles, slabs, slab + colours);
        if (keys.start == keys.stop || other.start == other.stop || other.start >= keys.stop) break;
        ++colours;
      }
    }
  }
  return colours;
}

// Enough slabs to keep a large machine busy, as long as two colours suffice and a slab is not mostly keys of its
// neighbours: their share is at most half of its own.
inline Slabs choose_slabs(const Problem& problem, const TileGrid& grid) {
  Slabs slabs{0, 1, 1};
  for (int axis = 1; axis < kAxes; ++axis)
    if (grid.tiles[axis] > grid.tiles[slabs.axis]) slabs.axis = axis;
  const int tiles = grid.tiles[slabs.axis];
  const int size = 2 * (problem.axis[slabs.axis].kernel_size - 1);
  const int wanted = static_cast<int>(units_per_head(problem, problem.kv_heads));
  for (slabs.count = min(tiles, wanted); slabs.count > 1; --slabs.count) {
    if (tiles * problem.tile[slabs.axis] < slabs.count * size) continue;
    slabs.colours = count_colours(problem, tiles, slabs);
    if (slabs.colours <= 2) return slabs;
  }
  return {slabs.axis, 1, 1};
}

// The query tiles of a call and how they are cut.
struct SlabbedGrid {
  TileGrid grid;
  Slabs slabs;
};

inline void clear(const Parallel& parallel, float* data, int64_t count) {
  constexpr int64_t kPiece = 1 << 16;
  auto body = [&](int64_t unit, char*) {
    const int64_t first = unit * kPiece, rest = count - first;
    memset(data + first, 0, (rest < kPiece ? rest : kPiece) * sizeof(float));
  };
  parallel_for(parallel, (count + kPiece - 1) / kPiece, body);
}

// The tile of a slab's (batch entry, kv head, dilation group), without a place: `number` counts the groups of all batch
// entries, last axis fastest.
inline Tile slab_tile(const Problem& problem, int64_t number, int kv_head) {
  const int64_t groups = group_count(problem);
  Tile tile;
  tile.head = kv_head;
  tile.batch = number / groups;
  int64_t index = number % groups;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    tile.group[axis] = group_of(problem, axis, static_cast<int>(index % problem.axis[axis].dilation));
    index /= problem.axis[axis].dilation;
  }
  return tile;
}

// Calls body(slab, tile, part, memory) for every slab, colour by colour; of `tile`, batch, group and head (the kv head)
// are set. The slabs of all batch entries and groups are numbered; each of the `parts` is a contiguous range of them,
// done in order by one worker: few parts, where each one owns a table of sums; with 0, every slab is a part.
template <class Body>
void for_each_slab(const Problem& problem, const Parallel& parallel, const Slabs& slabs, int64_t parts,
                   const Body& body) {
  const int64_t all = problem.batch * group_count(problem) * slabs.count;
  if (parts == 0) parts = all;
  for (int colour = 0; colour < slabs.colours; ++colour) {
    auto unit_body = [&](int64_t unit, char* memory) {
      const int64_t part = unit / problem.kv_heads;
      const int kv_head = static_cast<int>(unit % problem.kv_heads);
      for (int64_t i = all * part / parts; i < all * (part + 1) / parts; ++i) {
        const int slab = static_cast<int>(i % slabs.count);
        if (slab % slabs.colours != colour) continue;
        Tile tile = slab_tile(problem, i / slabs.count, kv_head);
        body(slab, tile, part, memory);
      }
    };
    parallel_for(parallel, parts * problem.kv_heads, unit_body);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
