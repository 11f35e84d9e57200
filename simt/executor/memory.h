// SPDX-License-Identifier: Apache-2.0
// The memory that a kernel can reach: shared memory, registered buffers, its own stack.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "simt/executor/shadow.h"

namespace simt {

// Shared addresses do not begin at 0, as on GPUs: an address computed from nothing is out of bounds.
constexpr uint32_t kSharedBase = 1024;

void set_stacks(const char* begin, size_t bytes);  // of the kernel's threads
void set_running(bool running);                    // accesses are checked while a kernel runs
void begin_shared(size_t bytes);                   // void, which reads as NaN of every type

// Checks an access to shared memory and returns where the bytes are; out of bounds ends the launch. `alignment` 1 or
// what the instruction asks for.
char* access_shared(uint32_t address, size_t bytes, size_t alignment, const Access& access);
char* shared_at(uint32_t address);                              // unchecked
void land_shared(uint32_t address, size_t bytes, Clock clock);  // asynchronous writes of the current thread
void poison(char* at, size_t bytes);

// Checks an access to global memory.
void access_global(const void* begin, size_t bytes, size_t alignment, const Access& access);

}  // namespace simt
