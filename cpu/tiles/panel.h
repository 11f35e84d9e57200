// SPDX-License-Identifier: Apache-2.0
// Panels: packed copies of the tokens that a run of tiles visits.
//
// A panel keeps the box of visited tokens, [box0][box1][pitch][dim], as rows that the products of micro.h stream:
// neighbours along the last axis are neighbours in memory, whatever the dilation and the number of heads. Of pairs,
// Along::kFeatures halves the elements of a token, Along::kTokens the rows: pitch is a whole number of pairs.
// Packed once, it is read by every tile of the run and every query head that shares the kv head.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/isa.h"
#include "common/problem.h"
#include "common/window.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/vec.h"
#include "cpu/tiles/micro.h"
#include "cpu/tiles/tile.h"
#include "cpu/tiles/view.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr int64_t kPanelFloats = 64 << 10;  // 256 KB: half of a common L2, the other half is for the tiles

// The box of tokens that a run of tiles visits. A box too large to be resident is streamed instead: one chunk after the
// other, packed again for every tile.
struct TokenPanel {
  bool resident;
  int pitch;  // tokens of a row: whole pairs
  Range box[kAxes];
};

inline int extent(Range range) { return range.stop - range.start; }
inline int64_t panel_tokens(const TokenPanel& panel) {
  return int64_t{extent(panel.box[0])} * extent(panel.box[1]) * panel.pitch;
}

// The box that a run of tiles visits, `stop` past its last position; resident when `floats` per token fit.
template <class Packed>
inline TokenPanel make_panel(const Problem& problem, const Tile& tile, Side side, int stop, int64_t floats) {
  TokenPanel panel{};
  for (int axis = 0; axis < kAxes; ++axis) {
    const int first = tile.first[axis];
    const int end = axis == kAxes - 1 ? stop : min(first + problem.tile[axis], present(tile.group[axis], side).stop);
    panel.box[axis] = side == Side::kQueries ? tile_keys(problem.axis[axis], tile.group[axis].length, first, end - 1)
                                             : visited_by_keys(problem, tile, axis, first, end);
  }
  panel.pitch = ceil_div(extent(panel.box[2]), kTerms<Packed>) * kTerms<Packed>;
  panel.resident = panel_tokens(panel) * floats <= kPanelFloats;
  return panel;
}

// Extends what the lanes visit to whole pairs of the panel's tokens. Those are outside every window, so masked, and
// the panel has zeros where no token is.
template <class Packed>
inline void visit_pairs(const TokenPanel& panel, Lanes& lanes) {
  if constexpr (kTerms<Packed> == 2) {
    Range& box = lanes.box[kAxes - 1];
    const int origin = panel.box[kAxes - 1].start;
    box = {origin + (box.start - origin) / 2 * 2, origin + ceil_div(box.stop - origin, 2) * 2};
  }
}

// Floats that a buffer for one operand of this panel needs, resident or streamed; whole registers may be read at its
// end.
inline int64_t panel_floats(int dim, int64_t tokens) { return (tokens > kChunk ? tokens : kChunk) * dim + kWidth; }

// The tokens that a run visits, of keys where the lanes are queries (kSide), of queries where they are keys.
template <Side kSide>
struct VisitedTokens {
  const Problem& problem;
  const Tile& tile;
  const TokenPanel& panel;
};

// Index in memory of the visited token at a position, and from it to its neighbour along the last axis.
template <Side kSide>
inline int64_t token_at(const VisitedTokens<kSide>& visited, const int (&position)[kAxes]) {
  if constexpr (kSide == Side::kQueries)
    return key_token(visited.problem, visited.tile, position);
  else
    return query_token(visited.problem, visited.tile, position);
}
template <Side kSide>
inline int64_t token_step(const VisitedTokens<kSide>& visited) {
  return visited.problem.axis[kAxes - 1].dilation;
}

// One visited operand of a head: its tokens in memory, and where they are packed. `packed` is the panel if that is
// resident, else room for one chunk.
template <class T, class Packed>
struct VisitedOperand {
  HeadView<T> view;
  Packed* packed;
  Along along;
};
template <class T, class Packed>
VisitedOperand(HeadView<T>, Packed*, Along) -> VisitedOperand<T, Packed>;

