// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set; each isa_*.cc names its set, includes this file and exports the table.
#pragma once

#include "fused_backward.h"
#include "fused_forward.h"
#include "gemm.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

constexpr Kernels kTable = {gemm_qk,        gemm_av,      gemm_inverse,    fused_forward,
                            fused_backward, gemm_scratch, forward_scratch, backward_scratch};

}  // namespace JAX_NA_ISA
}  // namespace jax_na
