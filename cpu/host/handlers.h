// SPDX-License-Identifier: Apache-2.0
// The XLA custom calls of this module; CUDA registers the same names.
#pragma once

#include "common/call/operands.h"
#include "xla/ffi/api/ffi.h"

namespace jax_na {

constexpr Platform kCpu = {true, true, false};

XLA_FFI_Handler* handler(Target);

}  // namespace jax_na
