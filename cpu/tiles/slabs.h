// SPDX-License-Identifier: Apache-2.0
// How the backward pass is shared among workers. The query tiles of one (batch entry, kv head, dilation group) are cut
// into slabs along one axis; slabs of one colour never touch the same keys, and the colours run one after the other.
// The cut depends on the problem alone, so the order of every sum, and the result, is the same on every run.
#pragma once

#include "cpu/tiles/tile.h"

namespace jax_na {

struct Slabs {
  int axis, count, colours;
};

inline namespace JAX_NA_ISA {

// First tile of slab i along an axis of `tiles` tiles.
inline int slab_start(int tiles, const Slabs& slabs, int i) {
  return static_cast<int>(int64_t{tiles} * i / slabs.count);
}

// Keys that slab i of a group visits along the slab axis; empty when the group is too short to have it.
inline Range slab_keys(const Problem& p, const Group& g, int tiles, const Slabs& slabs, int i) {
  const int first = g.queries.start + slab_start(tiles, slabs, i) * p.tile[slabs.axis];
  const int last = min(g.queries.start + slab_start(tiles, slabs, i + 1) * p.tile[slabs.axis], g.queries.stop) - 1;
  return first > last ? Range{0, 0} : tile_keys(p.axis[slabs.axis], g.length, first, last);
}

// Fewest colours such that slabs i and i + colours of every group visit disjoint keys.
inline int count_colours(const Problem& p, int tiles, const Slabs& slabs) {
  int colours = 1;
  for (int index = 0; index < p.axis[slabs.axis].dilation; ++index) {
    const Group g = group_of(p, slabs.axis, index);
    for (int i = 0; i < slabs.count; ++i) {
      const Range keys = slab_keys(p, g, tiles, slabs, i);
      while (i + colours < slabs.count) {
        const Range other = slab_keys(p, g, tiles, slabs, i + colours);
        if (keys.start == keys.stop || other.start == other.stop || other.start >= keys.stop) break;
        ++colours;
      }
    }
  }
  return colours;
}

// Enough slabs to keep a large machine busy, as long as two colours suffice and a slab is not mostly keys of its
// neighbours: their share is at most half of its own.
inline Slabs choose_slabs(const Problem& p, const TileGrid& grid) {
  Slabs slabs{0, 1, 1};
  for (int a = 1; a < kAxes; ++a)
    if (grid.tiles[a] > grid.tiles[slabs.axis]) slabs.axis = a;
  const int tiles = grid.tiles[slabs.axis];
  const int size = 2 * (p.axis[slabs.axis].kernel_size - 1);
  for (slabs.count = min(tiles, static_cast<int>(units_per_head(p, p.kv_heads))); slabs.count > 1; --slabs.count) {
    if (tiles * p.tile[slabs.axis] < slabs.count * size) continue;
    slabs.colours = count_colours(p, tiles, slabs);
    if (slabs.colours <= 2) return slabs;
  }
  return {slabs.axis, 1, 1};
}

inline void clear(const Parallel& parallel, float* data, int64_t count) {
  constexpr int64_t kPiece = 1 << 16;
  auto body = [&](int64_t unit, char*) {
    const int64_t first = unit * kPiece, rest = count - first;
    memset(data + first, 0, (rest < kPiece ? rest : kPiece) * sizeof(float));
  };
  parallel_for(parallel, (count + kPiece - 1) / kPiece, body);
}

// Calls body(slab, tile, part, memory) for every slab, colour by colour; of `tile`, batch, group and head (the kv head)
// are set. The slabs of all batch entries and groups are numbered; each of the `parts` is a contiguous range of them,
// done in order by one worker: few parts, where each one owns a table of sums; with 0, every slab is a part.
template <class Body>
void for_each_slab(const Problem& p, const Parallel& parallel, const Slabs& slabs, int64_t parts, const Body& body) {
  const int64_t groups = group_count(p), all = p.batch * groups * slabs.count;
  if (parts == 0) parts = all;
  for (int colour = 0; colour < slabs.colours; ++colour) {
    auto unit_body = [&](int64_t unit, char* memory) {
      const int64_t part = unit / p.kv_heads;
      for (int64_t i = all * part / parts; i < all * (part + 1) / parts; ++i) {
        const int slab = static_cast<int>(i % slabs.count);
        if (slab % slabs.colours != colour) continue;
        Tile tile;
        tile.head = static_cast<int>(unit % p.kv_heads);
        tile.batch = i / slabs.count / groups;
        int64_t index = i / slabs.count % groups;
        for (int a = kAxes - 1; a >= 0; --a) {
          tile.group[a] = group_of(p, a, static_cast<int>(index % p.axis[a].dilation));
          index /= p.axis[a].dilation;
        }
        body(slab, tile, part, memory);
      }
    };
    parallel_for(parallel, parts * p.kv_heads, unit_body);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
