// SPDX-License-Identifier: Apache-2.0
// From a decoded call to its kernels, without XLA: the handlers come here, and the tests of single kernels.
#pragma once

#include <string>
#include <string_view>

#include "common/call/call.h"
#include "cuda/host/kernels.h"

namespace jax_na::cuda {

// Chooses the kernels of all passes, then enqueues them. Empty, or why none was enqueued; a failure of the GPU to start
// one is in `failure`.
std::string run(const Call& call, std::string_view choices, Stream stream, const char*& failure);

}  // namespace jax_na::cuda
