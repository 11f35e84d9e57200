// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set; each isa_*.cc names its set, includes this file and exports the table.
#pragma once

#include "cpu/rows/backward.h"
#include "cpu/rows/forward.h"
#include "cpu/rows/gemm.h"
#include "cpu/softmax.h"
#include "cpu/tiles/backward.h"
#include "cpu/tiles/forward.h"
#include "cpu/tiles/gemm.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

inline void forward(const ForwardArgs& args, const Parallel& parallel) {
  uses_rows(args.problem) ? row_forward(args, parallel) : fused_forward(args, parallel);
}
inline void backward(const BackwardArgs& args, const Parallel& parallel) {
  uses_rows(args.problem) ? row_backward(args, parallel) : fused_backward(args, parallel);
}

inline void qk(const UnfusedArgs& args, const Parallel& parallel) {
  uses_rows(args.problem) ? row_gemm_qk(args, parallel) : gemm_qk(args, parallel);
}
inline void av(const UnfusedArgs& args, const Parallel& parallel) {
  uses_rows(args.problem) ? row_gemm_av(args, parallel) : gemm_av(args, parallel);
}
inline void inverse(const UnfusedArgs& args, const Parallel& parallel) {
  uses_rows(args.problem) ? row_gemm_inverse(args, parallel) : gemm_inverse(args, parallel);
}
inline int64_t any_gemm_scratch(const Problem& p) { return uses_rows(p) ? row_gemm_scratch(p) : gemm_scratch(p); }
inline int64_t any_forward_scratch(const Problem& p) {
  return uses_rows(p) ? row_forward_scratch(p) : forward_scratch(p);
}
inline int64_t any_backward_scratch(const Problem& p) {
  return uses_rows(p) ? row_backward_scratch(p) : backward_scratch(p);
}

inline bool rows_fit(const Problem& p, Pass pass) {
  return rows_fit(p, pass == Pass::kForward    ? forward_features(p)
                     : pass == Pass::kBackward ? backward_features(p)
                                               : gemm_features(p, pass));
}

constexpr Kernels kTable = {kWidth,
                            qk,
                            av,
                            inverse,
                            softmax,
                            forward,
                            backward,
                            rows_fit,
                            any_gemm_scratch,
                            any_forward_scratch,
                            any_backward_scratch};

}  // namespace JAX_NA_ISA
}  // namespace jax_na
