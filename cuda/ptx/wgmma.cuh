// SPDX-License-Identifier: Apache-2.0
// Matrix products of a warpgroup (wgmma, compute capability 9.0), in float32 with operands of 2 bytes:
// sums (64 x N) = left (64 x 16) right (16 x N), or sums += left right. They run asynchronously: wgmma_fence, products,
// wgmma_commit, wgmma_wait.
//
// Warp w of the four has rows 16 w to 16 w + 15. With g = lane / 4 and i = lane % 4 a lane holds
//   sums[4 c + 2 h + e]: (16 w + g + 8 h, 8 c + 2 i + e);   left, in registers: as mma_f16, of these 16 rows.
#pragma once

#include <stdint.h>

#include "cuda/ptx/sm90.cuh"

namespace jax_na::cuda {

struct Half;
struct BFloat16;

// Where an operand lies in shared memory, in rows of 128, 64 or 32 bytes ("a row" below) that `swizzle` permutes.
//   K-major, the 16 terms of a product are neighbours: a row per index along M or N. Rows follow each other in groups
//   of
//     8, groups at `stride_bytes`; `leading_bytes` is unused. The next 16 terms are at `address` + 32, inside the row.
//   MN-major, neighbours along N: a row per term. Terms follow each other in groups of 8, groups at `stride_bytes`; the
//     next row's worth of N is at `leading_bytes`.
// Groups of 8 rows begin at multiples of 8 rows.
constexpr __device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, int leading_bytes, int stride_bytes,
                                                                Swizzle swizzle) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t(leading_bytes >> 4) << 16 | uint64_t(stride_bytes >> 4) << 32 |
         uint64_t(swizzle) << 62;
}

#ifndef JAX_NA_SIMT

// Before the first product, and after registers of sums or of a left operand changed.
__device__ __forceinline__ void wgmma_fence() { JAX_NA_SM90A("wgmma.fence.sync.aligned;" :: : "memory"); }
__device__ __forceinline__ void wgmma_commit() { JAX_NA_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory"); }

// Waits until at most kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  JAX_NA_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The compiler does not know that products write sums later: this keeps it from moving their uses across.
template <int kRegisters>
__device__ __forceinline__ void keep(float (&sums)[kRegisters]) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// One specialisation per type and N: inline PTX needs every register spelled out.
template <class Element, int N>
struct Wgmma;

#define JAX_NA_LIST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define JAX_NA_LIST_32 JAX_NA_LIST_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define JAX_NA_LIST_48 JAX_NA_LIST_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define JAX_NA_LIST_64 JAX_NA_LIST_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define JAX_NA_LIST_80 JAX_NA_LIST_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define JAX_NA_LIST_96 JAX_NA_LIST_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define JAX_NA_LIST_112 \
  JAX_NA_LIST_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define JAX_NA_LIST_128 \
  JAX_NA_LIST_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define JAX_NA_SUMS_4(at) "+f"(sums[at]), "+f"(sums[at + 1]), "+f"(sums[at + 2]), "+f"(sums[at + 3])
#define JAX_NA_SUMS_16(at) JAX_NA_SUMS_4(at), JAX_NA_SUMS_4(at + 4), JAX_NA_SUMS_4(at + 8), JAX_NA_SUMS_4(at + 12)
#define JAX_NA_SUMS_32(at) JAX_NA_SUMS_16(at), JAX_NA_SUMS_16(at + 16)
#define JAX_NA_SUMS_64(at) JAX_NA_SUMS_32(at), JAX_NA_SUMS_32(at + 32)
#define JAX_NA_SUMS_128(at) JAX_NA_SUMS_64(at), JAX_NA_SUMS_64(at + 64)

// COUNT = N / 2 sums; p0 to p6 are the numbers of the operands after them. The constants in the text: both operands
// enter with their own sign, and a left operand in shared memory is K-major.
#define JAX_NA_WGMMA(ELEMENT, NAME, N, COUNT, p0, p1, p2, p3, p4, p5, p6)                                            \
  template <>                                                                                                        \
  struct Wgmma<ELEMENT, N> {                                                                                         \
    template <int kRightMajorN>                                                                                      \
    static __device__ __forceinline__ void ss(float (&sums)[COUNT], uint64_t left, uint64_t right, int accumulate) { \
      JAX_NA_SM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." NAME "." NAME " {" JAX_NA_LIST_##COUNT "}, %" #p0 ", %" #p1 ", p, 1, 1, 0, %" #p3      \
                                                                     ";\n}" : JAX_NA_SUMS_##COUNT(0) : "l"(left),    \
                   "l"(right), "r"(accumulate), "n"(kRightMajorN));                                                  \
    }                                                                                                                \
    template <int kRightMajorN>                                                                                      \
    static __device__ __forceinline__ void rs(float (&sums)[COUNT], const uint32_t (&left)[4], uint64_t right,       \
                                              int accumulate) {                                                      \
      JAX_NA_SM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." NAME "." NAME " {" JAX_NA_LIST_##COUNT "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3       \
                                                                     "}, %" #p4 ", p, 1, 1, %" #p6                   \
                                                                     ";\n}" : JAX_NA_SUMS_##COUNT(0) : "r"(left[0]), \
                   "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(accumulate), "n"(kRightMajorN));        \
    }                                                                                                                \
  };
#define JAX_NA_WGMMA_TYPES(...)          \
  JAX_NA_WGMMA(Half, "f16", __VA_ARGS__) \
  JAX_NA_WGMMA(BFloat16, "bf16", __VA_ARGS__)

JAX_NA_WGMMA_TYPES(32, 16, 16, 17, 18, 19, 20, 21, 22)
JAX_NA_WGMMA_TYPES(64, 32, 32, 33, 34, 35, 36, 37, 38)
JAX_NA_WGMMA_TYPES(128, 64, 64, 65, 66, 67, 68, 69, 70)
JAX_NA_WGMMA_TYPES(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef JAX_NA_WGMMA_TYPES
#undef JAX_NA_WGMMA
#undef JAX_NA_SUMS_128
#undef JAX_NA_SUMS_64
#undef JAX_NA_SUMS_32
#undef JAX_NA_SUMS_16
#undef JAX_NA_SUMS_4
#undef JAX_NA_LIST_128
#undef JAX_NA_LIST_112
#undef JAX_NA_LIST_96
#undef JAX_NA_LIST_80
#undef JAX_NA_LIST_64
#undef JAX_NA_LIST_48
#undef JAX_NA_LIST_32
#undef JAX_NA_LIST_16

// Both operands from shared memory, the left one K-major. Element is Half or BFloat16, N one of the above.
template <class Element, int N, bool kRightMajorN>
__device__ __forceinline__ void wgmma_ss(float (&sums)[N / 2], uint64_t left, uint64_t right, bool accumulate) {
  Wgmma<Element, N>::template ss<kRightMajorN>(sums, left, right, accumulate);
}

// The left operand from registers.
template <class Element, int N, bool kRightMajorN>
__device__ __forceinline__ void wgmma_rs(float (&sums)[N / 2], const uint32_t (&left)[4], uint64_t right,
                                         bool accumulate) {
  Wgmma<Element, N>::template rs<kRightMajorN>(sums, left, right, accumulate);
}

#endif

}  // namespace jax_na::cuda
