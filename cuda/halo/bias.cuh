// SPDX-License-Identifier: Apache-2.0
// The gradient of the bias in the halo kernel of the queries' gradient.
//
// A block has the queries of its own heads only, and each warp adds their dS to a table of its own, of which every
// group of four lanes, which share a row, has a copy: [heads][places][8] numbers. So no two lanes add to the same
// place at a time, and the order of all sums is always the same.
#pragma once

#include <stdint.h>

#include "common/problem.h"
#include "cuda/block/fragment.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/halo/config.h"
#include "cuda/halo/tables.cuh"
#include "cuda/ptx/sm80.cuh"

namespace jax_na::cuda {

// A part of drpb, of one head, and which one is a warp's own.
__device__ __forceinline__ float* halo_slot(const BackwardParams& params, int part, int head) {
  return params.drpb + (int64_t{part} * params.query.heads + head) * bias_entries(params.geometry.problem);
}
__device__ __forceinline__ int own_halo_part(const BackwardParams& params) {
  return static_cast<int>(blockIdx.x) % params.drpb_blocks * kHaloWarps + static_cast<int>(threadIdx.x) / 32;
}

template <class Shape>
struct HaloBias {
  const HaloTables<Shape>& tables;
  int thread;

  __device__ __forceinline__ int lane() const { return thread % 32; }
  __device__ __forceinline__ int entries() const { return bias_entries(tables.problem()); }

  // The table of a head of this block.
  __device__ __forceinline__ float* table(int in_row) const {
    const int each = kHaloBiasCopies * halo_places(entries());
    return tables.template at<float>(tables.p.layout.drpb) + (thread / 32 * Shape::kHeads + in_row) * each;
  }

  // By all threads; nobody adds before the next block_sync().
  __device__ __forceinline__ void begin() const {
    float* mine = table(0);
    for (int i = lane(); i < Shape::kHeads * kHaloBiasCopies * halo_places(entries()); i += 32) mine[i] = 0;
  }

  // Adds dS of a part of the box. What a query does not see is masked, whatever its dS.
  __device__ __forceinline__ void add(const typename Shape::Scores& dscores, const uint32_t (&visible)[2], int part,
                                      int in_row) const {
    const HaloLayout& layout = tables.p.layout;
    const int* columns = tables.template at<int>(layout.bias_columns) + part * Shape::kColumns + first_column(lane());
    const int* of_rows = tables.template at<int>(layout.bias_rows) + thread / 32 * 16 + lane() / 4;
    float* const mine = table(in_row) + lane() / 4;
    const int masked = kHaloBiasCopies * (entries() + lane() % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_row = of_rows[8 * half];
#pragma unroll
      for (int first = 0; first < Shape::kColumnTiles; first += kTiles) {
        // Keys of one query have different entries: all can be read before the first is written.
        float sums[2 * kTiles];
        int places[2 * kTiles];
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          const int column = 2 * first + i;
          if (column >= 2 * Shape::kColumnTiles) continue;
          const bool is_seen = visible[half] >> column & 1;
          places[i] = is_seen ? kHaloBiasCopies * (columns[8 * (column / 2) + column % 2] + of_row) : masked;
          sums[i] = mine[places[i]] + (is_seen ? dscores[0][column / 2][2 * half + column % 2] : 0);
        }
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i)
          if (2 * first + i < 2 * Shape::kColumnTiles) mine[places[i]] = sums[i];
      }
      warp_sync();
    }
  }

  // Completes the parts of drpb of this block: those of its warps, and those that no block has.
  __device__ __forceinline__ void end(int first_head) const {
    const BackwardParams& params = tables.p.call;
    const int heads = min(Shape::kHeads, params.query.heads - first_head), count = entries();
    const int own = own_halo_part(params), parts = params.drpb_blocks * kHaloWarps;
    for (int i = lane(); i < heads * count; i += 32) {
      const int head = i / count, entry = i % count;
      const float* copies = table(head) + kHaloBiasCopies * entry;
      float sum = 0;
      for (int copy = 0; copy < kHaloBiasCopies; ++copy) sum += copies[copy];
      halo_slot(params, own, first_head + head)[entry] = sum;
      if (own >= kHaloWarps) continue;
      for (int unused = parts + own; unused < params.drpb_parts; unused += kHaloWarps)
        halo_slot(params, unused, first_head + head)[entry] = 0;
    }
  }

 private:
  static constexpr int kTiles = 4;  // of columns, that are added at once
};

}  // namespace jax_na::cuda
