// SPDX-License-Identifier: Apache-2.0
// Moving tokens between memory and tiles: views of one head, panels of visited tokens as float32 rows, transposes.
#pragma once

#include "tile.h"

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
inline void store_narrow(BFloat16* p, Vec v) {  // as `assign`: to nearest, ties to even, NaN stays NaN
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  typedef uint32_t Word __attribute__((vector_size(kWidth * 4)));
  const Word bits = reinterpret_cast<Word>(v);
  const Word rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Word nan = reinterpret_cast<Word>(v != v);
  *reinterpret_cast<Half*>(p) = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Half);
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

// The tokens that a run of tiles visits, [box0][box1][box2][dim], contiguous and as float32. A box too large for that
// is streamed instead: one chunk after the other, packed again for every tile.
struct Panel {
  bool resident;
  Range box[kAxes];
};

inline int extent(Range r) { return r.stop - r.start; }
inline int64_t volume(const Range (&box)[kAxes]) { return int64_t{extent(box[0])} * extent(box[1]) * extent(box[2]); }

// The box that a run of tiles visits; resident when `floats` per token fit.
inline Panel make_panel(const Problem& p, const Tile& tile, Side side, int stop, int64_t floats) {
  Panel panel{};
  for (int a = 0; a < kAxes; ++a) {
    const int end = a == kAxes - 1 ? stop : min(tile.first[a] + p.tile[a], present(tile.group[a], side).stop);
    panel.box[a] = side == Side::kQueries ? tile_keys(p.axis[a], tile.group[a].length, tile.first[a], end - 1)
                                          : visited_by_keys(p, tile, a, tile.first[a], end);
  }
  panel.resident = volume(panel.box) * floats <= kPanelFloats;
  return panel;
}

// Floats that a buffer for one operand of this panel needs, resident or streamed; whole registers may be read at its
// end.
inline int64_t panel_floats(int dim, int64_t tokens) { return (tokens > kChunk ? tokens : kChunk) * dim + kWidth; }

// Address of the token at position i in a panel.
inline float* panel_row(const Panel& panel, float* base, int dim, const int (&i)[kAxes]) {
  const int64_t row =
      (int64_t{i[0] - panel.box[0].start} * extent(panel.box[1]) + i[1] - panel.box[1].start) * extent(panel.box[2]) +
      i[2] - panel.box[2].start;
  return base + row * dim;
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

template <class T>
inline void pack_row(const View<const T>& view, int64_t token, int64_t step, int count, float* to) {
  const T* row = view.base + token * view.stride;
  for (int j = 0; j < count; ++j, row += step * view.stride, to += view.dim) widen(row, to, view.dim);
}

template <class T, class Index>
inline void fill_panel(const Panel& panel, const View<const T>& view, int64_t step, const Index& token_of,
                       float* base) {
  if (!panel.resident) return;
  for_each_row(panel.box, token_of, [&](int64_t token, const int (&position)[kAxes]) {
    pack_row(view, token, step, extent(panel.box[2]), panel_row(panel, base, view.dim, position));
  });
}

// The chunk's rows of an operand: where they lie in a resident panel, else packed into `base` now.
template <class T, class Index>
inline void visit_rows(const Panel& panel, const View<const T>& view, const Chunk& chunk, int64_t step,
                       const Index& token_of, float* base, Rows<const float>& rows) {
  rows.runs = chunk.segments;
  rows.dim = view.dim;
  rows.stride = view.dim;
  for (int i = 0; i < chunk.segments; ++i) {
    const Segment& segment = chunk.segment[i];
    rows.count[i] = segment.count;
    if (panel.resident) {
      rows.base[i] = panel_row(panel, base, view.dim, segment.position);
    } else {
      rows.base[i] = base;
      pack_row(view, token_of(segment.position), step, segment.count, base);
      base += int64_t{segment.count} * view.dim;
    }
  }
}

// tile[d][lane] = factor * token_lane[d]. A tile has padded(dim) rows.
template <class T>
inline void pack_tile(const View<const T>& view, const Lanes& lanes, float factor, float* tile) {
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    const T* token[kWidth];
    for (int i = 0; i < kWidth; ++i) token[i] = view.base + lanes.token[lane + i] * view.stride;
    for (int d = 0; d < view.dim; d += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load_wide(token[i] + d, view.dim - d);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(tile + (d + i) * kLanes + lane, row[i] * splat(factor));
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

// tokens[lane][d] = factor * token_lane[d], rows padded with zeros to whole registers.
template <class T>
inline void pack_tokens(const View<const T>& view, const Lanes& lanes, float factor, float* tokens) {
  const int pitch = padded(view.dim);
  for (int lane = 0; lane < kLanes; ++lane, tokens += pitch) {
    const T* token = view.base + lanes.token[lane] * view.stride;
    for (int d = 0; d < pitch; d += kWidth) store(tokens + d, load_wide(token + d, view.dim - d) * splat(factor));
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
