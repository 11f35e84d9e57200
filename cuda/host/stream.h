// SPDX-License-Identifier: Apache-2.0
// CUDA's type of a stream, without CUDA's headers.
#pragma once

struct CUstream_st;

namespace jax_na::cuda {

using Stream = CUstream_st*;  // cudaStream_t

}  // namespace jax_na::cuda
