// SPDX-License-Identifier: Apache-2.0
// What the naive kernels and their rows of the table have in common.
#pragma once

namespace jax_na::cuda {

constexpr int kNaiveThreads = 128;  // of a block; each computes one result, or some channels of one

}  // namespace jax_na::cuda
