// SPDX-License-Identifier: Apache-2.0
// Large results are fresh memory: XLA gets it from the system and gives it back with every call, and the first touch of
// each of its pages is a trip into the operating system, up to a third of the time of a call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jax_na {

// Asks for huge pages under a result that is about to be written, which makes its first touches few. Advice only: where
// there are none, or it is not allowed, nothing changes.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21, kWorthwhile = 2 * kHugePage;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data), stop = (start + bytes) / kHugePage * kHugePage;
  const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (bytes >= kWorthwhile) madvise(reinterpret_cast<void*>(first), stop - first, MADV_HUGEPAGE);
#endif
}

}  // namespace jax_na
