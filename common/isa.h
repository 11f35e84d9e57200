// SPDX-License-Identifier: Apache-2.0
// One source is compiled several times, each time for another instruction set. Everything that has code lives in
// the inline namespace JAX_NA_ISA, so that the linker can never keep the AVX-512 copy of a shared inline function for
// a machine without it. Plain data (structs without member functions) lives in jax_na itself and crosses the border.
#pragma once

#ifndef JAX_NA_ISA
#define JAX_NA_ISA portable
#endif

#ifdef __CUDACC__
#define JAX_NA_HD __host__ __device__
#else
#define JAX_NA_HD
#endif
