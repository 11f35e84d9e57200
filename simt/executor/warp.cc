// SPDX-License-Identifier: Apache-2.0
// Collectives of a warp: shuffles, votes, reductions, and its matrix instructions.
//
// None of them orders memory accesses, as on the GPU: only warp_sync does.
#include <algorithm>

#include "simt/executor/block.h"
#include "simt/executor/executor.h"
#include "simt/executor/memory.h"
#include "simt/executor/numbers.h"

namespace simt {
namespace {

constexpr uint32_t kTF32Bits = 0xffffe000, kTF32Half = 0x1000;  // what TF32 keeps; half of its last place

struct Exchange {
  uint32_t value, result;
  int lane;  // whose value it asks for
};

uint32_t exchange(const char* name, Site site, uint32_t value, int lane) {
  Exchange mine{value, 0, lane & (kWarp - 1)};
  collective<kWarp>(name, site, mine, [](Exchange** all) {
    for (int i = 0; i < kWarp; ++i) all[i]->result = all[all[i]->lane]->value;
  });
  return mine.result;
}

// The same result for every lane.
template <class Function>
int reduce(const char* name, Site site, int value, const Function& combine) {
  int mine = value;
  collective<kWarp>(name, site, mine, [&](int** all) {
    int result = *all[0];
    for (int i = 1; i < kWarp; ++i) result = combine(result, *all[i]);
    for (int i = 0; i < kWarp; ++i) *all[i] = result;
  });
  return mine;
}

struct Matrices {
  uint32_t* r;
  const char* row;
};

void distribute(Matrices** all, bool transposed) {
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) memcpy(matrix[row], all[8 * m + row]->row, sizeof matrix[row]);
    for (int lane = 0; lane < kWarp; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = transposed ? matrix[j][i] : matrix[i][j];
      const uint32_t high = transposed ? matrix[j + 1][i] : matrix[i][j + 1];
      all[lane]->r[m] = low | high << 16;
    }
  }
}

struct Product {
  float* d;
  const uint32_t* left;
  uint32_t right[2];
};

float widen_half(uint32_t pair, int half, bool bf16) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * half));
  return bf16 ? widen_bf16(bits) : widen_f16(bits);
}

template <int kTerms>
void multiply_add(Product** all, const float (&left)[16][kTerms], const float (&right)[kTerms][8]) {
  for (int lane = 0; lane < kWarp; ++lane)
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      float sum = 0;
      for (int k = 0; k < kTerms; ++k) sum += left[row][k] * right[k][column];
      all[lane]->d[e] += sum;
    }
}

void multiply_halves(Product** all, bool bf16) {
  float left[16][16], right[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, i = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int part = 0; part < 4; ++part)
        left[g + part % 2 * 8][2 * i + half + part / 2 * 8] = widen_half(all[lane]->left[part], half, bf16);
      for (int part = 0; part < 2; ++part)
        right[2 * i + half + part * 8][g] = widen_half(all[lane]->right[part], half, bf16);
    }
  }
  multiply_add(all, left, right);
}

void multiply_tf32(Product** all) {
  float left[16][8], right[8][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, i = lane % 4;
    for (int part = 0; part < 4; ++part)
      left[g + part % 2 * 8][i + part / 2 * 4] = float_of(all[lane]->left[part] & kTF32Bits);
    for (int part = 0; part < 2; ++part) right[i + part * 4][g] = float_of(all[lane]->right[part] & kTF32Bits);
  }
  multiply_add(all, left, right);
}

float flush_subnormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

}  // namespace

uint32_t shuffle(uint32_t value, int lane) { return exchange("shuffle", __builtin_return_address(0), value, lane); }
uint32_t shuffle_xor(uint32_t value, int mask) {
  return exchange("shuffle_xor", __builtin_return_address(0), value, block.current % kWarp ^ mask);
}
bool warp_all(bool value) {
  return reduce("warp_all", __builtin_return_address(0), value, [](int left, int right) { return left & right; });
}
bool warp_any(bool value) {
  return reduce("warp_any", __builtin_return_address(0), value, [](int left, int right) { return left | right; });
}
uint32_t warp_ballot(bool value) {
  uint32_t mine = value;
  collective<kWarp>("warp_ballot", __builtin_return_address(0), mine, [](uint32_t** all) {
    uint32_t votes = 0;
    for (int i = 0; i < kWarp; ++i) votes |= *all[i] << i;
    for (int i = 0; i < kWarp; ++i) *all[i] = votes;
  });
  return mine;
}
int warp_min(int value) {
  return reduce("warp_min", __builtin_return_address(0), value,
                [](int left, int right) { return std::min(left, right); });
}
int warp_max(int value) {
  return reduce("warp_max", __builtin_return_address(0), value,
                [](int left, int right) { return std::max(left, right); });
}

void ldmatrix(uint32_t (&r)[4], uint32_t row_address, bool transposed) {
  const Site site = __builtin_return_address(0);
  Matrices mine{r, access_shared(row_address, 16, 16, generic_access(false, site))};
  collective<kWarp>("ldmatrix", site, mine, [&](Matrices** all) { distribute(all, transposed); });
}

void mma(Type type, float (&d)[4], const uint32_t (&left)[4], uint32_t b0, uint32_t b1) {
  Product mine{d, left, {b0, b1}};
  collective<kWarp>("mma", __builtin_return_address(0), mine, [&](Product** all) {
    type == Type::kTF32 ? multiply_tf32(all) : multiply_halves(all, type == Type::kBF16);
  });
}

uint16_t float_to_f16(float x) { return narrow_f16(x); }
uint16_t float_to_bf16(float x) { return narrow_bf16(x); }
float f16_to_float(uint16_t bits) { return widen_f16(bits); }
float bf16_to_float(uint16_t bits) { return widen_bf16(bits); }

// Infinity and NaN are only cut off, as the GPU does.
uint32_t to_tf32(float x) {
  const uint32_t bits = bits_of(x);
  return (isfinite(x) ? bits + kTF32Half : bits) & kTF32Bits;
}
float exp2_approx(float x) { return flush_subnormal(exp2f(flush_subnormal(x))); }

void trap() {
  fail("trap", text("in block %u", block.index), {{text("thread %d", block.current), __builtin_return_address(0)}});
}

}  // namespace simt
