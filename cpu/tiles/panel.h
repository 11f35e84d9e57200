// SPDX-License-Identifier: Apache-2.0
// Moving tokens between memory and tiles: views of one head, panels of visited tokens, transposes.
//
// The elements of tiles and panels are floats, or pairs of bfloat16: of two neighbouring features where a product sums
// over features (Along::kFeatures: scores), of two neighbouring tokens where it sums over those (Along::kTokens:
// weighted sums). Zeros fill the last pair.
#pragma once

#include "cpu/tiles/tile.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// One operand [batch, tokens, heads, dim] seen from one batch entry and head.
template <class T>
struct View {
  T* base;
  int64_t stride;  // between tokens
  int dim;
};

template <class T>
inline View<T> make_view(T* data, int64_t batch, int64_t tokens, int heads, int head, int dim) {
  const int64_t stride = int64_t{heads} * dim;
  return {data + batch * tokens * stride + int64_t{head} * dim, stride, dim};
}

// kWidth elements, widened to float32 or rounded from it.
inline Vec load_wide(const float* p) { return load(p); }
inline Vec load_wide(const BFloat16* p) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  return from_bits(__builtin_convertvector(*reinterpret_cast<const Half*>(p), IntVec) << 16);
}
inline Vec load_wide(const Float16* p) {
  alignas(64) float wide[kWidth];
#if defined(__F16C__)
  for (int c = 0; c < kWidth; c += 8)
    _mm256_store_ps(wide + c, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + c))));
#else
  for (int c = 0; c < kWidth; ++c) wide[c] = to_accumulator(p[c]);
#endif
  return load(wide);
}

inline void store_narrow(float* p, Vec v) { store(p, v); }
inline void store_narrow(BFloat16* p, Vec v) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  *reinterpret_cast<Half*>(p) = __builtin_convertvector(bfloat16_bits(v), Half);
}
inline void store_narrow(Float16* p, Vec v) {
  alignas(64) float wide[kWidth];
  store(wide, v);
#if defined(__F16C__)
  for (int c = 0; c < kWidth; c += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + c),
                     _mm256_cvtps_ph(_mm256_load_ps(wide + c), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int c = 0; c < kWidth; ++c) assign(p[c], wide[c]);
#endif
}

// The same where only `width` elements exist: the others read as zero and are not written.
template <class T>
inline Vec load_wide(const T* p, int width) {
  if (width >= kWidth) return load_wide(p);
  T buffer[kWidth] = {};
  memcpy(buffer, p, width * sizeof(T));
  return load_wide(buffer);
}
template <class T>
inline void store_narrow(T* p, Vec v, int width) {
  if (width >= kWidth) return store_narrow(p, v);
  T buffer[kWidth];
  store_narrow(buffer, v);
  memcpy(p, buffer, width * sizeof(T));
}

template <class T>
inline void widen(const T* from, float* to, int dim) {
  int c = 0;
  for (; c + kWidth <= dim; c += kWidth) store(to + c, load_wide(from + c));
  for (; c < dim; ++c) to[c] = to_accumulator(from[c]);
}

constexpr int64_t kPanelFloats = 64 << 10;  // 256 KB: half of a common L2, the other half is for the tiles

// The tokens that a run of tiles visits, [box0][box1][box2], contiguous. A box too large for that is streamed instead:
// one chunk after the other, packed again for every tile.
struct Panel {
  bool resident;
  int pitch;  // tokens of a row: whole pairs
  Range box[kAxes];
};

inline int extent(Range r) { return r.stop - r.start; }
inline int64_t panel_tokens(const Panel& panel) {
  return int64_t{extent(panel.box[0])} * extent(panel.box[1]) * panel.pitch;
}

