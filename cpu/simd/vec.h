// SPDX-License-Identifier: Apache-2.0
// Portable SIMD through the compiler's vector extensions. A tile has kLanes queries, one per lane: kVecs registers.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/isa.h"
#include "common/window.h"
#include "cpu/host/kernels.h"
#include "cpu/simd/numeric.h"

namespace jax_na {
inline namespace JAX_NA_ISA {

#if defined(__AVX512F__) || defined(JAX_NA_EMULATE_AVX512)
constexpr int kWidth = 16;  // floats in a register
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr int kRegisters = 32;
#else
constexpr int kWidth = 4;
constexpr int kRegisters = 16;
#endif
constexpr int kVecs = kLanes / kWidth;

// A register of floats or of integers. Memory holds floats, which a Vec may alias, at any address.
typedef float Vec __attribute__((vector_size(kWidth * 4), may_alias));
typedef float UnalignedVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4), may_alias));

inline constexpr int padded(int dim) { return ceil_div(dim, kWidth) * kWidth; }

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }
inline Vec splat(float x) { return x - Vec{}; }  // x - 0 keeps the sign of zero
inline IntVec splat(int x) { return x - IntVec{}; }
inline IntVec load(const int32_t* from) {
  IntVec value;
  memcpy(&value, from, sizeof value);
  return value;
}
inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec vmax(Vec a, Vec b) {  // a NaN in b is kept
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(JAX_NA_EMULATE_AVX512)
  return _mm256_max_ps(a, b);
#else
  return select(a > b, a, b);
#endif
}
inline IntVec vmin(IntVec a, IntVec b) { return a < b ? a : b; }
inline IntVec vmax(IntVec a, IntVec b) { return a > b ? a : b; }
// Added to a sum of zeros: the sum stays zero as long as all values are finite.
inline Vec zero_if_finite(Vec value) { return value * Vec{}; }
inline IntVec bits_of(Vec value) { return reinterpret_cast<IntVec>(value); }
inline Vec from_bits(IntVec bits) { return reinterpret_cast<Vec>(bits); }

inline float max_lanes(Vec lanes) {
  float largest = lanes[0];
  for (int i = 1; i < kWidth; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}
inline bool all_zero(Vec lanes) {
  bool zero = true;
  for (int i = 0; i < kWidth; ++i) zero &= lanes[i] == 0.0f;
  return zero;
}
inline float sum_lanes(Vec lanes) {
  float sum = 0.0f;
  for (int i = 0; i < kWidth; ++i) sum += lanes[i];
  return sum;
}

// Keeps a value that is used several times in a register: compilers like to load it again with every use.
inline Vec in_register(Vec value) {
#if defined(__x86_64__) && !defined(JAX_NA_EMULATE_AVX512)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}

// The bits of floats rounded to bfloat16 (to nearest, ties to even, NaN stays NaN), in the lower half of every lane.
inline IntVec bfloat16_bits(Vec value) {
  typedef uint32_t Word __attribute__((vector_size(kWidth * 4)));
  const Word bits = reinterpret_cast<Word>(value);
  const Word rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Word nan = reinterpret_cast<Word>(value != value);
  return reinterpret_cast<IntVec>((nan & 0x7fc0u) | (~nan & rounded));
}

// Pairs of bfloat16 are the two halves of every lane.
//   dot_pairs  sum + a.low * b.low + a.high * b.high
//   narrow     the lanes of `low`, then those of `high`, rounded
//   interleave pairs from what `narrow` gives: lane i of low with lane i of high
#if defined(__AVX512BF16__)
constexpr bool kDotPairs = true;
inline Vec dot_pairs(Vec sum, Vec a, Vec b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
inline Vec narrow(Vec low, Vec high) { return reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(high, low)); }
inline Vec interleave(Vec both) {
  alignas(64) static constexpr int16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), reinterpret_cast<__m512i>(both)));
}
#else
// What the instructions do, in others. They take numbers below the normal ones for zero, and give none. Not inlined:
// unrolled kernels would be hundreds of times as much code.
#if defined(JAX_NA_EMULATE_BF16)
constexpr bool kDotPairs = true;
#else
constexpr bool kDotPairs = false;
#endif
inline Vec flush(Vec value) {
  const IntVec bits = bits_of(value);
  return from_bits((bits & splat(0x7f800000)) != 0 ? bits : IntVec{});
}
[[gnu::noinline]] inline Vec dot_pairs(Vec sum, Vec a, Vec b) {
  const IntVec high = splat(static_cast<int>(0xffff0000));
  const auto product = [](IntVec x, IntVec y) { return flush(from_bits(x)) * flush(from_bits(y)); };
  sum = flush(flush(sum) + product(bits_of(a) & high, bits_of(b) & high));
  return flush(sum + product(bits_of(a) << 16, bits_of(b) << 16));
}
[[gnu::noinline]] inline Vec narrow(Vec low, Vec high) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2)));
  const Half halves[2] = {__builtin_convertvector(bfloat16_bits(flush(low)), Half),
                          __builtin_convertvector(bfloat16_bits(flush(high)), Half)};
  Vec both;
  memcpy(&both, halves, sizeof both);
  return both;
}
[[gnu::noinline]] inline Vec interleave(Vec both) {
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2)));
  Half halves[2];
  memcpy(halves, &both, sizeof both);
  return from_bits(__builtin_convertvector(halves[0], IntVec) | __builtin_convertvector(halves[1], IntVec) << 16);
}
#endif

