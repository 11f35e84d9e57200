// SPDX-License-Identifier: Apache-2.0
// What all fused kernels share: which block this is, loading tiles of tokens, and the mask of a warp's scores.
#pragma once

#include "cuda/block/arithmetic.cuh"
#include "cuda/geometry/mask.cuh"

namespace jax_na::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Compile-time shape of a kernel.
//   kWarps * 16 * kRowTiles rows stay, kColumns columns at a time are streamed through kStages buffers.
template <class Math_, int kFeatures_, int kWarps_, int kRowTiles_, int kColumns_, int kStages_>
struct Shape {
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr int kFeatures = kFeatures_, kWarps = kWarps_, kRowTiles = kRowTiles_, kColumns = kColumns_;
  static constexpr int kStages = kStages_, kThreads = 32 * kWarps, kRows = 16 * kWarps * kRowTiles;
  static constexpr int kRowBytes = kFeatures * static_cast<int>(sizeof(Element));
  static constexpr int kColumnTiles = kColumns / 8;
  // Warps that a multiprocessor shall have room for: 12 leave 168 registers to a thread, 8 leave 255. More warps hide
  // more latency; the compiler alone would spill to fit in more.
  static constexpr int kMinWarps = kRowTiles == 1 && kRowBytes <= 128 && sizeof(Element) == 2 ? 12 : 8;
  // Blocks, of kernels that need a few registers more than others of this shape or not.
  static constexpr int min_blocks(bool needs_more) { return (needs_more ? 8 : kMinWarps) / kWarps; }
  using Tile = SharedTile<kRowBytes>;
  using Scores = float[kRowTiles][kColumnTiles][4];
  static constexpr int kRowTileBytes = kRows * kRowBytes, kColumnTileBytes = kColumns * kRowBytes;
  // What each row sees, and what all rows of each warp see.
  static constexpr int kWindowBytes = kRows * 2 * kAxes * static_cast<int>(sizeof(int));
  static constexpr int kInnerBytes = kWarps * 2 * kAxes * static_cast<int>(sizeof(int));
};

// One operand, [batch, tokens, heads, features] with `features` values each; rows of whole 16-byte chunks are copied
// asynchronously, others value by value.
struct Operand {
  const void* data;
  int heads, features;
  bool chunked;
};

// What every fused kernel knows of its problem.
struct Geometry {
  Problem problem;
  Tiling tiling;
  Repeats repeats;
  uint32_t tiles;          // row tiles of one head
  const int32_t* offsets;  // [rank, 2] in device memory
  const float* rpb;        // [heads, bias_entries] or null
  float premultiplier;     // scores become score * premultiplier + log2(e) * bias;
  float factor;            // times this they are exponents of 2
};

// Coordinates [first, first + count) of the tokens of one side that are present.
struct Grid {
  int first[kAxes], count[kAxes];

  __device__ __forceinline__ int64_t tokens() const { return int64_t{count[0]} * count[1] * count[2]; }
};

// The block's own part of the problem.
struct Block {
  Extent axis[kAxes];
  Grid rows, columns;
  int64_t batch;
  int head;       // of the rows: a query head, or a key head
  bool complete;  // all windows of its queries lie inside the keys present
};

// Offsets come from device memory and cannot be checked before the launch: illegal ones count as 0 and `legal` is
// false.
template <Rows side>
__device__ __forceinline__ Grid read_grid(const Geometry& g, bool& legal) {
  Grid grid;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    const int axis = a - kAxes + g.problem.rank;  // leading axes of length one have no offsets
    grid.count[a] = side == Rows::kQueries ? g.problem.nq[a] : g.problem.nk[a];
    grid.first[a] = axis < 0 ? 0 : g.offsets[2 * axis + (side == Rows::kQueries ? 0 : 1)];
    if (grid.first[a] < 0 || grid.first[a] > g.problem.axis[a].length - grid.count[a]) grid.first[a] = 0, legal = false;
  }
  return grid;
}

