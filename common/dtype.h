// SPDX-License-Identifier: Apache-2.0
// Element types by name, as the handlers decode them from a call.
#pragma once

namespace jax_na {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64 };

}  // namespace jax_na
