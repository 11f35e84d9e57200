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

inline void widen(const float* from, float* to, int dim) {
  int c = 0;
  for (; c + kWidth <= dim; c += kWidth) store(to + c, load(from + c));
  for (; c < dim; ++c) to[c] = from[c];
}
inline void widen(const BFloat16* from, float* to, int dim) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  typedef uint32_t Word __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
  int c = 0;
  for (; c + kWidth <= dim; c += kWidth)
    *reinterpret_cast<Word*>(to + c) = __builtin_convertvector(*reinterpret_cast<const Half*>(from + c), Word) << 16;
  for (; c < dim; ++c) to[c] = to_accumulator(from[c]);
}
inline void widen(const Float16* from, float* to, int dim) {
  int c = 0;
#if defined(__F16C__)
  for (; c + 8 <= dim; c += 8)
    _mm256_storeu_ps(to + c, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + c))));
#endif
  for (; c < dim; ++c) to[c] = to_accumulator(from[c]);
}

inline void narrow(const float* from, float* to, int dim) { memcpy(to, from, dim * sizeof(float)); }
inline void narrow(const float* from, BFloat16* to, int dim) {
  for (int c = 0; c < dim; ++c) assign(to[c], from[c]);
}
inline void narrow(const float* from, Float16* to, int dim) {
  int c = 0;
#if defined(__F16C__)
  for (; c + 8 <= dim; c += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + c), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; c < dim; ++c) assign(to[c], from[c]);
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
    panel.box[a] = visited(p, tile, side, a, tile.first[a], end);
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

// tokens[lane][d] = factor * token_lane[d], rows padded with zeros to whole registers; zero for lanes that do not
// exist.
template <class T>
inline void pack_tokens(const View<const T>& view, const Lanes& lanes, float factor, float* tokens) {
  const int pitch = padded(view.dim);
  for (int lane = 0; lane < kLanes; ++lane, tokens += pitch) {
    if (!lanes.valid[lane]) {
      memset(tokens, 0, pitch * sizeof(float));
      continue;
    }
    const T* row = view.base + lanes.token[lane] * view.stride;
    widen(row, tokens, view.dim);
    for (int d = view.dim; d < pitch; ++d) tokens[d] = 0.0f;
    for (int d = 0; d < pitch; d += kWidth) store(tokens + d, load(tokens + d) * splat(factor));
  }
}

// tile[d][lane] = factor * tokens[lane][d]; the tile has padded(dim) rows.
inline void transpose_tokens(const float* tokens, int dim, float factor, float* tile) {
  const int pitch = padded(dim);
  for (int d = 0; d < dim; d += kWidth)
    for (int lane = 0; lane < kLanes; lane += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load(tokens + (lane + i) * pitch + d);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(tile + (d + i) * kLanes + lane, row[i] * splat(factor));
    }
}

// tokens[lane][d] = tile[d][lane].
inline void transpose_tile(const float* tile, int dim, float* tokens) {
  const int pitch = padded(dim);
  for (int d = 0; d < dim; d += kWidth)
    for (int lane = 0; lane < kLanes; lane += kWidth) {
      Vec row[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) row[i] = load(tile + (d + i) * kLanes + lane);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(tokens + (lane + i) * pitch + d, row[i]);
    }
}

// token_lane[d] = factor[lane] * tokens[lane][d], for the lanes that exist; `tokens` is overwritten.
template <class T>
inline void unpack_tokens(float* tokens, const float* factor, const Lanes& lanes, const View<T>& view) {
  const int pitch = padded(view.dim);
  for (int lane = 0; lane < kLanes; ++lane, tokens += pitch) {
    if (!lanes.valid[lane]) continue;
    for (int d = 0; d < pitch; d += kWidth) store(tokens + d, load(tokens + d) * splat(factor[lane]));
    narrow(tokens, view.base + lanes.token[lane] * view.stride, view.dim);
  }
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
