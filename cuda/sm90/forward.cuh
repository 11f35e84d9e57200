// SPDX-License-Identifier: Apache-2.0
// Fused attention, forward, for compute capability 9.0 (wgmma and tensor copies); the formula is that of
// fused_forward.cuh.
//
// A block has 128 queries and three warpgroups. Two threads of the first one copy keys and values, see
// fused_hopper_ring.cuh; each of the others computes 64 rows. In step j such a warpgroup starts the products
//     S(j) = Q K(j)^T   and   O += P(j-1) V(j-1)
// and turns S(j) into P(j) while the second of them is under way. The two take turns to start their products, so that
// one computes exponentials while the tensor cores work for the other.
#pragma once

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
template <class S>
__device__ __forceinline__ void start_scores(float (&scores)[S::kColumns / 2], uint32_t rows, uint32_t keys) {
  const uint64_t a = matrix_descriptor(rows, 16, S::kGroupBytes, S::kSwizzle);
  const uint64_t b = matrix_descriptor(keys, 16, S::kGroupBytes, S::kSwizzle);
#pragma unroll
  for (int k = 0; k < S::kFeatures / 16; ++k) {
    const int panel = k * 16 / S::kPanelFeatures, inside = k * 32 % S::kRowBytes;  // in bytes of a row
    wgmma_ss<typename S::Element, S::kColumns, false>(scores, moved(a, panel * S::kRowPanelBytes + inside),
                                                      moved(b, panel * S::kColumnPanelBytes + inside), k > 0);
  }
  wgmma_commit();
}

// Starts O += P V over all tokens of the value tile.
template <class S>
__device__ __forceinline__ void start_out(float (&out)[S::kFeatures / 2],
                                          const uint32_t (&weights)[S::kColumns / 16][4], uint32_t values) {
  const uint64_t b = matrix_descriptor(values, S::kColumnPanelBytes, S::kGroupBytes, S::kSwizzle);
#pragma unroll
  for (int k = 0; k < S::kColumns / 16; ++k)
    wgmma_rs<typename S::Element, S::kFeatures, true>(out, weights[k], moved(b, k * 16 * S::kRowBytes), true);
  wgmma_commit();
}

// The turns of the two computing warpgroups to start products, 0 before 1 in every step from 1 on. A warpgroup's turn
// is a named barrier where it waits and the other one arrives.
template <class S>
struct Turns {
  int warpgroup, total;  // 0 or 1; steps

  __device__ __forceinline__ void take(int step) const {
    if (warpgroup == 1 || step > 1) named_barrier_sync(1 + warpgroup, 128 * S::kComputing);
  }
  __device__ __forceinline__ void pass(int step) const {
    if (warpgroup == 0 || step + 1 < total) named_barrier_arrive(2 - warpgroup, 128 * S::kComputing);
  }
};

// values * scale and the log-sum-exp of a warp's 16 rows, through the shared memory of its queries.
template <class S>
__device__ __forceinline__ void store_out(const HopperForwardParams& p, const Block& b, char* query, int first_row,
                                          int lane, const float (&values)[S::kFeatures / 2], const float (&scale)[2],
                                          const float (&lse)[2]) {
  struct alignas(16) Chunk {
    uint32_t words[4];
  };
  constexpr int kChunks = S::kFeatures / 8, kPanelChunks = S::kRowBytes / 16;
  const auto chunk_of = [&](int row, int chunk) {
    return typename S::Panel{query + chunk / kPanelChunks * S::kRowPanelBytes}.chunk(row, chunk % kPanelChunks);
  };
#pragma unroll
  for (int i = 0; i < S::kFeatures / 4; ++i) {
    const int half = i % 2, row = first_row + lane / 4 + 8 * half;
    reinterpret_cast<uint32_t*>(chunk_of(row, i / 2))[lane % 4] =
        S::Type::pack(values[2 * i] * scale[half], values[2 * i + 1] * scale[half]);
  }
  warp_sync();
  const Geometry& g = p.geometry;
  const BoxTokens tokens(g, b.rows, b, row_box(b));
  const int64_t first_token = b.batch * b.rows.tokens();
#pragma unroll 1
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = first_row + i / kChunks, chunk = i % kChunks;
    bool exists = chunk * 8 < g.problem.value_dim;
    const int64_t token = first_token + tokens.index(g.tiling.rows, row, exists);
    if (!exists) continue;
    auto* out = static_cast<typename S::Element*>(p.out) + (token * p.query.heads + b.head) * g.problem.value_dim;
    reinterpret_cast<Chunk*>(out)[chunk] = *reinterpret_cast<const Chunk*>(chunk_of(row, chunk));
  }
  if (lane % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    bool exists = true;
    const int64_t token = first_token + tokens.index(g.tiling.rows, first_row + lane / 4 + 8 * half, exists);
    if (exists) p.lse[token * p.query.heads + b.head] = lse[half];
  }
}

