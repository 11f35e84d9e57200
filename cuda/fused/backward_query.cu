// SPDX-License-Identifier: Apache-2.0
// The launcher of the gradients of query and bias. CMake compiles this source once for each arithmetic, JAX_NA_MATH.
#include "cuda/fused/backward_launch.cuh"
#include "cuda/fused/backward_query.cuh"
#include "cuda/fused/backward_query_bias.cuh"

namespace jax_na::cuda {

template <class S, bool kIsExtended>
const char* launch_with_bias(const BackwardArgs& a, BackwardParams params, Stream stream) {
  using Shape = KernelShape<typename S::Math, S::kFeatures, S::kWarps, S::kRowTiles, S::kColumns,
                            bias_stages(S::kRowBytes, S::kRows)>;
  using Shared = BiasShared<Shape>;
  params.strip = make_strip(params.geometry.tiling);
  params.entries_of_strip = entry_of_row(params.geometry, kStripRows);
  const int number = distances(params.strip), table_bytes = 4 * bias_entries(a.problem);
  if (number > Shared::kMostDistances) return kNoKernel;
  if (a.drpb_parts < Shape::kWarps) return "drpb must have 4 parts or more, one for each warp of a block";
  params.drpb_blocks = a.drpb_parts / Shape::kWarps;
  int bytes = Shared::tables(number);
  params.tables_in_shared =
      !Shared::kBorrows && table_bytes <= kMostTableBytes && bytes + Shape::kWarps * table_bytes <= kSharedLimit;
  if (params.tables_in_shared) bytes += Shape::kWarps * table_bytes;
  return launch(fused_backward_query_bias_kernel<Shape, kIsExtended>, int64_t{params.drpb_blocks} * a.problem.heads,
                Shape::kThreads, bytes, stream, params);
}

template <class S, bool kIsExtended>
const char* launch_backward_query(const BackwardArgs& a, BackwardParams params, Stream stream) {
  static_assert(BackwardQueryShared<S>::kBytes <= kSharedLimit);
  const Problem& p = a.problem;
  if (tokens_of(a.tiles.key) != S::kColumns) return kNoKernel;
  params.geometry = make_geometry<Side::kQueries>(p, a.tiles.query, a.tiles.key, a.offsets, a.rpb);
  if (a.drpb != nullptr) return launch_with_bias<S, kIsExtended>(a, params, stream);
  return launch(fused_backward_query_kernel<S, kIsExtended>, p.batch * p.heads * params.geometry.tiles, S::kThreads,
                BackwardQueryShared<S>::kBytes, stream, params);
}

template <class Math>
const char* run_backward_query(const BackwardArgs& a, Stream stream) {
  const BackwardParams params = backward_params<Math>(a);
  const auto run = [&](auto extended) {
    constexpr bool kIsExtended = decltype(extended)::value;
    return with_shape<Math, Pass::kBackwardQuery, kIsExtended>(a.problem, a.tiles.query, [&](auto shape) {
      return launch_backward_query<decltype(shape), kIsExtended>(a, params, stream);
    });
  };
  return is_extended(a) ? run(std::true_type{}) : run(std::false_type{});
}

template const char* run_backward_query<JAX_NA_MATH>(const BackwardArgs&, Stream);

}  // namespace jax_na::cuda
