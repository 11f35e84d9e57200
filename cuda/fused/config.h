// SPDX-License-Identifier: Apache-2.0
// Which fused kernels exist: how many rows stay in a block, how many columns are streamed per step, through how many
// buffers. Plain C++: the planner and the tests read it too.
//
// Three kernels per element type and width of a row in shared memory. Small: one warp with 16 rows, for windows of a
// few tokens per axis, where a larger tile would compute mostly what is masked. Medium: four warps with 16 rows each.
// Large, only forward: four warps with 32 rows each, which halves the reads of shared memory per product. A block may
// have 99 KB of shared memory on every GPU since compute capability 8.0 (8.6 and 12.0 have the least).
#pragma once

#include "common/call/operands.h"

namespace jax_na::cuda {

constexpr int kMostFeatures = 256;

// Features that a row in shared memory has room for; 0 when there is no kernel.
constexpr int feature_bucket(int head_dim, int value_dim) {
  const int features = head_dim > value_dim ? head_dim : value_dim;
  for (int bucket = 32; bucket <= kMostFeatures; bucket *= 2)
    if (features <= bucket) return bucket;
  return 0;
}

constexpr int kSmallRows = 16, kLargeRows = 128;
constexpr int kSharedLimit = 99 << 10, kSharedLimitHopper = 227 << 10;  // of any GPU, and of compute capability 9.0

// Four-byte rows of 256 features leave room for half of the rows only.
constexpr int medium_rows(int row_bytes) { return row_bytes <= 512 ? 64 : 32; }

// Calls with additional tokens or a mask of keys (extended) have medium kernels of their own: a second source of keys
// costs the small ones a tenth of their time.
constexpr bool has_shape(Pass pass, int row_bytes, int element_bytes, int rows, bool is_extended) {
  if (is_extended && pass != Pass::kBackwardKey) return rows == medium_rows(row_bytes);
  if (rows == kSmallRows || rows == medium_rows(row_bytes)) return true;
  return rows == kLargeRows && pass == Pass::kForward && element_bytes == 2 && row_bytes <= 256;
}

// As many as leave room in the registers for them and the sums of the rows' features, of which the keys' kernel has
// two.
constexpr int streamed_tokens(Pass pass, int row_bytes, int rows) {
  if (row_bytes > 512) return 16;
  const bool two_sums = pass == Pass::kBackwardKey;
  if (rows == kSmallRows) return row_bytes == 512 || (two_sums && row_bytes == 256) ? 16 : 32;
  return row_bytes == 512 || (row_bytes == 256 && (two_sums || rows == kLargeRows)) ? 32 : 64;
}

// Two buffers overlap copying with computing; one where two do not fit, or where more blocks on a multiprocessor do the
// same.
constexpr int stages(Pass pass, int row_bytes, int rows) {
  if (rows == kSmallRows) return row_bytes <= 128 ? 2 : 1;
  return row_bytes <= (pass == Pass::kForward ? 512 : 256) ? 2 : 1;
}

// Blocks that share the features of the same keys: the sums of wide rows would not fit into the registers of one.
constexpr int key_parts(int row_bytes) { return row_bytes > 256 ? row_bytes / 256 : 1; }

// The forward kernel for compute capability 9.0, of 2-byte types: two warpgroups with 64 rows each. Sums of 256
// features leave room in the registers for the scores of 64 columns only.
constexpr int kHopperRows = 128;
constexpr int hopper_columns(int features) { return features <= 128 ? 128 : 64; }

// With a bias, the kernel of the queries keeps dS by distance in shared memory (geometry/strip.cuh): so many distances
// at most. More have tiles alone that are long where the other side's are short.
constexpr int most_distances(int row_bytes, int rows) { return rows == 64 && row_bytes == 512 ? 128 : 256; }

// There two buffers and so many distances do not fit.
constexpr int bias_stages(int row_bytes, int rows) {
  return rows == 64 && row_bytes == 256 ? 1 : stages(Pass::kBackwardQuery, row_bytes, rows);
}

// Largest table of a warp in shared memory: as large ones would take the room that other blocks need.
constexpr int kMostTableBytes = 4 << 10;

}  // namespace jax_na::cuda
