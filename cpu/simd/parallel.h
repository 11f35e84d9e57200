// SPDX-License-Identifier: Apache-2.0
// How a kernel asks for its units of work to be run. Plain data: the pool behind it is XLA's (see thread_pool.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/isa.h"

namespace jax_na {

struct Parallel {
  void* pool;
  int workers;    // at most this many threads, numbered 0 .. workers - 1
  char* scratch;  // workers * scratch_per_worker bytes
  int64_t scratch_per_worker;
  // Calls body(context, unit, worker) once for every unit; returns when all are done.
  void (*run)(const Parallel& self, int64_t units, void (*body)(void*, int64_t, int), void* context);
};

inline namespace JAX_NA_ISA {

// body(unit, scratch): units in any order, on any worker; `scratch` belongs to the worker for the duration of the unit.
template <class Body>
void parallel_for(const Parallel& parallel, int64_t units, Body& body) {
  struct Context {
    Body& body;
    const Parallel& parallel;
  } context{body, parallel};
  parallel.run(
      parallel, units,
      [](void* pointer, int64_t unit, int worker) {
        auto& c = *static_cast<Context*>(pointer);
        c.body(unit, c.parallel.scratch + worker * c.parallel.scratch_per_worker);
      },
      &context);
}

// Hands out 64-byte aligned pieces of a scratch buffer; started from null it only counts the bytes.
struct Arena {
  char* next;

  template <class T>
  T* take(int64_t count) {
    const uintptr_t start = (reinterpret_cast<uintptr_t>(next) + 63) / 64 * 64;
    next = reinterpret_cast<char*>(start + count * sizeof(T));
    return reinterpret_cast<T*>(start);
  }
};

// Bytes that make(arena) takes from an arena, wherever that starts.
template <class Make>
int64_t arena_bytes(const Make& make) {
  Arena arena{nullptr};
  make(arena);
  return reinterpret_cast<int64_t>(arena.next) + 64;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
