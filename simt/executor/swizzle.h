// SPDX-License-Identifier: Apache-2.0
// The permutations of shared memory that tensor copies and wgmma know, by the number in a matrix descriptor: 0 none,
// 1, 2, 3 for rows of 128, 64, 32 bytes.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simt {

constexpr uint32_t row_bytes(int swizzle) { return 256u >> swizzle; }

// The bits from 4 on, which number the chunks of a row, are xored with those from 7 on.
constexpr uint32_t swizzled(uint32_t address, int swizzle) {
  return swizzle == 0 ? address : address ^ (((address >> 7) & (row_bytes(swizzle) / 16 - 1)) << 4);
}

// The permutation repeats after 8 rows, of 128 bytes at least; this is where boxes must begin.
constexpr size_t pattern_bytes(int swizzle) { return swizzle == 0 ? 128 : 8 * row_bytes(swizzle); }

}  // namespace simt
