// SPDX-License-Identifier: Apache-2.0
// The XLA custom calls of this module; the targets have the names that the CPU's have.
#pragma once

#include "common/call/operands.h"
#include "xla/ffi/api/ffi.h"

namespace jax_na::cuda {

constexpr Platform kCuda = {false, false, true};

XLA_FFI_Handler* handler(Target);

}  // namespace jax_na::cuda
