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
bool device_is_hopper();
#endif

namespace {

constexpr const char* kCapability = "9.0";

KernelSizes shapes_of(const Query& query) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  return {{{kHopperRows, 16, hopper_columns(features)}}, 1};
}

void obstacle(const Query& query, Text& text) {
  const Problem& p = query.problem;
#ifndef JAX_NA_HOPPER
  say(text, "it takes an installation that was built for compute capability %s (90a)", kCapability);
  return;
#endif
  if (feature_bucket(p.head_dim, p.value_dim) == 0)
    say(text, "it takes up to %d features per head, not %d", kMostFeatures, max(p.head_dim, p.value_dim));
  else if (p.head_dim % 8 != 0 || p.value_dim % 8 != 0)
    say(text, "it takes a multiple of 8 features per head, not %d", p.head_dim % 8 != 0 ? p.head_dim : p.value_dim);
}

void tile_obstacle(const Query& query, const Tiles& tiles, Text& text) {
  shapes_obstacle(shapes_of(query), Pass::kForward, tiles, text);
}

void tilings(const Query& query, const TilingVisitor& visitor) {
  const int features = feature_bucket(query.problem.head_dim, query.problem.value_dim);
  for_each_pair(shapes_of(query), Pass::kForward, query.problem.rank, [&](const Tiles& tiles, const KernelSize& shape) {
    visitor.visit(visitor.context, {tiles, shape.rows, shape.warp_rows, shape.columns, features, 0});
  });
}

void late_obstacle(const void* args, Text& text) {
  const auto& forward = *static_cast<const ForwardArgs*>(args);
  const Problem& p = forward.problem;
  const int64_t queries = p.batch * query_tokens(p) * p.heads, keys = p.batch * key_tokens(p) * p.kv_heads;
  if (queries > INT32_MAX || keys > INT32_MAX)
    say(text, "it takes up to 2^31 - 1 rows (batch times tokens times heads), not %lld",
        static_cast<long long>(queries > keys ? queries : keys));
  for (const void* data : {forward.query, forward.key, forward.value, static_cast<const void*>(forward.out)}) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    if (address % 16 != 0)
      say(text, "it takes arrays aligned to 16 bytes, not %d beyond that", static_cast<int>(address % 16));
  }
#ifdef JAX_NA_HOPPER
  if (!device_is_hopper()) say(text, "it takes a GPU of compute capability %s", kCapability);
#endif
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
