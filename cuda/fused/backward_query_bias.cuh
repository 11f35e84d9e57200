// SPDX-License-Identifier: Apache-2.0
// Gradients of the queries and of the bias: the kernel of backward_query.cuh, which adds up dS besides.
//
//     d_rpb[key - query] = sum of dS over the queries
//
// The bias has few entries, and all queries of a head add to them. So a block takes many tiles of a head, one after the
// other, and each of its warps has a table of its own, a part of drpb; the caller adds the parts. A warp adds up its dS
// in strips (geometry/strip.cuh), eight rows of which each lane has one. All lanes write their dS of a strip to shared
// memory, to places [distance][row]: each value has its own, for a row has no two columns at one distance, and places
// without a pair stay zero. Then a lane has a distance, adds up its eight rows, and adds the sum to the warp's table.
// No two threads add to the same entry without a barrier between them: results do not depend on the order of execution.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/shape.cuh"
#include "cuda/block/store.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/fused/backward_query.cuh"
#include "cuda/fused/config.h"
#include "cuda/fused/params.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/geometry/strip.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// Shared memory behind that of the queries: the block's tile, where the registers have no room for it and for what the
// compiler would keep to find the next one; the places of each warp's strip; the entry of each distance; the warps'
// tables, where `params.tables_in_shared`. Wide rows leave no room for the places and tables: there the places lie in
// the buffer of the values, which nobody needs when dS is known.
template <class Shape>
struct BiasShared {
  using Query = BackwardQueryShared<Shape>;
  static constexpr bool kBorrows = Shape::kWarps > 1 && Shape::kRowBytes > 256;
  static constexpr bool kSharesTile = Shape::kWarps > 1 || Shape::kRowBytes > 512;
  static constexpr int kTile = (Query::kBytes + 15) / 16 * 16;
  static constexpr int kEnd = kTile + (kSharesTile ? (static_cast<int>(sizeof(Block)) + 15) / 16 * 16 : 0);
  static constexpr int kPlaces = kBorrows ? Query::kValue : kEnd;
  static constexpr int kMostDistances = most_distances(Shape::kRowBytes, Shape::kRows);

  static __device__ __forceinline__ Block& tile() { return *reinterpret_cast<Block*>(dynamic_shared() + kTile); }

  // Bytes of the places of a warp. Lanes take two distances at a time.
  static JAX_NA_HD constexpr int padded(int distances) { return (distances + 63) / 64 * 64; }
  static JAX_NA_HD constexpr int place_bytes(int distances) {
    return padded(distances) * kStripRows * static_cast<int>(sizeof(float));
  }
  static JAX_NA_HD constexpr int entries(int distances) {
    return kEnd + (kBorrows ? 0 : Shape::kWarps * place_bytes(distances));
  }
  static JAX_NA_HD constexpr int tables(int distances) {
    return entries(distances) + padded(distances) * static_cast<int>(sizeof(int));
  }

  static_assert(tables(kMostDistances) <= kSharedLimit);
  static_assert(!kBorrows || (Shape::kStages == 1 &&
                              Shape::kWarps * place_bytes(kMostDistances) <= Query::kWindows - Query::kValue));
};

// Four neighbouring places, read at once.
struct alignas(16) Places {
  float at[4];

  __device__ __forceinline__ float sum() const { return (at[0] + at[1]) + (at[2] + at[3]); }
};

// The entry of a bias table that lies as far from its first one as a row of a tile of queries does from the first row.
JAX_NA_HD constexpr int entry_of_row(const Geometry& geometry, int row) {
  const Strides stride = bias_strides(geometry.problem);
  int entry = 0;
  for (int axis = 0; axis < kAxes; ++axis) entry += inside_box(geometry.tiling.rows, row, axis) * stride.of[axis];
  return entry;
}

// What a warp adds up.
template <class Shape>
struct BiasSums {
  using Shared = BiasShared<Shape>;

  const BackwardParams& params;
  int padded;               // distances
  float* places;            // [2][padded][4]: of rows 0 to 3 of a strip, and of rows 4 to 7
  int* entries;             // [padded], of the block
  float *slot, *in_shared;  // tables; the second one only has_table()
  int first_entry;          // of the warp's first row, and a key at the place of the tile's first row

