// SPDX-License-Identifier: Apache-2.0
// Fused attention, forward, for compute capability 9.0 (wgmma and tensor copies); the formula is that of
// fused/forward.cuh.
//
// A block has 128 queries and three warpgroups. Two threads of the first one copy keys and values, see ring.cuh; each
// of the others computes 64 rows. In step j such a warpgroup starts the products
//     S(j) = Q K(j)^T   and   O += P(j-1) V(j-1)
// and turns S(j) into P(j) while the second of them is under way. The two take turns to start their products, so that
// one computes exponentials while the tensor cores work for the other.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/problem.h"
#include "common/window.h"
#include "cuda/block/block.cuh"
#include "cuda/block/fragment.cuh"
#include "cuda/block/scores.cuh"
#include "cuda/block/suspects.cuh"
#include "cuda/block/tokens.cuh"
#include "cuda/block/warp.cuh"
#include "cuda/fused/rows.cuh"
#include "cuda/geometry/owned_columns.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/ptx/sm80.cuh"
#include "cuda/ptx/sm90.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/ring.cuh"
#include "cuda/sm90/scores.cuh"

namespace jax_na::cuda {

struct HopperForwardParams {
  CopiedOperand query, key, value;
  Geometry geometry;
  OwnedColumns owned;
  void* out;   // [batch, queries, heads, value_dim]
  float* lse;  // [batch, queries, heads]
};

// The descriptor of a matrix so many bytes later; shared memory ends before its address would overflow.
__device__ __forceinline__ uint64_t moved(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Starts S = Q K^T: the 64 rows of the query tile from `rows` on, and all tokens of the key tile.
template <class Shape>
__device__ __forceinline__ void start_scores(float (&scores)[Shape::kColumns / 2], uint32_t rows, uint32_t keys) {
  const uint64_t left = matrix_descriptor(rows, 16, Shape::kGroupBytes, Shape::kSwizzle);
  const uint64_t right = matrix_descriptor(keys, 16, Shape::kGroupBytes, Shape::kSwizzle);
#pragma unroll
  for (int k = 0; k < Shape::kFeatures / 16; ++k) {
    const int panel = k * 16 / Shape::kPanelFeatures, inside = k * 32 % Shape::kRowBytes;  // in bytes of a row
    wgmma_ss<typename Shape::Element, Shape::kColumns, false>(
        scores, moved(left, panel * Shape::kRowPanelBytes + inside),
        moved(right, panel * Shape::kColumnPanelBytes + inside), k > 0);
  }
  wgmma_commit();
}

// Starts O += P V over all tokens of the value tile.
template <class Shape>
__device__ __forceinline__ void start_out(float (&out)[Shape::kFeatures / 2],
                                          const uint32_t (&weights)[Shape::kColumns / 16][4], uint32_t values) {
  const uint64_t right = matrix_descriptor(values, Shape::kColumnPanelBytes, Shape::kGroupBytes, Shape::kSwizzle);
#pragma unroll
  for (int k = 0; k < Shape::kColumns / 16; ++k)
    wgmma_rs<typename Shape::Element, Shape::kFeatures, true>(out, weights[k], moved(right, k * 16 * Shape::kRowBytes),
                                                              true);
  wgmma_commit();
}

// The turns of the two computing warpgroups to start products, 0 before 1 in every step from 1 on. A warpgroup's turn
// is a named barrier where it waits and the other one arrives.
template <class Shape>
struct Turns {
  int warpgroup, total;  // 0 or 1; steps

  __device__ __forceinline__ void take(int step) const {
    if (warpgroup == 1 || step > 1) named_barrier_sync(1 + warpgroup, 128 * Shape::kComputing);
  }
  __device__ __forceinline__ void pass(int step) const {
    if (warpgroup == 0 || step + 1 < total) named_barrier_arrive(2 - warpgroup, 128 * Shape::kComputing);
  }
};

// Where the results of a warp's 16 rows go: through the shared memory of its queries, which nobody reads any more, so
// that whole chunks of 16 bytes are written.
template <class Shape>
struct WarpResults {
  struct alignas(16) Chunk {
    uint32_t words[4];
  };
  static constexpr int kChunks = Shape::kFeatures / 8, kPanelChunks = Shape::kRowBytes / 16;

  const HopperForwardParams& params;
  const Warp<Shape>& warp;
  char* query;

  __device__ __forceinline__ char* chunk_of(int row, int chunk) const {
    const typename Shape::PanelTile panel{query + chunk / kPanelChunks * Shape::kRowPanelBytes};
    return panel.chunk(row, chunk % kPanelChunks);
  }

  // out = values * scale. Rows with a value that is not finite are suspects.
  __device__ __forceinline__ Suspects store(const float (&values)[Shape::kFeatures / 2], const float (&scale)[2],
                                            const float (&lse)[2]) const {
    const int lane = warp.lane;
    Finite finite[2];
#pragma unroll
    for (int pair = 0; pair < Shape::kFeatures / 4; ++pair) {
      const Own row{0, pair % 2};
      const float first = values[2 * pair] * scale[row], second = values[2 * pair + 1] * scale[row];
      finite[row].add(first);
      finite[row].add(second);
      reinterpret_cast<uint32_t*>(chunk_of(warp.row(row), pair / 2))[lane % 4] = Shape::Type::pack(first, second);
    }
    warp_sync();
    const Block& block = warp.block;
    const Problem& problem = params.geometry.problem;
    const int (&log2)[kAxes] = params.geometry.tiling.rows;
    const BoxTokens tokens(params.geometry, block.rows, block, row_box(block));
    const int64_t first_token = block.batch * block.rows.tokens();
#pragma unroll 1
    for (int i = lane; i < 16 * kChunks; i += 32) {
      const int row = warp.first_row + i / kChunks, chunk = i % kChunks;
      bool exists = chunk * 8 < problem.value_dim;
      const int64_t token = first_token + tokens.index(log2, row, exists);
      if (!exists) continue;
      auto* out = static_cast<typename Shape::Element*>(params.out) +
                  (token * params.query.heads + block.head) * problem.value_dim;
      reinterpret_cast<Chunk*>(out)[chunk] = *reinterpret_cast<const Chunk*>(chunk_of(row, chunk));
    }
    Suspects suspects{warp.first_row, 0};
    for_each_own<2>([&](Own row) {
      bool exists = true;
      const int64_t token = first_token + tokens.index(log2, warp.row(row), exists);
      if (!exists) return;
      if (lane % 4 == 0) params.lse[token * params.query.heads + block.head] = lse[row];  // one of four threads
      if (!finite[row].all()) suspects.rows |= 1u << row;
    });
    return suspects;
  }

  // Inlined: where functions are called, the compiler keeps the products of a warpgroup from overlapping.
  __device__ __forceinline__ void attend_again(const Suspects& suspects) const {
    using Element = typename Shape::Element;
    const Geometry& geometry = params.geometry;
    const auto features = [](const CopiedOperand& operand) { return static_cast<const Element*>(operand.data); };
    for_each_suspect(geometry, warp.block, params.query.heads, suspects, [&](int64_t row) {
      const AttentionOperands<Element> operands{placed(geometry, chunk_of(warp.first_row, 0)), features(params.query),
                                                features(params.key), features(params.value)};
      store_attention(operands, row, params.out, params.lse);
    });
  }
};

// The work of computing warpgroup 0 or 1.
template <class Shape>
__device__ __forceinline__ void attend(const HopperForwardParams& params, const Warp<Shape>& warp,
                                       const HopperShared<Shape>& shared, int warpgroup) {
  const Geometry& geometry = params.geometry;
  const Block& block = warp.block;
  Range inner[kAxes];
  warp.find_inner(inner);
  const TileRing<Shape> keys = shared.keys(), values = shared.values();
  const uint32_t query = shared.query() + warpgroup * Shape::kWarpgroupRows * Shape::kRowBytes;
  Walk walk = make_walk(geometry.tiling, block.axis);
  const int total = walk.total();
  const Turns<Shape> turns{warpgroup, total};

  RunningSoftmax softmax;
  float scores[Shape::kColumns / 2] = {}, out[Shape::kFeatures / 2] = {}, correction[2];
  uint32_t weights[Shape::kColumns / 16][4];
  // Scores of the box that `walk` is at become weights.
  const auto weigh = [&] {
    scale_scores(geometry, scores);
    int start[kAxes];
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) start[axis] = box_start(geometry.tiling, block.axis[axis], walk, axis);
    mask_scores(warp, params.owned, inner, start, scores);
    walk.step();
    softmax.update(scores, correction, geometry.factor);
  };

  mbarrier_wait(shared.query_full(), 0);
  if (total > 0) {
    keys.wait_full(0);
    wgmma_fence();
    start_scores<Shape>(scores, query, keys.tile(0));
    wgmma_wait<0>();
    keep(scores);
    if (warp.lane == 0) keys.release(0);
    weigh();
    values.wait_full(0);
    pack_weights<typename Shape::Type>(weights, scores);
#pragma unroll 1
    for (int step = 1; step < total; ++step) {
      keys.wait_full(step);
      turns.take(step);
      wgmma_fence();
      start_scores<Shape>(scores, query, keys.tile(step));
      start_out<Shape>(out, weights, values.tile(step - 1));
      turns.pass(step);
      wgmma_wait<1>();
      keep(scores);
      if (warp.lane == 0) keys.release(step);
      weigh();
      // The branch inside keeps the assembler from waiting for O before it computes the weights.
      values.wait_full(step);
      wgmma_wait<0>();
      keep(out);
      if (warp.lane == 0) values.release(step - 1);
      rescale(out, correction);
      pack_weights<typename Shape::Type>(weights, scores);
    }
    wgmma_fence();
    start_out<Shape>(out, weights, values.tile(total - 1));
    wgmma_wait<0>();
    keep(out);
  }

  softmax.finish();
  const Block again = find_block_again<Side::kQueries>(geometry, params.query.heads);
  const float valid = again.complete ? 1.f : NAN;  // a window reaches beyond the keys present: say so
  float scale[2], lse[2];
  for_each_own<2>([&](Own row) {
    scale[row] = softmax.sum[row] < INFINITY ? valid / softmax.sum[row] : NAN;
    lse[row] = valid * kLn2 * (softmax.top[row] + log2f(softmax.sum[row]));
  });
  const Warp<Shape> same{geometry, again, warp.windows, warp.first_row, warp.lane};
  const WarpResults<Shape> results{params, same, dynamic_shared() + HopperShared<Shape>::kQuery};
  const Suspects suspects = results.store(out, scale, lse);
  if (again.complete && suspects.some()) results.attend_again(suspects);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    fused_hopper_forward_kernel(const __grid_constant__ HopperForwardParams params) {
  const Geometry& geometry = params.geometry;
  Block block;
  if (!find_block<Side::kQueries>(geometry, blockIdx.x, params.query.heads, block)) return;
  const HopperShared<Shape> shared{shared_address(dynamic_shared())};
  const Windows<Shape> windows{reinterpret_cast<int*>(dynamic_shared() + HopperShared<Shape>::kWindows)};
  if (threadIdx.x == 0) shared.init_barriers();
  windows.template store<Side::kQueries>(geometry, block, seen_by_missing(geometry));
  block_sync();

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = shuffle(static_cast<int>(threadIdx.x) / 32, 0);  // the compiler shall know that lanes agree
  if (warp < 4) {
    set_max_registers_dec<Shape::kCopyRegisters>();
    const int kv_head = block.head / query_heads_per_kv_head(geometry.problem);
    const Tiling& tiling = geometry.tiling;
    if (warp == 0 && lane == 0) {
      copy_query<Shape>(block, {params.query, geometry, block.rows, block, block.head}, shared);
      copy_columns<Shape>(tiling, block, {params.key, geometry, block.columns, block, kv_head}, shared.keys());
    }
    if (warp == 1 && lane == 0)
      copy_columns<Shape>(tiling, block, {params.value, geometry, block.columns, block, kv_head}, shared.values());
  } else {
    set_max_registers_inc<Shape::kComputeRegisters>();
    const int warpgroup = warp / 4 - 1;
    attend<Shape>(params, {geometry, block, windows, 64 * warpgroup + 16 * (warp % 4), lane}, shared, warpgroup);
  }
}

}  // namespace jax_na::cuda
