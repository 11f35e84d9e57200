// SPDX-License-Identifier: Apache-2.0
#define JAX_NA_ISA avx512bf16
#include "cpu/host/kernel_table.h"

namespace jax_na {
const Kernels kKernelsAvx512Bf16 = kTable;
}
