// SPDX-License-Identifier: Apache-2.0
// Which compiled copy of the kernels this machine runs.
#pragma once

#include <string>
#include <vector>

#include "common/call/choice.h"
#include "cpu/host/kernels.h"

namespace jax_na {

// Names of the levels this machine can run, slowest first.
std::vector<std::string> instruction_sets();

// The fastest level, or the one that the environment variable JAX_NA_ISA names (read once).
// Throws std::runtime_error when that is not a level of this machine.
const std::string& instruction_set();
const Kernels& best_kernels();
inline Table<CpuVariant> best_rows() { return {best_kernels().rows, best_kernels().count}; }

}  // namespace jax_na
