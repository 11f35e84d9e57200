// SPDX-License-Identifier: Apache-2.0
// The launcher of the gradients of query and bias. CMake compiles this source once for each arithmetic, JAX_NA_MATH.
#include "cuda/fused/backward_launch.cuh"
#include "cuda/fused/backward_query.cuh"

namespace jax_na::cuda {

template <class S>
const char* launch_bias(const BackwardArgs& a, BackwardParams params, Stream stream) {
  constexpr int kColumns = bias_streamed_tokens(S::kRowBytes, S::kRows);
  using Bias = KernelShape<typename S::Math, S::kFeatures, S::kWarps, S::kRowTiles, kColumns, 1>;
  static_assert(DrpbShared<Bias>::kBytes <= kSharedLimit);
  int columns[kAxes] = {a.tiles.key[0], a.tiles.key[1], a.tiles.key[2]};
  for (int axis = 0; tokens_of(columns) > kColumns; axis = (axis + 1) % kAxes)
    if (columns[axis] > 1) columns[axis] /= 2;
  params.geometry = make_geometry<Side::kQueries>(a.problem, a.tiles.query, columns, a.offsets, a.rpb);
  return launch(fused_backward_drpb_kernel<Bias>, int64_t{a.drpb_parts} * a.problem.heads, Bias::kThreads,
                DrpbShared<Bias>::kBytes, stream, params);
}

template <class S, bool kHasTokens>
const char* launch_backward_query(const BackwardArgs& a, BackwardParams params, Stream stream) {
  static_assert(BackwardQueryShared<S>::kBytes <= kSharedLimit);
  const Problem& p = a.problem;
  if (tokens_of(a.tiles.key) != S::kColumns) return kNoKernel;
  params.geometry = make_geometry<Side::kQueries>(p, a.tiles.query, a.tiles.key, a.offsets, a.rpb);
  const char* error = launch(fused_backward_query_kernel<S, kHasTokens>, p.batch * p.heads * params.geometry.tiles,
                             S::kThreads, BackwardQueryShared<S>::kBytes, stream, params);
  return error == nullptr && a.drpb != nullptr ? launch_bias<S>(a, params, stream) : error;
}

template <class Math>
const char* run_backward_query(const BackwardArgs& a, Stream stream) {
  const BackwardParams params = backward_params<Math>(a);
  const auto run = [&](auto has_tokens) {
    constexpr bool kHasTokens = decltype(has_tokens)::value;
    return with_shape<Math, Pass::kBackwardQuery, kHasTokens>(a.problem, a.tiles.query, [&](auto shape) {
      return launch_backward_query<decltype(shape), kHasTokens>(a, params, stream);
    });
  };
  return a.tokens.count > 0 ? run(std::true_type{}) : run(std::false_type{});
}

template const char* run_backward_query<JAX_NA_MATH>(const BackwardArgs&, Stream);

}  // namespace jax_na::cuda
