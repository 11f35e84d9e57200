// SPDX-License-Identifier: Apache-2.0
// Turns a run-time value into a template argument without macros or generated code.
#pragma once

#include "common/isa.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls body(Constant<V>{}) for the V among Values that equals value; false when none does.
template <int... Values, class Body>
bool match(int value, const Body& body) {
  return ((value == Values && (body(Constant<Values>{}), true)) || ...);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