// Address of the token at a position in a resident panel.
template <class T, class Packed>
inline Packed* panel_row(const TokenPanel& panel, const VisitedOperand<T, Packed>& operand,
                         const int (&position)[kAxes]) {
  const auto local = [&](int axis) { return position[axis] - panel.box[axis].start; };
  const int64_t token = (int64_t{local(0)} * extent(panel.box[1]) + local(1)) * panel.pitch + local(2);
  const int elements = row_elements<Packed>(operand.along, operand.view.dim);
  return operand.packed + token / row_tokens<Packed>(operand.along) * elements;
}

// Calls body(index in memory of the first token, its position) for every row of the panel's box.
template <Side kSide, class Body>
inline void for_each_row(const VisitedTokens<kSide>& visited, const Body& body) {
  const Range(&box)[kAxes] = visited.panel.box;
  for (int z = box[0].start; z < box[0].stop; ++z)
    for (int y = box[1].start; y < box[1].stop; ++y) {
      const int position[kAxes] = {z, y, box[2].start};
      body(token_at(visited, position), position);
    }
}

// to[d] = the pair (low[d], high[d]), without a high one (low[d], 0).
inline void interleave_tokens(const BFloat16* low, const BFloat16* high, int dim, BFloat16Pair* to) {
  int d = 0;
  for (; d + kWidth <= dim; d += kWidth)
    store(to + d, pair_exactly(load_wide(low + d), high == nullptr ? Vec{} : load_wide(high + d)));
  for (; d < dim; ++d) to[d] = {low[d], high == nullptr ? BFloat16{} : high[d]};
}

// Packs `count` tokens of a row, `step` apart in memory; the last pair is filled with zeros. The view is a copy: what
// is stored could be one that is referred to.
template <class T>
inline void pack_row(HeadView<const T> view, const T* row, int64_t step, int count, Along, float* to) {
  for (int j = 0; j < count; ++j, row += step * view.stride, to += view.dim) widen(row, to, view.dim);
}
inline void pack_row(HeadView<const BFloat16> view, const BFloat16* row, int64_t step, int count, Along along,
                     BFloat16Pair* to) {
  const int64_t next = step * view.stride;
  if (along == Along::kTokens) {
    for (int j = 0; j < count; j += 2, row += 2 * next, to += view.dim)
      interleave_tokens(row, j + 1 < count ? row + next : nullptr, view.dim, to);
    return;
  }
  const int elements = ceil_div(view.dim, 2);
  for (int j = 0; j < count; ++j, row += next, to += elements) {
    to[elements - 1].high = {};
    memcpy(to, row, view.dim * sizeof *row);
  }
  if (count % 2 != 0) memset(to, 0, elements * sizeof *to);
}

// Packs the whole box, once for a run of tiles.
template <Side kSide, class T, class Packed>
inline void fill_panel(const VisitedTokens<kSide>& visited, const VisitedOperand<const T, Packed>& operand) {
  const TokenPanel& panel = visited.panel;
  if (!panel.resident) return;
  const HeadView<const T>& view = operand.view;
  for_each_row(visited, [&](int64_t token, const int (&position)[kAxes]) {
    pack_row(view, view.base + token * view.stride, token_step(visited), extent(panel.box[2]), operand.along,
             panel_row(panel, operand, position));
  });
}

// The tokens of a segment without the one that only fills a pair.
inline int real_tokens(const TokenPanel& panel, const Segment& segment) {
  return min(segment.count, panel.box[kAxes - 1].stop - segment.position[kAxes - 1]);
}

// The chunk's rows of an operand: where they lie in a resident panel, else packed now.
template <Side kSide, class T, class Packed>
inline void visit_rows(const VisitedTokens<kSide>& visited, const VisitedOperand<const T, Packed>& operand,
                       const BoxChunk& chunk, Streamed<const Packed>& rows) {
  const HeadView<const T>& view = operand.view;
  const int tokens = row_tokens<Packed>(operand.along);
  Packed* room = operand.packed;
  rows.runs = 0;
  rows.stride = rows.dim = row_elements<Packed>(operand.along, view.dim);
  int first = 0;
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    Packed* at = room;
    if (visited.panel.resident) {
      at = panel_row(visited.panel, operand, segment.position);
    } else {
      pack_row(view, view.base + token_at(visited, segment.position) * view.stride, token_step(visited),
               real_tokens(visited.panel, segment), operand.along, room);
      room += segment.count / tokens * rows.stride;
    }
    add_run<const Packed>(rows, at, first / tokens, segment.count / tokens);
    first += segment.count;
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
