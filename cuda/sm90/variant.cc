// SPDX-License-Identifier: Apache-2.0
// The row of the forward kernel for compute capability 9.0. It is there in every build, so that a program compiled
// where it can run finds it everywhere, with the obstacle that sends the program to its next choice.
#include "cuda/fused/config.h"
#include "cuda/host/variants.h"

namespace jax_na::cuda {

#ifdef JAX_NA_HOPPER
// One element type, in sm90/forward.cu.
template <class Type>
const char* run_hopper_forward(const ForwardArgs&, Stream);
#endif

namespace {

constexpr const char* kCapability = "9.0";
constexpr int64_t kMapStride = int64_t{1} << 40;  // strides of tensor maps are below

KernelSizes shapes_of(const Query& query) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  return {{{kHopperRows, 16, hopper_columns(features)}}, 1};
}

// Rows and strides of a tensor map.
void map_obstacle(const Problem& p, const int (&tokens)[kAxes], int heads, int features, Text& text) {
  const double rows = product({p.batch, tokens[0], tokens[1], tokens[2], heads});
  if (rows > INT32_MAX) say(text, "it takes up to 2^31 - 1 rows (batch times tokens times heads), not %.0f", rows);
  int64_t stride = int64_t{2} * features * heads;  // of tokens that are neighbours along an axis, in bytes
  for (int a = kAxes - 1; a >= 0; --a) {
    if (stride * p.axis[a].dilation >= kMapStride)
      say(text, "it takes tokens up to 2^40 bytes apart along an axis of a dilation group, not %lld",
          static_cast<long long>(stride * p.axis[a].dilation));
    stride *= tokens[a];
  }
}

void obstacle(const Query& query, Text& text) {
  const Problem& p = query.problem;
#ifndef JAX_NA_HOPPER
  say(text, "it takes an installation that was built for compute capability %s (90a)", kCapability);
  return;
#endif
  features_obstacle(p, text);
  if (!is_empty(text)) return;
  chunks_obstacle(p, text);
  map_obstacle(p, p.nq, p.heads, p.head_dim, text);
  map_obstacle(p, p.nk, p.kv_heads, max(p.head_dim, p.value_dim), text);
}

void tile_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  const Problem& p = query.problem;
  shapes_obstacle(shapes_of(query), Pass::kForward, tiles, text);
  if (is_empty(text)) blocks_obstacle(product({p.batch, p.heads, row_tiles(p, Pass::kForward, tiles)}), text);
}

void tilings(const Query& query, const TilingVisitor& visitor) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  for_each_pair(shapes_of(query), Pass::kForward, query.problem.rank, [&](const Tiles& tiles, const KernelSize& shape) {
    visitor.visit(visitor.context, {tiles, shape.rows, shape.warp_rows, shape.columns, features, 0});
  });
}

void late_obstacle(const void* args, Text& text) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  alignment_obstacle({forward.query, forward.key, forward.value, forward.out}, text);
  capability_obstacle(90, text);
}

const char* run([[maybe_unused]] const void* args, [[maybe_unused]] Stream stream) {
#ifdef JAX_NA_HOPPER
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  return forward.dtype == DType::kFloat16 ? run_hopper_forward<F16Type>(forward, stream)
                                          : run_hopper_forward<BF16Type>(forward, stream);
#else
  return "this installation was not built for compute capability 9.0";
#endif
}

}  // namespace

extern const CudaVariant kHopperForward;
const CudaVariant kHopperForward = {
    {Target::kFusedForward, Pass::kForward, "sm90", Form::kTilePair, 0,
     type_bit(DType::kBFloat16) | type_bit(DType::kFloat16), obstacle, tile_obstacle, tilings, kCapability},
    run,
    late_obstacle};

}  // namespace jax_na::cuda
