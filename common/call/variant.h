// SPDX-License-Identifier: Apache-2.0
// The row of the table of kernels: what a kernel takes, and which tiles it has. Plain data and plain functions, because
// some rows are compiled once per instruction set (common/isa.h). Each platform adds how its kernels are run.
#pragma once

#include <stdarg.h>
#include <stdio.h>

#include "common/call/args.h"
#include "common/call/operands.h"

namespace jax_na {

// What is known of a call when a program is compiled.
struct Query {
  Problem problem;  // sizes of arrays, besides features and pitch, are 0 where they are not known
  DType dtype;
  bool is_exact;
  Operands operands;  // those that the call has
};

// A sentence, empty for none.
struct Text {
  char at[320];
};

// Tiles of a kernel that exist and fit, and what their costs depend on.
struct Tiling {
  Tiles tiles;
  int rows;          // tokens that stay in a block
  int warp_rows;     // how many of them a warp has; on CPUs all
  int columns;       // tokens streamed per step, or all that a warp of a halo kernel scores
  int features;      // that a row in fast memory has room for
  int staged_slots;  // slots of a row of weights kept in fast memory; 0 for kernels that keep none
};

// Which extents of tiles the name of a kernel is followed by.
enum class Form {
  kNone,
  kLeadingAxes,  // one for every axis but the last
  kTile,         // one for every axis
  kTilePair      // those of the query tile, then those of the key tile
};

// Called with every tiling.
struct TilingVisitor {
  void (*visit)(void* context, const Tiling&);
  void* context;
};

// How a kernel says no: it writes a sentence that begins with "it takes" and has the values. Null where it never does.
using Obstacle = void (*)(const Query&, Text&);

struct Variant {
  Target target;
  Pass pass;
  const char* name;
  Form form;
  Operands takes;  // of the optional operands
  unsigned types;  // of elements, a bit for each DType
  Obstacle obstacle;
  void (*tile_obstacle)(const Query&, const Tiles&, Text&);
  void (*tilings)(const Query&, const TilingVisitor&);
  const char* capability = nullptr;  // of the GPUs that it is for, "9.0"; null if it is for all devices of its platform
};

inline namespace JAX_NA_ISA {

constexpr unsigned type_bit(DType dtype) { return 1u << static_cast<int>(dtype); }
constexpr unsigned kHalfOrSingle = type_bit(DType::kFloat32) | type_bit(DType::kBFloat16) | type_bit(DType::kFloat16);
constexpr unsigned kAllTypes = kHalfOrSingle | type_bit(DType::kFloat64);

constexpr int volume(const int (&tile)[kAxes]) { return tile[0] * tile[1] * tile[2]; }

[[gnu::format(printf, 2, 3)]] inline void say(Text& text, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(text.at, sizeof text.at, format, values);
  va_end(values);
}
inline bool is_empty(const Text& text) { return text.at[0] == '\0'; }

// Calls body(tile) for every tile whose extents are powers of two with this product, the longest along the last axis
// first; leading axes that the caller did not give have an extent of one.
template <class Body>
void for_each_tile(int rank, int tokens, const Body& body) {
  for (int first = 1; first <= (rank > 2 ? tokens : 1); first *= 2)
    for (int second = 1; second <= (rank > 1 ? tokens / first : 1); second *= 2)
      body({first, second, tokens / (first * second)});
}

inline void say_types(unsigned types, DType given, Text& text) {
  char names[64] = "";
  int length = 0;
  for (int i = 0; i < kDTypes; ++i)
    if ((types >> i & 1) != 0)
      length += snprintf(names + length, sizeof names - length, "%s%s", length > 0 ? ", " : "", kDTypeNames[i]);
  say(text, "it takes %s, not %s", names, kDTypeNames[static_cast<int>(given)]);
}

// Why a kernel does not take a call whatever its tile; the text stays empty if it does.
inline void find_obstacle(const Variant& variant, const Query& query, Text& text) {
  const Operands optional = array_signature(variant.target).optional;
  const Operands refused = query.operands & optional & ~variant.takes;
  if ((variant.types & type_bit(query.dtype)) == 0)
    say_types(variant.types, query.dtype, text);
  else if (has(refused, Operand::kRpb))
    say(text, "it takes no relative positional bias (rpb)");
  else if (has(refused, Operand::kKeyMask))
    say(text, "it takes no mask of keys (key_mask)");
  else if (refused != 0)
    say(text, "it takes no additional tokens (token_key, token_value)");
  else if (variant.obstacle != nullptr)
    variant.obstacle(query, text);
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