  // Of the thread of a block of the kernel.
  __device__ __forceinline__ BiasSums(const BackwardParams& params_, uint32_t thread, uint32_t block)
      : params(params_) {
    const Problem& problem = params.geometry.problem;
    const int warp = Shape::kWarps == 1 ? 0 : static_cast<int>(thread / 32), number = distances(params.strip);
    char* shared = dynamic_shared();
    padded = Shared::padded(number);
    places = reinterpret_cast<float*>(shared + Shared::kPlaces + warp * Shared::place_bytes(number));
    entries = reinterpret_cast<int*>(shared + Shared::entries(number));
    slot = BiasPart(params, block).slot(params, Shape::kWarps, warp);
    in_shared = reinterpret_cast<float*>(shared + Shared::tables(number)) + warp * bias_entries(problem);
    const Strides stride = bias_strides(problem);
    first_entry = -entry_of_row(params.geometry, 16 * warp);
    for (int axis = 0; axis < kAxes; ++axis) first_entry += (problem.axis[axis].kernel_size - 1) * stride.of[axis];
  }

  __device__ __forceinline__ bool has_table() const { return !Shared::kBorrows && params.tables_in_shared; }
  __device__ __forceinline__ float* table() const { return has_table() ? in_shared : slot; }

  // By all threads of the block; nobody uses the sums before the next block_sync().
  __device__ __forceinline__ void begin() const {
    const int number = distances(params.strip), lane = static_cast<int>(threadIdx.x) % 32;
    const Strides stride = bias_strides(params.geometry.problem);
#pragma unroll 1
    for (int i = threadIdx.x; i < padded; i += Shape::kThreads)
      entries[i] = i < number ? distance_entry(params.strip, stride, i) : 0;
    if (!Shared::kBorrows) clear_places(lane);
    for (int i = lane; i < bias_entries(params.geometry.problem); i += 32) table()[i] = 0;
  }

  // By all threads of the warp, which have used the sums for the last time: adds the queries whose LSE is not exact, if
  // there are some, and completes drpb.
  template <bool kIsExtended>
  __device__ __forceinline__ void end(bool some_inexact) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    char* room = dynamic_shared() + Shared::Query::kQuery + 16 * warp * Shape::kRowBytes;
    warp_sync();
    if (warp_any(some_inexact))
      add_inexact_rows<typename Shape::Element, kIsExtended>(params, room, 16 * warp, table());
    warp_sync();
    const int count = bias_entries(params.geometry.problem), unused = params.drpb_blocks * Shape::kWarps + warp;
    const BiasPart mine(params, blockIdx.x);
#pragma unroll 1
    for (int i = lane; i < count; i += 32) {
      if (has_table()) slot[i] = in_shared[i];
      if (mine.part == 0 && unused < params.drpb_parts) mine.slot(params, 0, unused)[i] = 0;
    }
  }

  // Adds the dS of the warp's rows and of a box of the grid.
  __device__ __forceinline__ void add(const Warp<Shape>& warp, const Box& box,
                                      const typename Shape::Scores& dscores) const {
    static_assert(Shape::kRowTiles == 1);
    if (Shared::kBorrows) {
      block_sync();  // nobody reads the values
      clear_places(warp.lane);
      warp_sync();
    }
    const Strides stride = bias_strides(params.geometry.problem);
    int entry = first_entry;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis)
      entry += (box.start[axis] - warp.block.axis[axis].origin) * stride.of[axis];
    for_each_own<Shape::kThreadRows>([&](Own row) {
      write(warp.lane, row, dscores);
      warp_sync();
      const int strip_entry = entry - row * params.entries_of_strip;
      if (has_table()) {
        add_distances(warp.lane, in_shared + strip_entry);
      } else {
        add_distances(warp.lane, slot + strip_entry);
      }
      warp_sync();
    });
  }

 private:
  __device__ __forceinline__ void clear_places(int lane) const {
    for (int i = lane; i < 2 * padded; i += 32) reinterpret_cast<Places*>(places)[i] = {};
  }

  // Where a lane's first column of its row in a strip belongs.
  __device__ __forceinline__ float* first_place(int lane) const {
    const int row = lane / 4;
    return places + 4 * (row / 4 * padded + distance_number(params.strip, row, first_column(lane))) + row % 4;
  }

  // Writes a lane's dS of the strip of which `row` is its row.
  __device__ __forceinline__ void write(int lane, Own row, const typename Shape::Scores& dscores) const {
    float* const first = first_place(lane);
    for_each_own<Shape::kThreadColumns>([&](Own column) {
      int distance = 0;  // from the lane's first column on
#pragma unroll
      for (int bit = 0; bit < kMostColumnBits; ++bit)
        if (column_step(column) >> bit & 1) distance += params.strip.of_column[bit];
      first[4 * distance] = at(dscores, row, column);
    });
  }

  // Adds the sums of a strip to a table, whose entries are relative to that of the strip's first row and the box's
  // first column. A distance of pairs that are all masked may have no entry; its sum is 0.
  __device__ __forceinline__ void add_distances(int lane, float* to) const {
    const Places* const near = reinterpret_cast<const Places*>(places);
    int first = lane;
#pragma unroll 1
    do {
      const int second = first + 32;
      const float sums[2] = {near[first].sum() + near[padded + first].sum(),
                             near[second].sum() + near[padded + second].sum()};
      const int entry[2] = {entries[first], entries[second]};
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (sums[i] != 0) to[entry[i]] += sums[i];
      first += 64;
    } while (first < padded);
  }
};

