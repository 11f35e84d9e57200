// SPDX-License-Identifier: Apache-2.0
// Element types by name, as the handlers decode them from a call.
#pragma once

namespace jax_na {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int kDTypes = 4;
constexpr const char* kDTypeNames[kDTypes] = {"float32", "bfloat16", "float16", "float64"};
constexpr int kDTypeBytes[kDTypes] = {4, 2, 2, 8};

}  // namespace jax_na
