// SPDX-License-Identifier: Apache-2.0
#define JAX_NA_ISA portable
#include "cpu/host/kernel_table.h"

namespace jax_na {
const Kernels kKernelsPortable = kTable;
}
