// SPDX-License-Identifier: Apache-2.0
// The XLA custom calls of this module: target name and handler. CUDA registers the same names.
#pragma once

#include "xla/ffi/api/ffi.h"

extern "C" {
XLA_FFI_Error* JaxNaNaiveQk(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaNaiveAv(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaNaiveInverse(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaGemmQk(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaGemmAv(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaGemmInverse(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaFusedForward(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaFusedBackward(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaSoftmax(XLA_FFI_CallFrame*);
XLA_FFI_Error* JaxNaEmpty(XLA_FFI_CallFrame*);
}
