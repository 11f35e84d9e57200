// SPDX-License-Identifier: Apache-2.0
// Which GEMM kernels exist, and how rows of weights are staged in shared memory. Plain C++: the planner and the tests
// read it too.
//
// Two kernels per operation, element type and width of a row: one warp with 16 rows for windows of a few tokens per
// axis, four warps with 16 rows each for larger ones. Features that do not fit into the widest row come in slices.
#pragma once

#include "common/problem.h"
#include "cuda/fused/config.h"

namespace jax_na::cuda {

constexpr int kGemmStages = 2;
constexpr int kGemmRows[] = {16, 64};
constexpr int gemm_columns(int rows) { return rows == 16 ? 32 : 64; }

// Features that a row in shared memory has room for.
constexpr int kWidestRow = 256;
constexpr int gemm_bucket(int element_bytes, int features) {
  int bucket = 32;
  while (bucket < features && bucket * element_bytes < kWidestRow) bucket *= 2;
  return bucket;
}

// One GEMM kernel.
struct GemmShape {
  Pass operation;
  int element_bytes, features;  // of a row in shared memory
  int rows, columns;
  bool sliced;  // there are more features than that

  constexpr int row_bytes() const { return features * element_bytes; }
  constexpr int window_bytes() const { return rows * 2 * kAxes * static_cast<int>(sizeof(int)); }
  // qk writes float32, because these are logarithms of weights; av and inverse read what enters their products.
  constexpr int weight_bytes() const { return operation == Pass::kQk ? 4 : element_bytes; }
  constexpr int vector() const { return 16 / weight_bytes(); }  // weights that move together

  // Shared memory beside the staged weights.
  constexpr int fixed_bytes() const {
    const int tiles = kGemmStages * columns * row_bytes() + window_bytes();
    if (operation == Pass::kQk) return tiles + (sliced ? kGemmStages : 1) * rows * row_bytes();
    return operation == Pass::kAv ? tiles : tiles + kGemmStages * columns * static_cast<int>(sizeof(int));
  }
};

constexpr GemmShape gemm_shape(Pass operation, int element_bytes, int features, int rows) {
  const int bucket = gemm_bucket(element_bytes, features);
  return {operation, element_bytes, bucket, rows, gemm_columns(rows), features > bucket};
}

// Rows of weights in shared memory. Where queries stay, a row is a query of the tile; it holds the slots of one phase
// of the walk over boxes of keys. A phase is the boxes between two steps along `axis`, or the whole walk (-1). Boxes
// have an extent of 1 along the axes before it, so the slots of a phase are one range of a row. Where keys stay, a row
// is a query of the box, and it holds the slots of the tile's keys.
struct Staging {
  int axis;
  int slots;  // that a row has room for; 0 if there is no way
  int bytes;  // of shared memory, with all else
};

constexpr int round_up(int x, int multiple) { return ceil_div(x, multiple) * multiple; }

// Distance in a row of weights between neighbours along an axis.
constexpr int slot_stride(const Problem& p, int axis) {
  int stride = 1;
  for (int a = axis + 1; a < kAxes; ++a) stride *= p.axis[a].kernel_size;
  return stride;
}

// Room for so many neighbouring slots, wherever they begin.
constexpr int room(const Problem& p, int slots, int vector) {
  return min(round_up(slots + vector - 1, vector), round_up(p.pitch, vector));
}

constexpr Staging staging_of_tile(const GemmShape& s, const Problem& p, const int (&tile)[kAxes]) {
  int last = 0;  // slot of the tile's last key, if the first one's is 0
  for (int a = 0; a < kAxes; ++a) last += (min(tile[a], p.axis[a].kernel_size) - 1) * slot_stride(p, a);
  const int slots = room(p, last + 1, s.vector());
  const int64_t bytes = s.fixed_bytes() + int64_t{kGemmStages} * s.columns * slots * s.weight_bytes();
  return bytes <= kSharedLimit ? Staging{-1, slots, static_cast<int>(bytes)} : Staging{-1, 0, 0};
}

constexpr Staging staging_of_phases(const GemmShape& s, const Problem& p, const int (&box)[kAxes]) {
  constexpr int kComfortable = 56 << 10;  // leaves room for four blocks on a multiprocessor with 228 KB
  Staging found{-1, 0, 0};
  for (int axis = -1; axis < kAxes; ++axis) {
    const bool whole = axis < 0;
    const int across = whole ? 1 : min(box[axis], p.axis[axis].kernel_size);
    const int64_t needed = int64_t{across} * slot_stride(p, axis);
    if (needed < kSharedLimit) {
      const int slots = whole ? round_up(p.pitch, s.vector()) : room(p, static_cast<int>(needed), s.vector());
      const int copies = s.operation == Pass::kAv && !whole ? kGemmStages : 1;
      const int64_t bytes = s.fixed_bytes() + int64_t{copies} * s.rows * slots * s.weight_bytes();
      if (bytes <= kSharedLimit && (found.slots == 0 || bytes < found.bytes))
        found = {axis, slots, static_cast<int>(bytes)};
      if (bytes <= kComfortable) return found;
    }
    if (!whole && box[axis] > 1) break;
  }
  return found;
}

constexpr Staging make_staging(const GemmShape& s, const Problem& p, const int (&rows)[kAxes],
                               const int (&columns)[kAxes]) {
  return s.operation == Pass::kInverse ? staging_of_tile(s, p, rows) : staging_of_phases(s, p, columns);
}

}  // namespace jax_na::cuda
