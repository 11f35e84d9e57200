// SPDX-License-Identifier: Apache-2.0
// Conversions between number formats as the GPU does them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace simt {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint16_t kNaN16 = 0x7fff;  // of both 2-byte formats, what conversions of NaN give

inline float widen_bf16(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

// The mantissa and exponent of binary16, seen as those of binary32, are the value times 2^-112; subnormals too.
inline float widen_f16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31, rest = bits & 0x7fffu;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000u | rest << 13);  // infinity and NaN
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

// Drops `count` low bits of the magnitude, to nearest even.
inline uint32_t round_to_even(uint32_t magnitude, int count) {
  const uint32_t half = (1u << (count - 1)) - 1;
  return (magnitude + half + (magnitude >> count & 1)) >> count;
}

inline uint16_t narrow_bf16(float x) {
  if (x != x) return kNaN16;
  return static_cast<uint16_t>(bits_of(x) >> 31 << 15 | round_to_even(bits_of(x) & 0x7fffffffu, 16));
}

inline uint16_t narrow_f16(float x) {
  if (x != x) return kNaN16;
  const uint32_t sign = bits_of(x) >> 31 << 15, magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude >= bits_of(65520.f)) return static_cast<uint16_t>(sign | 0x7c00);  // half way to 2^16 and beyond
  // Below 2^-14 binary16 has a fixed step of 2^-24: adding 1/2 leaves |x| / 2^-24, rounded, in the low bits.
  if (magnitude < bits_of(0x1p-14f))
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  return static_cast<uint16_t>(sign | round_to_even(magnitude - (112u << 23), 13));
}

}  // namespace simt
