// SPDX-License-Identifier: Apache-2.0
// Tokens of a box: where they are in memory, and copying them to tiles in shared memory.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/element.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// One operand, [batch, tokens, heads, features] with `features` values each; rows of whole 16-byte chunks are copied
// asynchronously, others value by value.
struct Operand {
  const void* data;
  int heads, features;
  bool chunked;
};

// Token `index` of a box as an index into the grid's tokens, -1 where there is none.
__device__ __forceinline__ int64_t token_of(const Geometry& geometry, const Grid& grid, const Block& block,
                                            const Box& box, const int (&log2)[kAxes], int index) {
  int64_t token = 0;
  bool exists = true;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) {
    const int position = box.start[axis] + inside_box(log2, index, axis);
    const int coordinate = position * geometry.problem.axis[axis].dilation + block.axis[axis].group - grid.first[axis];
    exists = exists && position < box.stop[axis];
    token = token * grid.count[axis] + coordinate;
  }
  return exists ? token : -1;
}

// Index of row `row` of the tile in [batch, tokens, heads]; -1 if it does not exist.
__device__ __forceinline__ int64_t row_index(const Geometry& geometry, const Block& block, int heads, int row) {
  const int64_t token = token_of(geometry, block.rows, block, row_box(block), geometry.tiling.rows, row);
  return token < 0 ? -1 : (block.batch * block.rows.tokens() + token) * heads + block.head;
}

// As token_of, for many tokens of one box: what does not depend on the token is computed once.
struct BoxTokens {
  int64_t before;    // tokens of the batches before this one
  int first;         // index of the box's first token, whether it exists or not
  int step[kAxes];   // to the index of the next token along an axis
  int count[kAxes];  // tokens that exist along it

  // Of `total` tokens in a row, those from `start` on.
  __device__ __forceinline__ BoxTokens(const Block& block, int total, int start)
      : before(block.batch * total), first(start), step{0, 0, 1}, count{1, 1, total - start} {}

  __device__ __forceinline__ BoxTokens(const Geometry& geometry, const Grid& grid, const Block& block, const Box& box)
      : before(block.batch * grid.tokens()), first(0) {
    int stride = 1;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const int dilation = geometry.problem.axis[axis].dilation;
      first += (box.start[axis] * dilation + block.axis[axis].group - grid.first[axis]) * stride;
      step[axis] = dilation * stride;
      count[axis] = box.stop[axis] - box.start[axis];
      stride *= grid.count[axis];
    }
  }

  // Index of token `number` of the box; `exists` turns false where there is none.
  __device__ __forceinline__ int index(const int (&log2)[kAxes], int number, bool& exists) const {
    int token = first;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const int inside = inside_box(log2, number, axis);
      exists = exists && inside < count[axis];
      token += inside * step[axis];
    }
    return token;
  }
};

// The features of one head of an operand, of the tokens of one batch.
template <class Element>
struct HeadFeatures {
  const Element* data;   // of the first token
  int stride, features;  // values from token to token, and how many of them count
};

// Copies one chunk of a token value by value: rows that are no whole number of chunks. Zeros where there is nothing.
template <class Tile, class Element>
__device__ __forceinline__ void copy_chunk(Tile tile, const HeadFeatures<Element>& head, const BoxTokens& tokens,
                                           const int (&log2)[kAxes], int row, int chunk) {
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(Element));
  bool exists = true;
  const int token = tokens.index(log2, row, exists), feature = chunk * kPerChunk;
  const Element* from = head.data + static_cast<int64_t>(token) * head.stride + feature;
  auto* to = reinterpret_cast<Element*>(tile.chunk(row, chunk));
#pragma unroll 1
  for (int i = 0; i < kPerChunk; ++i) {
    if (exists && feature + i < head.features) {
      to[i] = from[i];
    } else {
      narrow(to[i], 0.f);
    }
  }
}