// False for a superfluous block. `index` counts tiles fastest, then `heads`, then the batch.
template <Rows rows>
__device__ __forceinline__ bool find_block(const Geometry& g, uint32_t index, uint32_t heads, Block& b) {
  constexpr Rows kColumns = rows == Rows::kQueries ? Rows::kKeys : Rows::kQueries;
  b.complete = true;
  b.rows = read_grid<rows>(g, b.complete);
  b.columns = read_grid<kColumns>(g, b.complete);
  uint32_t tile = index % g.tiles;
  index /= g.tiles;
  b.head = static_cast<int>(index % heads);
  b.batch = index / heads;
  bool exists = true;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const uint32_t tiles = g.tiling.tiles[a] * g.problem.axis[a].dilation;
    b.axis[a] = locate<rows>(g.problem, g.tiling, {b.rows.first[a], b.rows.count[a]},
                             {b.columns.first[a], b.columns.count[a]}, a, static_cast<int>(tile % tiles), b.complete);
    tile /= tiles;
    exists = exists && b.axis[a].rows.stop > b.axis[a].rows.start;
  }
  return exists;
}

// After a loop, the block of the kernel found anew: what the loop does not need of it occupies no registers there.
template <Rows rows>
__device__ __forceinline__ Block find_block_again(const Geometry& g, uint32_t heads) {
  Block b;
  find_block<rows>(g, renewed(blockIdx.x), heads, b);
  return b;
}

// A box of tokens: first positions, and where along each axis tokens end.
struct Box {
  int start[kAxes], stop[kAxes];
};
__device__ __forceinline__ Box row_box(const Block& b) {
  Box box;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) box.start[a] = b.axis[a].origin, box.stop[a] = b.axis[a].rows.stop;
  return box;
}
__device__ __forceinline__ Box column_box(const Tiling& t, const Block& b, const Walk& walk) {
  Box box;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) box.start[a] = box_start(t, b.axis[a], walk, a), box.stop[a] = b.axis[a].columns.stop;
  return box;
}

// Token `i` of a box as an index into the grid's tokens, -1 where there is none.
__device__ __forceinline__ int64_t token_of(const Geometry& g, const Grid& grid, const Block& b, const Box& box,
                                            const int (&log2)[kAxes], int i) {
  int64_t token = 0;
  bool exists = true;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    const int position = box.start[a] + inside_box(log2, i, a);
    const int coordinate = position * g.problem.axis[a].dilation + b.axis[a].group - grid.first[a];
    exists = exists && position < box.stop[a];
    token = token * grid.count[a] + coordinate;
  }
  return exists ? token : -1;
}

// The same for many tokens of one box: what does not depend on the token is computed once.
struct BoxTokens {
  int64_t before;    // tokens of the batches before this one
  int first;         // index of the box's first token, whether it exists or not
  int step[kAxes];   // to the index of the next token along an axis
  int count[kAxes];  // tokens that exist along it

  // Of `count` tokens in a row, those from `start` on.
  __device__ __forceinline__ BoxTokens(const Block& b, int count_, int start)
      : before(b.batch * count_), first(start), step{0, 0, 1}, count{1, 1, count_ - start} {}

  __device__ __forceinline__ BoxTokens(const Geometry& g, const Grid& grid, const Block& b, const Box& box)
      : before(b.batch * grid.tokens()), first(0) {
    int stride = 1;
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      const int dilation = g.problem.axis[a].dilation;
      first += (box.start[a] * dilation + b.axis[a].group - grid.first[a]) * stride;
      step[a] = dilation * stride;
      count[a] = box.stop[a] - box.start[a];
      stride *= grid.count[a];
    }
  }

  // Index of token `i`; `exists` turns false where there is none.
  __device__ __forceinline__ int index(const int (&log2)[kAxes], int i, bool& exists) const {
    int token = first;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      const int at = inside_box(log2, i, a);
      exists = exists && at < count[a];
      token += at * step[a];
    }
    return token;
  }
};

// Copies one chunk of a token value by value: rows that are no whole number of chunks. Zeros where there is nothing.
template <class Tile, class Element>
__device__ __forceinline__ void copy_token(Tile tile, const Element* first, int stride, const BoxTokens& tokens,
                                           const int (&log2)[kAxes], int row, int chunk, int features) {
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(Element));
  bool exists = true;
  const int token = tokens.index(log2, row, exists), feature = chunk * kPerChunk;
  const Element* from = first + static_cast<int64_t>(token) * stride + feature;
  auto* to = reinterpret_cast<Element*>(tile.chunk(row, chunk));
