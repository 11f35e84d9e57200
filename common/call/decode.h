// SPDX-License-Identifier: Apache-2.0
// From the buffers and attributes of an XLA FFI call to the arguments of kernels: every size is checked against every
// other, so that a kernel reads and writes nothing but the arrays it was given. Python checks before; this is the
// second line, for a foreign caller.
#pragma once

#include "common/call/attributes.h"
#include "common/call/call.h"

namespace jax_na {

// Fills in a call, or says with the values what is wrong with it.
ffi::Error decode(const Platform&, Target, const Attributes&, const ffi::RemainingArgs&, const ffi::RemainingRets&,
                  Call&);

// An error of a call, which names its target.
ffi::Error refuse(Target, const std::string& message);

}  // namespace jax_na