// How the threads of a block share the chunks of kCount tokens: side by side along a row, then along rows.
template <class Shape, int kCount>
struct LoadingThreads {
  static constexpr int kChunks = Shape::kRowBytes / 16;
  static constexpr int kAcross = kChunks < Shape::kThreads ? kChunks : Shape::kThreads;
  static constexpr int kDown = Shape::kThreads / kAcross;
  static constexpr int kTokens = kCount / kDown, kSteps = kChunks / kAcross;  // of one thread
  // Tokens at a time, not to need too many registers.
  static constexpr int kMost = Shape::kRowBytes > 256 ? 1 : Shape::kWarps == 1 ? 2 : 4;
  static constexpr int kGroup = kTokens < kMost ? kTokens : kMost;
};

// Starts copying `kCount` tokens of a box, for one or two operands that have these tokens: the features from
// `first_feature` on, a multiple of those in 16 bytes. Zeros for missing tokens and features.
template <class Shape, int kCount, int kOperands>
__device__ __forceinline__ void load_tokens(const BoxTokens& tokens, const int (&log2)[kAxes],
                                            const Operand (&operand)[kOperands], int head,
                                            const typename Shape::Tile (&tile)[kOperands], int first_feature = 0) {
  using Element = typename Shape::Element;
  using Threads = LoadingThreads<Shape, kCount>;
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(Element)), kGroup = Threads::kGroup;
  const int across = static_cast<int>(threadIdx.x) % Threads::kAcross;
  const int down = static_cast<int>(threadIdx.x) / Threads::kAcross;
#pragma unroll 1
  for (int begin = 0; begin < Threads::kTokens; begin += kGroup) {
    int token[kGroup];
    bool exists[kGroup];
    const auto row_of_token = [&](int number) { return down + number * Threads::kDown; };
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      exists[i] = true;
      token[i] = tokens.index(log2, row_of_token(begin + i), exists[i]);
      if (!exists[i]) token[i] = 0;  // a legal address, never read
    }
#pragma unroll
    for (int which = 0; which < kOperands; ++which) {
      const Operand& from = operand[which];
      const HeadFeatures<Element> features{
          static_cast<const Element*>(from.data) + (tokens.before * from.heads + head) * from.features + first_feature,
          from.heads * from.features, from.features - first_feature};
#pragma unroll
      for (int step = 0; step < Threads::kSteps; ++step) {
        const int chunk = across + step * Threads::kAcross, feature = chunk * kPerChunk;
        const int left = features.features - feature;
        const Element* base = features.data + (left > 0 ? feature : 0);
        if (from.chunked) {
#pragma unroll
          for (int i = 0; i < kGroup; ++i)
            cp_async16(tile[which].address(row_of_token(begin + i), chunk),
                       base + static_cast<int64_t>(token[i]) * features.stride, exists[i] && left > 0);
        } else {
#pragma unroll 1
          for (int number = begin; number < begin + kGroup; ++number)
            copy_chunk(tile[which], features, tokens, log2, row_of_token(number), chunk);
        }
      }
    }
  }
}

// Starts copying the block's own tokens, of one or two operands: the features from `first_feature` on.
template <class Shape, int kOperands>
__device__ __forceinline__ void load_rows(const Geometry& geometry, const Block& block,
                                          const Operand (&operand)[kOperands],
                                          const typename Shape::Tile (&tile)[kOperands], int first_feature = 0) {
  load_tokens<Shape, Shape::kRows>(BoxTokens(geometry, block.rows, block, row_box(block)), geometry.tiling.rows,
                                   operand, block.head, tile, first_feature);
}

// Starts copying a box of the block's columns, as one group.
template <class Shape>
__device__ __forceinline__ void load_box(const Geometry& geometry, const Block& block, const Box& box,
                                         const Operand (&operand)[2], int head, const typename Shape::Tile (&tile)[2]) {
  load_tokens<Shape, Shape::kColumns>(BoxTokens(geometry, block.columns, block, box), geometry.tiling.columns, operand,
                                      head, tile);
  cp_async_commit();
}

}  // namespace jax_na::cuda