// The box that a run of tiles visits; resident when `floats` per token fit.
template <class E>
inline Panel make_panel(const Problem& p, const Tile& tile, Side side, int stop, int64_t floats) {
  Panel panel{};
  for (int a = 0; a < kAxes; ++a) {
    const int end = a == kAxes - 1 ? stop : min(tile.first[a] + p.tile[a], present(tile.group[a], side).stop);
    panel.box[a] = side == Side::kQueries ? tile_keys(p.axis[a], tile.group[a].length, tile.first[a], end - 1)
                                          : visited_by_keys(p, tile, a, tile.first[a], end);
  }
  panel.pitch = ceil_div(extent(panel.box[2]), kTerms<E>) * kTerms<E>;
  panel.resident = panel_tokens(panel) * floats <= kPanelFloats;
  return panel;
}

// Extends what the lanes visit to whole pairs of the panel's tokens. Those are outside every window, so masked, and
// the panel has zeros where no token is.
template <class E>
inline void visit_pairs(const Panel& panel, Lanes& lanes) {
  if constexpr (kTerms<E> == 2) {
    Range& box = lanes.box[kAxes - 1];
    const int origin = panel.box[kAxes - 1].start;
    box = {origin + (box.start - origin) / 2 * 2, origin + ceil_div(box.stop - origin, 2) * 2};
  }
}

// Floats that a buffer for one operand of this panel needs, resident or streamed; whole registers may be read at its
// end.
inline int64_t panel_floats(int dim, int64_t tokens) { return (tokens > kChunk ? tokens : kChunk) * dim + kWidth; }

enum class Along { kFeatures, kTokens };

// A row of a panel: elements, and how many tokens they are of.
template <class E>
inline int row_elements(Along along, int dim) {
  return along == Along::kFeatures ? ceil_div(dim, kTerms<E>) : dim;
}
template <class E>
inline int row_tokens(Along along) {
  return along == Along::kTokens ? kTerms<E> : 1;
}

// Address of the token at position i in a panel.
template <class E>
inline E* panel_row(const Panel& panel, E* base, Along along, int dim, const int (&i)[kAxes]) {
  const int64_t token =
      (int64_t{i[0] - panel.box[0].start} * extent(panel.box[1]) + i[1] - panel.box[1].start) * panel.pitch + i[2] -
      panel.box[2].start;
  return base + token / row_tokens<E>(along) * row_elements<E>(along, dim);
}

// Calls body(memory row of the first token, number of tokens, position) for every row of a box.
template <class Index, class Body>
inline void for_each_row(const Range (&box)[kAxes], const Index& token_of, const Body& body) {
  for (int z = box[0].start; z < box[0].stop; ++z)
    for (int y = box[1].start; y < box[1].stop; ++y) {
      const int position[kAxes] = {z, y, box[2].start};
      body(token_of(position), position);
    }
}

// to[d] = the pair (low[d], high[d]), without a high one (low[d], 0).
inline void interleave_tokens(const BFloat16* low, const BFloat16* high, int dim, BFloat16Pair* to) {
  int d = 0;
  for (; d + kWidth <= dim; d += kWidth)
    store(to + d, pair_exactly(load_wide(low + d), high == nullptr ? Vec{} : load_wide(high + d)));
  for (; d < dim; ++d) to[d] = {low[d], high == nullptr ? BFloat16{} : high[d]};
}

