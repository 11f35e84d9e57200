// SPDX-License-Identifier: Apache-2.0
// Element types and their conversion to and from the type that sums are kept in.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/dtype.h"
#include "common/isa.h"

namespace jax_na {

struct BFloat16 {
  uint16_t bits;
};
struct BFloat16Pair {  // neighbours in a sum of products
  BFloat16 low, high;
};
using Float16 = _Float16;

inline namespace JAX_NA_ISA {

// Sums are kept in float32, in float64 for float64.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

inline float to_accumulator(float x) { return x; }
inline double to_accumulator(double x) { return x; }
inline float to_accumulator(Float16 x) { return static_cast<float>(x); }
inline float to_accumulator(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline void assign(float& to, float x) { to = x; }
inline void assign(double& to, double x) { to = x; }
inline void assign(Float16& to, float x) { to = static_cast<Float16>(x); }
inline void assign(BFloat16& to, float x) {  // round to nearest, ties to even; a NaN stays a NaN
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

inline bool is_finite(const float* values, int count) {
  float zero = 0;
  for (int i = 0; i < count; ++i) zero += values[i] - values[i];
  return zero == 0;
}

// Calls body(T{}) with the element type that dtype names.
template <class Body>
void with_half_or_single(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) body(float{});
  if (dtype == DType::kBFloat16) body(BFloat16{});
  if (dtype == DType::kFloat16) body(Float16{});
}
template <class Body>
void with_dtype(DType dtype, const Body& body) {
  if (dtype == DType::kFloat64) body(double{});
  with_half_or_single(dtype, body);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
