// SPDX-License-Identifier: Apache-2.0
// The XLA custom calls of this module; the targets have the names that the CPU's have.
#pragma once

#include "xla/ffi/api/ffi.h"

extern "C" {
XLA_FFI_Error* JaxNaCudaNaiveQk(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaNaiveAv(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaNaiveInverse(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaGemmQk(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaGemmAv(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaGemmInverse(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaFusedForward(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaFusedBackward(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaCudaEmpty(XLA_FFI_CallFrame*);
}
