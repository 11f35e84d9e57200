// SPDX-License-Identifier: Apache-2.0
// What the launchers of the fused kernels share: run-time sizes become template arguments here.
#pragma once

#include <type_traits>

#include "common/dispatch.h"
#include "cuda/fused/config.h"
#include "cuda/fused/params.cuh"
#include "cuda/host/arguments.cuh"
#include "cuda/host/launch.h"

namespace jax_na::cuda {

template <class Math, int kFeatures, int kRows, Pass pass>
struct ShapeFor {
  static constexpr int kRowBytes = kFeatures * static_cast<int>(sizeof(typename Math::Element));
  static constexpr int kWarps = kRows == kLargeRows ? 4 : kRows / 16;
  using type = KernelShape<Math, kFeatures, kWarps, kRows / 16 / kWarps, streamed_tokens(pass, kRowBytes, kRows),
                           stages(pass, kRowBytes, kRows)>;
};

template <class Math>
AdditionalTokens make_additional(const TokenArrays& a, const Problem& p) {
  return {make_operand<Math>(a.key, p.kv_heads, p.head_dim), make_operand<Math>(a.value, p.kv_heads, p.value_dim),
          a.count};
}

// Whether a call has more than queries, keys, values and a bias: kernels of such calls are instantiations of their own.
template <class Args>
bool is_extended(const Args& a) {
  return a.tokens.count > 0 || a.key_mask != nullptr;
}

// Calls body(Shape) for the kernel with these features and rows; its result, or that there is none.
template <class Math, Pass pass, bool kIsExtended, class Body>
const char* with_shape(const Problem& p, const int (&row_tile)[kAxes], const Body& body) {
  const char* result = kNoKernel;
  match<32, 64, 128, 256>(feature_bucket(p.head_dim, p.value_dim), [&](auto features) {
    constexpr int kFeatures = decltype(features)::value, kBytes = sizeof(typename Math::Element);
    match<kSmallRows, 32, 64, kLargeRows>(tokens_of(row_tile), [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      if constexpr (has_shape(pass, kFeatures * kBytes, kBytes, kRows, kIsExtended))
        result = body(typename ShapeFor<Math, kFeatures, kRows, pass>::type{});
    });
  });
  return result;
}

}  // namespace jax_na::cuda
