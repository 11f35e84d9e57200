// SPDX-License-Identifier: Apache-2.0
// The executor runs CUDA kernels on the host, thread by thread, and looks for what a GPU would not tell: races,
// accesses out of bounds or misaligned, missing waits, threads that wait for each other. README.md says how; this is
// all that kernels, launchers and tests need of it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simt {

// ---- for tests ----

void reset();                  // forgets buffers and findings
void set_seed(uint32_t seed);  // of the order in which threads run and copies land
// Memory that kernels may read, and write if `writable`; everything else is out of bounds.
void register_buffer(const void* begin, size_t bytes, const char* name, bool writable);
int findings();        // number of different ones since reset
const char* report();  // their text, valid until the next call

// ---- for launchers ----

void run(unsigned blocks, unsigned threads, int shared_bytes, void (*body)(const void*), const void* argument);

// Runs kernel(params...) as a grid of `blocks` blocks, one after the other. Null, or a static text of what is illegal
// about the launch; what is wrong with the kernel is a finding.
template <class... Params>
const char* launch(void (*kernel)(Params...), unsigned blocks, unsigned threads, int shared_bytes,
                   const Params&... params) {
  constexpr int kMostThreads = 1024, kMostShared = 227 << 10;
  if (threads == 0 || threads > kMostThreads || threads % 32 != 0) return "a block has 32 to 1024 threads, whole warps";
  if (shared_bytes < 0 || shared_bytes > kMostShared) return "a block has up to 227 KB of shared memory";
  const auto body = [&] { kernel(params...); };
  run(blocks, threads, shared_bytes, [](const void* b) { (*static_cast<decltype(body)*>(b))(); }, &body);
  return nullptr;
}

// ---- for kernels: CUDA's variables ----

struct Dim3 {
  unsigned x, y, z;
};
extern Dim3 thread_index, block_index, block_dimension, grid_dimension;

// ---- for kernels: what the wrappers in device/ call; the files of cuda/ptx/ explain ----

char* dynamic_shared();
uint32_t shared_address(const void* pointer);

void cp_async16(uint32_t to, const void* from, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

void block_sync();
void warp_sync();
uint32_t shuffle(uint32_t value, int lane);
uint32_t shuffle_xor(uint32_t value, int mask);
bool warp_all(bool value);
bool warp_any(bool value);
uint32_t warp_ballot(bool value);
int warp_min(int value);
int warp_max(int value);

enum class Type { kF16, kBF16, kTF32 };
void ldmatrix(uint32_t (&r)[4], uint32_t row_address, bool transposed);
void mma(Type type, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

uint16_t float_to_f16(float x);
uint16_t float_to_bf16(float x);
float f16_to_float(uint16_t bits);
float bf16_to_float(uint16_t bits);
uint32_t to_tf32(float x);
float exp2_approx(float x);

[[noreturn]] void trap();

}  // namespace simt
