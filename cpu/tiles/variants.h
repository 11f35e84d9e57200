// SPDX-License-Identifier: Apache-2.0
// The rows of the tile kernels: they take every window.
#pragma once

#include "cpu/softmax.h"
#include "cpu/tiles/backward.h"
#include "cpu/tiles/forward.h"
#include "cpu/tiles/gemm.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

inline void lanes_obstacle(const Query&, const Tiles& tiles, Text& text) {
  if (volume(tiles.query) != kLanes) say(text, "it takes tiles of %d tokens, not %d", kLanes, volume(tiles.query));
}

inline void lanes_tilings(const Query& query, const TilingVisitor& visitor) {
  for_each_tile(query.problem.rank, kLanes, [&](const int (&tile)[kAxes]) {
    const Tiles tiles{{tile[0], tile[1], tile[2]}, {1, 1, 1}};
    visitor.visit(visitor.context, {tiles, kLanes, kLanes, 1, max(query.problem.head_dim, query.problem.value_dim), 0});
  });
}

constexpr CpuVariant tile_variant(Target target, Pass pass, void (*run)(const void*, const Parallel&),
                                  int64_t (*scratch)(const Problem&)) {
  return {{target, pass, "tiles", Form::kTile, bit(Operand::kRpb) | bit(Operand::kKeyMask), kHalfOrSingle, nullptr,
           lanes_obstacle, lanes_tilings},
          run,
          scratch,
          1};
}

constexpr CpuVariant kTileVariants[] = {
    tile_variant(Target::kFusedForward, Pass::kForward, run_kernel<ForwardArgs, fused_forward>, forward_scratch),
    tile_variant(Target::kFusedBackward, Pass::kBackward, run_kernel<BackwardArgs, fused_backward>, backward_scratch),
    tile_variant(Target::kGemmQk, Pass::kQk, run_kernel<UnfusedArgs, gemm_qk>, gemm_scratch),
    tile_variant(Target::kGemmAv, Pass::kAv, run_kernel<UnfusedArgs, gemm_av>, gemm_scratch),
    tile_variant(Target::kGemmInverse, Pass::kInverse, run_kernel<UnfusedArgs, gemm_inverse>, gemm_scratch)};

constexpr CpuVariant kSoftmaxVariant = {
    {Target::kSoftmax, Pass::kSoftmax, "rows", Form::kNone, 0, type_bit(DType::kFloat32), nullptr, nullptr, nullptr},
    run_kernel<SoftmaxArgs, softmax>,
    no_scratch,
    1};

}  // namespace JAX_NA_ISA
}  // namespace jax_na