// Pairs of values that are bfloat16 already.
inline Vec pair_exactly(Vec low, Vec high) { return from_bits((bits_of(low) >> 16 & splat(0xffff)) | bits_of(high)); }

// The element of packed operands of type T: a float, or a pair of bfloat16 where two products are one instruction.
// Everything that reads packed operands is a template on it, named Packed.
template <class T>
using PackedOf = std::conditional_t<kDotPairs && std::is_same_v<T, BFloat16>, BFloat16Pair, float>;
template <class Packed>
constexpr int kTerms = std::is_same_v<Packed, BFloat16Pair> ? 2 : 1;  // products of one element

inline Vec load(const BFloat16Pair* from) {
  Vec value;
  memcpy(&value, from, sizeof value);
  return value;
}
inline void store(BFloat16Pair* to, Vec value) { memcpy(to, &value, sizeof value); }
inline Vec splat(BFloat16Pair pair) {
  int32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return from_bits(splat(bits));
}
template <class Packed>
[[gnu::always_inline]] inline Vec add_product(Vec sum, Vec a, Vec b) {
  if constexpr (kTerms<Packed> == 2)
    return dot_pairs(sum, a, b);
  else
    return sum + a * b;
}

// Interleaves the lower (upper) halves of two registers.
#if defined(__AVX512F__) || defined(JAX_NA_EMULATE_AVX512)
inline Vec zip_low(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vec zip_high(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
inline Vec zip_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline Vec zip_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline Vec zip_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Vec zip_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// In-register transpose of kWidth x kWidth floats: every round interleaves the first half of the rows with the second.
inline void transpose(Vec (&row)[kWidth]) {
#pragma GCC unroll 4
  for (int round = kWidth; round > 1; round /= 2) {
    Vec next[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = zip_low(row[i], row[i + kWidth / 2]);
      next[2 * i + 1] = zip_high(row[i], row[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) row[i] = next[i];
  }
}

// 2^x for x <= 127, about 2 ulp; exactly 0 below -126.5 (so also for -inf), where the exponent field becomes 0; NaN for
// NaN. Adding 1.5 * 2^23 rounds to an integer n and leaves it in the low bits; with rest = x - n in [-1/2, 1/2],
// 2^x = 2^rest 2^n: a polynomial, and n added to the exponent field of 1.
inline Vec exp2(Vec exponent) {
  const Vec magic = splat(12582912.0f);
  const Vec clamped = vmax(splat(-127.0f), exponent);
  const Vec shifted = clamped + magic;
  const Vec rest = clamped - (shifted - magic);
  Vec power = splat(1.33335581e-3f);
  power = power * rest + splat(9.61812911e-3f);
  power = power * rest + splat(5.55041087e-2f);
  power = power * rest + splat(2.40226507e-1f);
  power = power * rest + splat(6.93147182e-1f);
  power = power * rest + splat(1.0f);
  typedef uint32_t Word __attribute__((vector_size(kWidth * 4)));  // lanes without a query hold anything: it wraps
  const Word factor = (reinterpret_cast<Word>(shifted) << 23) + reinterpret_cast<Word>(splat(1.0f));
  return power * reinterpret_cast<Vec>(factor);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
