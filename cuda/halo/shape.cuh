// SPDX-License-Identifier: Apache-2.0
// What is known of a halo kernel when it is compiled, its parameters, and which part of the work a block does.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "cuda/block/fragment.cuh"
#include "cuda/fused/params.cuh"
#include "cuda/geometry/tile.cuh"
#include "cuda/halo/config.h"

namespace jax_na::cuda {

// kColumns columns of a box are scored at a time, of tokens with room for kFeatures; kIsWhole: they are all.
template <Pass kPass, class Math_, int kFeatures_, int kColumns_, bool kHasBias_, bool kHasMask_,
          bool kIsWhole_ = false>
struct HaloShape {
  using Call = std::conditional_t<kPass == Pass::kForward, ForwardParams, BackwardParams>;
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr int kFeatures = kFeatures_, kColumns = kColumns_;
  static constexpr bool kIsWhole = kIsWhole_, kHasBias = kHasBias_, kHasMask = kHasMask_;
  static constexpr HaloUse kUse{kPass, kHasBias, kHasMask};
  static constexpr bool kAddsBias = adds_bias(kUse);
  static constexpr Side kRowSide = kPass == Pass::kBackwardKey ? Side::kKeys : Side::kQueries;
  static constexpr int kThreads = 32 * kHaloWarps, kHeads = halo_heads(kFeatures);
  static constexpr int kSteps = kFeatures / Math::kDepth, kFeatureTiles = kFeatures / 8, kColumnTiles = kColumns / 8;
  static constexpr int kHeadBytes = kFeatures * static_cast<int>(sizeof(Element)),
                       kRowBytes = halo_row_bytes(kFeatures);
  static constexpr int kChunks = kRowBytes / 16;      // of 16 bytes in a row
  static constexpr int kTokens = kThreads / kChunks;  // that the block copies side by side
  // Blocks that a multiprocessor shall have registers for: several hide each other's copies.
  static constexpr int kMinBlocks = halo_blocks(kUse, kFeatures, kColumns, kIsWhole);
  using Scores = Fragment<1, kColumnTiles>;
};

template <class Call>
struct HaloParams {
  Call call;  // rows of the tiling: the block's tile, columns: the tile of a warp
  HaloSizes sizes;
  HaloLayout layout;
  uint32_t units;  // tiles times batch
};

// The tiles and heads of a block: all heads of tiles that blocks take in turns, or, where the gradient of a bias is
// added up, heads that are copied together.
template <class Shape>
struct HaloWork {
  uint32_t first, step;
  int first_head, stop_head;

  template <class Params>
  __device__ __forceinline__ explicit HaloWork(const Params& params) {
    if constexpr (Shape::kAddsBias) {
      const uint32_t blocks = params.call.drpb_blocks, group = blockIdx.x / blocks;
      first = blockIdx.x % blocks;
      step = blocks;
      first_head = static_cast<int>(group) * Shape::kHeads;
      stop_head = first_head + Shape::kHeads;
    } else {
      first = blockIdx.x;
      step = gridDim.x;
      first_head = 0;
      stop_head = params.call.query.heads;
    }
  }
};

}  // namespace jax_na::cuda