template <class T>
inline void pack_row(const View<const T>& view, const T* row, int64_t step, int count, Along, float* to) {
  for (int j = 0; j < count; ++j, row += step * view.stride, to += view.dim) widen(row, to, view.dim);
}
inline void pack_row(const View<const BFloat16>& view, const BFloat16* row, int64_t step, int count, Along along,
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

template <class T, class Index, class E>
inline void fill_panel(const Panel& panel, const View<const T>& view, int64_t step, const Index& token_of, Along along,
                       E* base) {
  if (!panel.resident) return;
  for_each_row(panel.box, token_of, [&](int64_t token, const int (&position)[kAxes]) {
    pack_row(view, view.base + token * view.stride, step, extent(panel.box[2]), along,
             panel_row(panel, base, along, view.dim, position));
  });
}

// The tokens of a segment without the one that only fills a pair.
inline int real_tokens(const Panel& panel, const Segment& segment) {
  return min(segment.count, panel.box[kAxes - 1].stop - segment.position[kAxes - 1]);
}

// The chunk's rows of an operand: where they lie in a resident panel, else packed into `base` now.
template <class T, class Index, class E>
inline void visit_rows(const Panel& panel, const View<const T>& view, const Chunk& chunk, int64_t step,
                       const Index& token_of, Along along, E* base, Rows<const E>& rows) {
  const int tokens = row_tokens<E>(along);
  rows.runs = 0;
  rows.stride = rows.dim = row_elements<E>(along, view.dim);
  for (int i = 0, first = 0; i < chunk.segments; first += chunk.segment[i++].count) {
    const Segment& segment = chunk.segment[i];
    E* at = base;
    if (panel.resident) {
      at = panel_row(panel, base, along, view.dim, segment.position);
    } else {
      pack_row(view, view.base + token_of(segment.position) * view.stride, step, real_tokens(panel, segment), along,
               base);
      base += segment.count / tokens * rows.stride;
    }
    add_run<const E>(rows, at, first / tokens, segment.count / tokens);
  }
}

// kWidth elements of a token, along its features; those past its end are zero.
template <class E, class T>
inline Vec load_elements(const T* token, int first, int dim) {
  if constexpr (kTerms<E> == 1) return load_wide(token + first, dim - first);
  alignas(64) BFloat16 buffer[2 * kWidth] = {};
  if (dim - 2 * first < 2 * kWidth)
    memcpy(buffer, token + 2 * first, (dim - 2 * first) * sizeof(T));
  else
    memcpy(buffer, token + 2 * first, sizeof buffer);
  return load(reinterpret_cast<const BFloat16Pair*>(buffer));
}
// Elements are scaled when they are packed, but pairs are not: that would round them.
template <class E>
inline Vec scaled(Vec v, float factor) {
  return kTerms<E> == 1 ? v * splat(factor) : v;
}

// tile[d][lane] = factor * token_lane[d]. A tile has rows for whole registers of elements.
template <class T, class E>
inline void pack_tile(const View<const T>& view, const Lanes& lanes, float factor, E* tile) {
  const int elements = row_elements<E>(Along::kFeatures, view.dim);
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    const T* token[kWidth];
    for (int i = 0; i < kWidth; ++i) token[i] = view.base + lanes.token[lane + i] * view.stride;
    for (int d = 0; d < elements; d += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load_elements<E>(token[i], d, view.dim);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(tile + (d + i) * kLanes + lane, scaled<E>(row[i], factor));
    }
  }
}

// token_lane[d] = factor[lane] * tile[d][lane], for the lanes that exist.
template <class T>
inline void unpack_tile(const float* tile, const float* factor, const Lanes& lanes, const View<T>& view) {
  for (int lane = 0; lane < kLanes; lane += kWidth)
    for (int d = 0; d < view.dim; d += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load(tile + (d + i) * kLanes + lane) * load(factor + lane);
      transpose(row);
      for (int i = 0; i < kWidth; ++i)
        if (lanes.valid[lane + i])
          store_narrow(view.base + lanes.token[lane + i] * view.stride + d, row[i], view.dim - d);
    }
}

// tokens[lane][d] = factor * token_lane[d], or pairs of lanes; rows padded with zeros to whole registers.
template <class T, class E>
inline void pack_tokens(const View<const T>& view, const Lanes& lanes, float factor, E* tokens) {
  const int pitch = padded(view.dim);
  const auto part = [&](int lane, int d) {
    return load_wide(view.base + lanes.token[lane] * view.stride + d, view.dim - d);
  };
  for (int lane = 0; lane < kLanes; lane += kTerms<E>, tokens += pitch)
    for (int d = 0; d < pitch; d += kWidth) {
      if constexpr (kTerms<E> == 2)
        store(tokens + d, pair_exactly(part(lane, d), part(lane + 1, d)));
      else
        store(tokens + d, part(lane, d) * splat(factor));
    }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
