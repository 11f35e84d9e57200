// SPDX-License-Identifier: Apache-2.0
// What the GEMM kernels share: rows of weights in memory, the same rows staged in shared memory, and where in them the
// fragments of a warp's products lie.
//
// The slot of a pair is row-major over the axes in (key - start of the query's window). So with the distances between
// neighbours along each axis it is a sum of one part per axis, and of one part per row and one per column.
#pragma once

#include "cuda/block/scores.cuh"
#include "cuda/block/store.cuh"
#include "cuda/gemm/config.h"

namespace jax_na::cuda {

struct GemmParams {
  Geometry geometry;
  Operand x, y;
  const void* weights;
  void* out;
  Staging staging;
  int slot_stride[kAxes];
  int pitch;
  int slices;  // of the features
};

// Blocks that a multiprocessor shall have room for. What limits these kernels is memory, so the more warps wait for it
// the better: 16 leave 128 registers to a thread, 12 leave 168, and 8, for the sums of many features, 255.
template <class S, Pass operation>
constexpr int min_blocks() {
  constexpr bool kSums = operation != Pass::kQk;
  if (S::kRowBytes == kWidestRow) return (kSums ? 8 : 12) / S::kWarps;
  return (S::kRowBytes == 128 && operation == Pass::kAv ? 12 : 16) / S::kWarps;
}

// Slices of the features: only rows of the widest kernels can be too narrow.
template <class S>
__device__ __forceinline__ int slices_of(const GemmParams& p) {
  return S::kRowBytes == kWidestRow ? p.slices : 1;
}

// A vector is what moves in one piece, 16 bytes.
struct alignas(16) Vector {
  uint32_t words[4];
};
template <class T>
__device__ __forceinline__ constexpr int per_vector() {
  return 16 / static_cast<int>(sizeof(T));
}
template <class T>
__device__ __forceinline__ int aligned_down(int slot) {
  return slot & ~(per_vector<T>() - 1);
}

// Lanes that move one row of weights side by side.
constexpr int kLanesPerRow = 8, kRowsAtOnce = 32 / kLanesPerRow;

// Distance of slots, or of parts of one, from a difference of positions.
__device__ __forceinline__ int slot_of(const GemmParams& p, const int (&to)[kAxes], const int (&from)[kAxes]) {
  int slot = 0;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) slot += (to[a] - from[a]) * p.slot_stride[a];
  return slot;
}
// The part of token `i` of a tile or box.
__device__ __forceinline__ int slot_inside(const GemmParams& p, const int (&log2)[kAxes], int i) {
  int slot = 0;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) slot += inside_box(log2, i, a) * p.slot_stride[a];
  return slot;
}

// Slots of a row whose keys come before `key`, in the order of a walk by steps along `axis` (for -1: none). `start` is
// where the row's window starts.
__device__ __forceinline__ int slots_before(const GemmParams& p, int axis, const int (&key)[kAxes],
                                            const int (&start)[kAxes]) {
  int slots = 0;
  bool inside = true;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    const int distance = key[a] - start[a], w = p.geometry.problem.axis[a].kernel_size;
    if (a > axis || !inside) continue;
    slots += min(max(distance, 0), w) * p.slot_stride[a];
    inside = distance >= 0 && distance < w;
  }
  return slots;
}

// Whether a phase of the walk ends with a step.
__device__ __forceinline__ bool starts_phase(const GemmParams& p, const Walk& before, const Walk& after) {
  bool changed = false;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) changed = changed || (a <= p.staging.axis && before.at[a] != after.at[a]);
  return changed;
}

// What a row sees, from store_windows.
template <class S>
__device__ __forceinline__ void read_windows(const int* windows, int row, Range (&seen)[kAxes]) {
#pragma unroll
  for (int a = 0; a < kAxes; ++a) seen[a] = {windows[a * S::kRows + row], windows[(kAxes + a) * S::kRows + row]};
}
template <class S>
__device__ __forceinline__ void read_starts(const int* windows, int row, int (&start)[kAxes]) {
#pragma unroll
  for (int a = 0; a < kAxes; ++a) start[a] = windows[a * S::kRows + row];
}

// Where queries stay: where in the staged rows the first slot of a box would be, for this thread's rows. The box starts
// at `start`, its phase started at `phase`.
template <class S, class Weight>
__device__ __forceinline__ void staged_rows(const GemmParams& p, const int* windows, const int (&start)[kAxes],
                                            const int (&phase)[kAxes], int first_row, int lane,
                                            int (&result)[S::kRowTiles][2]) {
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * m + 8 * half + lane / 4;
      int seen[kAxes];
      read_starts<S>(windows, row, seen);
      result[m][half] = row * p.staging.slots + slot_of(p, start, seen) -
                        aligned_down<Weight>(slots_before(p, p.staging.axis, phase, seen));
    }
}

// Calls body(c, e, slots from the first column of a box) for this thread's columns, number e of tile c.
template <class S, class Body>
__device__ __forceinline__ void for_each_column(const GemmParams& p, int lane, const Body& body) {
  const Tiling& t = p.geometry.tiling;
#pragma unroll
  for (int c = 0; c < S::kColumnTiles; ++c)
#pragma unroll
    for (int e = 0; e < 2; ++e)  // the number of a column is a sum of different powers of two, so its parts add up
      body(c, e, slot_inside(p, t.columns, 8 * c) + slot_inside(p, t.columns, 2 * (lane % 4) + e));
}

// Index of row `row` of the tile in [batch, tokens, heads]; -1 if it does not exist.
__device__ __forceinline__ int64_t row_index(const GemmParams& p, const Block& b, int heads, int row) {
  const Geometry& g = p.geometry;
  const int64_t token = token_of(g, b.rows, b, row_box(b), g.tiling.rows, row);
  return token < 0 ? -1 : (b.batch * b.rows.tokens() + token) * heads + b.head;
}

// The columns of a box that this thread's rows see: bit 8 c + e is its column of tile c. False if the warp sees none.
template <class S>
using ColumnBits = std::conditional_t<(S::kColumns > 32), uint64_t, uint32_t>;
template <class S>
__device__ __forceinline__ bool find_columns(const Geometry& g, const int* windows, const int (&start)[kAxes],
                                             int first_row, int lane, ColumnBits<S> (&bits)[S::kRowTiles][2]) {
  bool some = false;
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Range seen[kAxes];
      read_windows<S>(windows, first_row + 16 * m + 8 * half + lane / 4, seen);
      bits[m][half] = visible_columns<ColumnBits<S>>(g.tiling, g.repeats, seen, start) >> (2 * (lane % 4));
      some = some || bits[m][half] != 0;  // of other threads' columns too, but of the same rows
    }
  return warp_any(some);
}

}  // namespace jax_na::cuda
