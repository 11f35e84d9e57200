// SPDX-License-Identifier: Apache-2.0
// The rows of the GEMM kernels. They keep rows of weights in shared memory, and not all tiles leave room for them.
#include "cuda/host/variants.h"

#include "cuda/gemm/config.h"

namespace jax_na::cuda {

// One arithmetic, in gemm/gemm.cu.
template <class Math>
const char* run_gemm(Pass, const UnfusedArgs&, Stream);

namespace {

constexpr KernelSizes kShapes = {
    {{kGemmRows[0], 16, gemm_columns(kGemmRows[0])}, {kGemmRows[1], 16, gemm_columns(kGemmRows[1])}}, 2};

GemmShape shape_of(Pass pass, const Query& query, const Tiles& tiles) {
  const int element_bytes = kDTypeBytes[static_cast<int>(query.dtype)];
  return gemm_shape(pass, element_bytes, query.problem.value_dim, volume(keys_stay(pass) ? tiles.key : tiles.query));
}

Staging staging_of(Pass pass, const Query& query, const Tiles& tiles) {
  const GemmShape shape = shape_of(pass, query, tiles);
  return keys_stay(pass) ? make_staging(shape, query.problem, tiles.key, tiles.query)
                         : make_staging(shape, query.problem, tiles.query, tiles.key);
}

template <Pass pass>
void obstacle(const Query& query, Text& text) {
  const GemmShape shape = gemm_shape(pass, kDTypeBytes[static_cast<int>(query.dtype)], query.problem.value_dim, 16);
  if (query.problem.pitch % shape.vector() != 0)
    say(text, "it takes rows of weights of whole pieces of 16 bytes: a multiple of %d slots, not %d", shape.vector(),
        query.problem.pitch);
  else
    grid_obstacle(query.problem, text);
}

template <Pass pass>
void tile_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  shapes_obstacle(kShapes, pass, tiles, text);
  if (is_empty(text) && staging_of(pass, query, tiles).slots == 0)
    say(text, "it takes tiles that leave room in %d KB of shared memory for their part of %d weights per query",
        kSharedLimit >> 10, slots(query.problem));
  if (!is_empty(text)) return;
  const Problem& p = query.problem;
  const int slices = pass == Pass::kQk ? 1 : ceil_div(p.value_dim, shape_of(pass, query, tiles).features);
  const int heads = keys_stay(pass) ? p.kv_heads : p.heads;
  blocks_obstacle(product({p.batch, heads, row_tiles(p, pass, tiles), slices}), text);
}

template <Pass pass>
void tilings(const Query& query, const TilingVisitor& visitor) {
  for_each_pair(kShapes, pass, query.problem.rank, [&](const Tiles& tiles, const KernelSize& shape) {
    const Staging staging = staging_of(pass, query, tiles);
    const int features = shape_of(pass, query, tiles).features;
    if (staging.slots > 0)
      visitor.visit(visitor.context, {tiles, shape.rows, shape.warp_rows, shape.columns, features, staging.slots});
  });
}

void late_obstacle(const void* args, Text& text) {
  const auto& unfused = *static_cast<const UnfusedArgs*>(args);
  const auto address = reinterpret_cast<uintptr_t>(unfused.weights);
  if (address % 16 != 0)
    say(text, "it takes weights aligned to 16 bytes, not %d beyond that", static_cast<int>(address % 16));
}

template <Pass pass>
const char* run(const void* args, Stream stream) {
  const auto& unfused = *static_cast<const UnfusedArgs*>(args);
  return with_arithmetic(unfused,
                         [&](auto math) { return run_gemm<typename decltype(math)::type>(pass, unfused, stream); });
}

template <Pass pass>
constexpr CudaVariant gemm(Target target) {
  return {
      {target, pass, "portable", Form::kTilePair, 0, kHalfOrSingle, obstacle<pass>, tile_obstacle<pass>, tilings<pass>},
      run<pass>,
      late_obstacle};
}

}  // namespace

extern const CudaVariant kGemmQk, kGemmAv, kGemmInverse;
const CudaVariant kGemmQk = gemm<Pass::kQk>(Target::kGemmQk);
const CudaVariant kGemmAv = gemm<Pass::kAv>(Target::kGemmAv);
const CudaVariant kGemmInverse = gemm<Pass::kInverse>(Target::kGemmInverse);

}  // namespace jax_na::cuda
