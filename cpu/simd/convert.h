// SPDX-License-Identifier: Apache-2.0
// Registers of float32 from and to memory of any element type of half or single precision.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/isa.h"
#include "cpu/simd/numeric.h"
#include "cpu/simd/vec.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

// kWidth elements, widened to float32 or rounded from it.
inline Vec load_wide(const float* from) { return load(from); }
inline Vec load_wide(const BFloat16* from) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  return from_bits(__builtin_convertvector(*reinterpret_cast<const Half*>(from), IntVec) << 16);
}
inline Vec load_wide(const Float16* from) {
  alignas(64) float wide[kWidth];
#if defined(__F16C__)
  for (int i = 0; i < kWidth; i += 8)
    _mm256_store_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#else
  for (int i = 0; i < kWidth; ++i) wide[i] = to_accumulator(from[i]);
#endif
  return load(wide);
}

inline void store_narrow(float* to, Vec value) { store(to, value); }
inline void store_narrow(BFloat16* to, Vec value) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
  *reinterpret_cast<Half*>(to) = __builtin_convertvector(bfloat16_bits(value), Half);
}
inline void store_narrow(Float16* to, Vec value) {
  alignas(64) float wide[kWidth];
  store(wide, value);
#if defined(__F16C__)
  for (int i = 0; i < kWidth; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_load_ps(wide + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < kWidth; ++i) assign(to[i], wide[i]);
#endif
}

// Where only `width` elements exist: the others read as zero and are not written.
template <class T>
inline Vec load_wide(const T* from, int width) {
  if (width >= kWidth) return load_wide(from);
  T buffer[kWidth] = {};
  memcpy(buffer, from, width * sizeof(T));
  return load_wide(buffer);
}
template <class T>
inline void store_narrow(T* to, Vec value, int width) {
  if (width >= kWidth) return store_narrow(to, value);
  T buffer[kWidth];
  store_narrow(buffer, value);
  memcpy(to, buffer, width * sizeof(T));
}

template <class T>
inline void widen(const T* from, float* to, int count) {
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load_wide(from + i));
  for (; i < count; ++i) to[i] = to_accumulator(from[i]);
}

// to[i] += from[i].
inline void add_to(float* to, const float* from, int count) {
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(to + i) + load(from + i));
  for (; i < count; ++i) to[i] += from[i];
}

// kWidth elements of a token from element `first` on, along its `dim` features; those past its end are zero.
template <class Packed, class T>
inline Vec load_elements(const T* token, int first, int dim) {
  if constexpr (kTerms<Packed> == 1) return load_wide(token + first, dim - first);
  alignas(64) BFloat16 buffer[2 * kWidth] = {};
  if (dim - 2 * first < 2 * kWidth)
    memcpy(buffer, token + 2 * first, (dim - 2 * first) * sizeof(T));
  else
    memcpy(buffer, token + 2 * first, sizeof buffer);
  return load(reinterpret_cast<const BFloat16Pair*>(buffer));
}

// Elements are scaled when they are packed, but pairs are not: that would round them.
template <class Packed>
inline Vec scaled(Vec elements, float factor) {
  return kTerms<Packed> == 1 ? elements * splat(factor) : elements;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