// Stores the rows of dquery of a warp; those that are not finite, and those whose LSE is not exact, are suspects.
template <bool kIsExtended, class Shape>
__device__ __forceinline__ void store_query_gradient(const BackwardParams& params, const Warp<Shape>& warp,
                                                     uint32_t inexact,
                                                     const float (&dquery)[Shape::kRowTiles][Shape::kFeatures / 8][4]) {
  const Block& block = warp.block;
  float scale[Shape::kThreadRows];
  for_each_own<Shape::kThreadRows>(
      [&](Own row) { scale[row] = block.complete && (inexact >> row & 1) == 0 ? params.scale : NAN; });
  const Suspects suspects = store_rows(warp, {params.dquery, params.query.heads, params.query.features}, dquery, scale);
  char* room = dynamic_shared() + BackwardQueryShared<Shape>::kQuery + warp.first_row * Shape::kRowBytes;
  if (block.complete && suspects.some())
    for_each_suspect(params.geometry, block, params.query.heads, suspects, [&](int64_t row) {
      find_query_gradient<typename Shape::Element, kIsExtended>(params, room, row);
    });
}

// Called, so that the compiler keeps nothing of it for the next tile.
template <class Shape>
__device__ __noinline__ void find_shared_tile(const BackwardParams& params, uint32_t tile, Block& block) {
  Block found;
  find_block<Side::kQueries>(params.geometry, BiasPart(params, blockIdx.x).index(params, tile), params.query.heads,
                             found);
  block = found;
}
// By all threads of a block, when they need the last tile no more; false for a superfluous one.
template <class Shape>
__device__ __forceinline__ bool find_tile(const BackwardParams& params, uint32_t tile, Block& block) {
  if constexpr (!BiasShared<Shape>::kSharesTile)
    return find_block<Side::kQueries>(params.geometry, BiasPart(params, blockIdx.x).index(params, tile),
                                      params.query.heads, block);
  if (threadIdx.x == 0) find_shared_tile<Shape>(params, tile, block);
  block_sync();
  bool exists = true;
#pragma unroll
  for (int axis = 0; axis < kAxes; ++axis) exists = exists && block.axis[axis].rows.stop > block.axis[axis].rows.start;
  return exists;
}

template <class Shape, bool kIsExtended>
__global__ void __launch_bounds__(Shape::kThreads, Shape::min_blocks(kIsExtended))
    fused_backward_query_bias_kernel(const __grid_constant__ BackwardParams params) {
  BiasSums<Shape>(params, threadIdx.x, blockIdx.x).begin();
  bool some_inexact = false;
#pragma unroll 1
  for (uint32_t tile = blockIdx.x % params.drpb_blocks; tile < bias_tiles(params); tile += params.drpb_blocks) {
    block_sync();  // nobody reads the tile before
    Block in_registers;
    Block& block = BiasShared<Shape>::kSharesTile ? BiasShared<Shape>::tile() : in_registers;
    if (!find_tile<Shape>(params, tile, block)) continue;
    const Warp<Shape> warp = backward_query_warp<Shape>(params, block);
    float dquery[Shape::kRowTiles][Shape::kFeatures / 8][4] = {};
    const BiasSums<Shape> sums(params, threadIdx.x, blockIdx.x);
    const uint32_t inexact = for_each_score_gradient<Shape, kIsExtended, true>(
        params, warp,
        [&](const typename Shape::Scores& dscores, typename Shape::Tile key, const Box& box, bool of_grid) {
          warp.add_weighted(dquery, dscores, key);
          if (of_grid) sums.add(warp, box, dscores);
        });
    some_inexact = some_inexact || inexact != 0;
    store_query_gradient<kIsExtended>(params, warp, inexact, dquery);
    if (!block.complete && threadIdx.x == 0) BiasSums<Shape>(params, threadIdx.x, renewed(blockIdx.x)).table()[0] = NAN;
  }
  BiasSums<Shape>(params, threadIdx.x, renewed(blockIdx.x)).template end<kIsExtended>(some_inexact);
}

}  // namespace jax_na::cuda