// The work of computing warpgroup 0 or 1.
template <class S>
__device__ __forceinline__ void attend(const HopperForwardParams& p, const Block& b, const HopperShared<S>& shared,
                                       int warpgroup, int warp, int lane) {
  const Geometry& g = p.geometry;
  const int first_row = 64 * warpgroup + 16 * warp;
  const int* windows = reinterpret_cast<const int*>(dynamic_shared() + HopperShared<S>::kWindows);
  Range inner[kAxes];
  find_inner<S>(windows, first_row, lane, inner);
  const Ring<S> keys = shared.keys(), values = shared.values();
  const uint32_t query = shared.query() + warpgroup * S::kWarpgroupRows * S::kRowBytes;
  Walk walk = make_walk(g.tiling, b.axis);
  const int total = walk.total();
  const Turns<S> turns{warpgroup, total};

  RunningSoftmax softmax;
  float scores[S::kColumns / 2] = {}, out[S::kFeatures / 2] = {}, correction[2];
  uint32_t weights[S::kColumns / 16][4];
  // Scores of the box that `walk` is at become weights.
  const auto weigh = [&] {
    if (g.premultiplier != 1)
#pragma unroll
      for (float& x : scores) x *= g.premultiplier;
    int start[kAxes];
#pragma unroll
    for (int a = 0; a < kAxes; ++a) start[a] = box_start(g.tiling, b.axis[a], walk, a);
    mask_scores<S>(g.tiling, p.owned, windows, inner, start, first_row + lane / 4, lane, scores);
    walk.step();
    softmax.update(scores, correction, g.factor);
  };

  mbarrier_wait(shared.query_full(), 0);
  if (total > 0) {
    keys.wait_full(0);
    wgmma_fence();
    start_scores<S>(scores, query, keys.tile(0));
    wgmma_wait<0>();
    keep(scores);
    if (lane == 0) keys.release(0);
    weigh();
    values.wait_full(0);
    pack_weights<typename S::Type>(weights, scores);
#pragma unroll 1
    for (int step = 1; step < total; ++step) {
      keys.wait_full(step);
      turns.take(step);
      wgmma_fence();
      start_scores<S>(scores, query, keys.tile(step));
      start_out<S>(out, weights, values.tile(step - 1));
      turns.pass(step);
      wgmma_wait<1>();
      keep(scores);
      if (lane == 0) keys.release(step);
      weigh();
      // The branch inside keeps the assembler from waiting for O before it computes the weights.
      values.wait_full(step);
      wgmma_wait<0>();
      keep(out);
      if (lane == 0) values.release(step - 1);
      rescale(out, correction);
      pack_weights<typename S::Type>(weights, scores);
    }
    wgmma_fence();
    start_out<S>(out, weights, values.tile(total - 1));
    wgmma_wait<0>();
    keep(out);
  }

  softmax.finish();
  const Block again = find_block_again<Rows::kQueries>(g, p.query.heads);
  const float valid = again.complete ? 1.f : NAN;  // a window reaches beyond the keys present: say so
  float scale[2], lse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    scale[half] = valid / softmax.sum[half];
    lse[half] = valid * kLn2 * (softmax.top[half] * g.factor + log2f(softmax.sum[half]));
  }
  store_out<S>(p, again, dynamic_shared() + HopperShared<S>::kQuery, first_row, lane, out, scale, lse);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    fused_hopper_forward_kernel(const __grid_constant__ HopperForwardParams p) {
  const Geometry& g = p.geometry;
  Block b;
  if (!find_block<Rows::kQueries>(g, blockIdx.x, p.query.heads, b)) return;
  const HopperShared<S> shared{shared_address(dynamic_shared())};
  if (threadIdx.x == 0) shared.init_barriers();
  store_windows<S, Rows::kQueries>(g, b, reinterpret_cast<int*>(dynamic_shared() + HopperShared<S>::kWindows));
  block_sync();

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = shuffle(static_cast<int>(threadIdx.x) / 32, 0);  // the compiler shall know that lanes agree
  if (warp < 4) {
    set_max_registers_dec<S::kCopyRegisters>();
    const int kv_head = b.head / query_heads_per_kv_head(g.problem);
    if (warp == 0 && lane == 0) {
      copy_query<S>(b, {p.query, g, b.rows, b, b.head}, shared);
      copy_columns<S>(g.tiling, b, {p.key, g, b.columns, b, kv_head}, shared.keys());
    }
    if (warp == 1 && lane == 0) copy_columns<S>(g.tiling, b, {p.value, g, b.columns, b, kv_head}, shared.values());
  } else {
    set_max_registers_inc<S::kComputeRegisters>();
    attend<S>(p, b, shared, warp / 4 - 1, warp % 4, lane);
  }
}

}  // namespace jax_na::cuda
