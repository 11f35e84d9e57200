// SPDX-License-Identifier: Apache-2.0
// Rows of results by definition: what the kernels of all instruction sets leave out, because the products of their
// tiles cannot give it (common/definition.h says why). Rare, so it is compiled once and not vectorised.
#pragma once

#include <stdint.h>

#include "common/call/args.h"

namespace jax_na {

// out and lse of one query.
void define_attention(const ForwardArgs& args, int64_t query_row);

// dquery of one query.
void define_query_gradient(const BackwardArgs& args, int64_t query_row);

// dkey and dvalue of one key.
void define_key_gradients(const BackwardArgs& args, int64_t key_row);

// dquery of a query, and its share of dkey, dvalue and drpb, added to those. Not by several threads at once.
void add_gradients_of_query(const BackwardArgs& args, int64_t query_row);

// The sums of av and inverse, whose results are float32 for `inverse`. A weight of exactly zero adds nothing.
void define_av(const UnfusedArgs& args, int64_t query_row);
void define_inverse(const UnfusedArgs& args, int64_t key_row);

}  // namespace jax_na