#pragma unroll 1
  for (int i = 0; i < kPerChunk; ++i) {
    if (exists && feature + i < features) {
      to[i] = from[i];
    } else {
      narrow(to[i], 0.f);
    }
  }
}

// Starts copying `kCount` tokens of a box, for one or two operands that have these tokens: the features from
// `first_feature` on, a multiple of those in 16 bytes. Zeros for missing tokens and features.
template <class S, int kCount, int kOperands>
__device__ __forceinline__ void load_tokens(const BoxTokens& tokens, const int (&log2)[kAxes],
                                            const Operand (&x)[kOperands], int head,
                                            const typename S::Tile (&tile)[kOperands], int first_feature = 0) {
  using Element = typename S::Element;
  constexpr int kChunks = S::kRowBytes / 16, kPerChunk = 16 / static_cast<int>(sizeof(Element));
  // Threads stand side by side along a row, then along rows.
  constexpr int kAcross = kChunks < S::kThreads ? kChunks : S::kThreads, kDown = S::kThreads / kAcross;
  const int across = static_cast<int>(threadIdx.x) % kAcross, down = static_cast<int>(threadIdx.x) / kAcross;
  constexpr int kTokens = kCount / kDown, kSteps = kChunks / kAcross;  // of one thread
  constexpr int kMost = S::kRowBytes > 256 ? 1
                        : S::kWarps == 1   ? 2
                                           : 4,
                kGroup = kTokens < kMost ? kTokens : kMost;  // at a time, not to need too many registers
#pragma unroll 1
  for (int begin = 0; begin < kTokens; begin += kGroup) {
    int token[kGroup];
    bool exists[kGroup];
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      exists[t] = true;
      token[t] = tokens.index(log2, down + (begin + t) * kDown, exists[t]);
      if (!exists[t]) token[t] = 0;  // a legal address, never read
    }
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      // The head's features of the batch's first token.
      const auto* head_base =
          static_cast<const Element*>(x[i].data) + (tokens.before * x[i].heads + head) * x[i].features + first_feature;
      const int stride = x[i].heads * x[i].features, features = x[i].features - first_feature;
#pragma unroll
      for (int c = 0; c < kSteps; ++c) {
        const int chunk = across + c * kAcross, feature = chunk * kPerChunk, left = features - feature;
        const Element* base = head_base + (left > 0 ? feature : 0);
        if (x[i].chunked) {
#pragma unroll
          for (int t = 0; t < kGroup; ++t)
            cp_async16(tile[i].address(down + (begin + t) * kDown, chunk),
                       base + static_cast<int64_t>(token[t]) * stride, exists[t] && left > 0);
        } else {
#pragma unroll 1
          for (int t = begin; t < begin + kGroup; ++t)
            copy_token(tile[i], head_base, stride, tokens, log2, down + t * kDown, chunk, features);
        }
      }
    }
  }
}

// The buffers of two operands of the columns, kStages for each, side by side in shared memory.
template <class S>
struct ColumnTiles {
  char* base;

  __device__ __forceinline__ typename S::Tile at(int operand, int stage) const {
    return {base + (operand * S::kStages + stage) * S::kColumnTileBytes};
  }
};

// Starts copying the block's own tokens, of one or two operands.
template <class S, int kOperands>
__device__ __forceinline__ void load_rows(const Geometry& g, const Block& b, const Operand (&x)[kOperands],
                                          const typename S::Tile (&tile)[kOperands]) {
  load_tokens<S, S::kRows>(BoxTokens(g, b.rows, b, row_box(b)), g.tiling.rows, x, b.head, tile);
}

// Starts copying the box that `walk` is at, as one group.
template <class S>
__device__ __forceinline__ void load_box(const Geometry& g, const Block& b, const Walk& walk, const Operand (&x)[2],
                                         int head, ColumnTiles<S> tiles, int stage) {
  load_tokens<S, S::kColumns>(BoxTokens(g, b.columns, b, column_box(g.tiling, b, walk)), g.tiling.columns, x, head,
                              {tiles.at(0, stage), tiles.at(1, stage)});
  cp_async_commit();
}

}  // namespace jax_na::cuda
