// SPDX-License-Identifier: Apache-2.0
// The parameters that both backward kernels have.
#pragma once

#include "cuda/fused/launch.cuh"

namespace jax_na::cuda {

template <class Math>
BackwardParams backward_params(const BackwardArgs& a) {
  const Problem& p = a.problem;
  BackwardParams params{};
  params.query = make_operand<Math>(a.query, p.heads, p.head_dim);
  params.key = make_operand<Math>(a.key, p.kv_heads, p.head_dim);
  params.value = make_operand<Math>(a.value, p.kv_heads, p.value_dim);
  params.dout = make_operand<Math>(a.dout, p.heads, p.value_dim);
  params.tokens = make_additional<Math>(a.tokens, p);
  params.lse = a.lse;
  params.delta = a.delta;
  params.dquery = a.dquery;
  params.dkey = a.dkey;
  params.dvalue = a.dvalue;
  params.drpb = a.drpb;
  params.drpb_parts = a.drpb_parts;
  params.key_mask = a.key_mask;
  params.scale = static_cast<float>(p.scale);
  return params;
}

}  // namespace jax_na::cuda
