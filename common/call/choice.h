// SPDX-License-Identifier: Apache-2.0
// The attribute `kernels`: which kernels a call may run. The passes of the target are separated by ";", the choices of
// a pass by "|" in order of preference, and a choice is a name, or a name and the extents of its tiles:
//
//   rows:4          the row kernels with blocks of 4 query rows (2-D; in 1-D "rows")
//   tiles:4x4       tiles of 4 by 4 queries
//   sm90:8x16,8x16|portable:8x8,8x8       a query tile and a key tile; the second kernel where the first cannot run
//   portable:8x8,8x8;portable:8x8,4x16    two passes
//
// A call takes the first choice that nothing speaks against.
#pragma once

#include <string.h>

#include <string>
#include <string_view>

#include "common/call/variant.h"

namespace jax_na {

// The rows of a platform.
template <class Row>
struct Table {
  const Row* const* rows;
  int count;

  const Row* const* begin() const { return rows; }
  const Row* const* end() const { return rows + count; }
};

// A choice as it is written.
struct WrittenChoice {
  std::string_view name;
  int groups;
  int count[2];  // extents in each group
  int extents[2][kAxes];
};

constexpr int kLongestExtent = 1024;
constexpr const char* kFormNames[] = {"none", "leading_axes", "tile", "tile_pair"};

inline namespace JAX_NA_ISA {

// What stands before the first separator; the text keeps what comes after it.
inline std::string_view split(std::string_view& text, char separator) {
  const size_t at = text.find(separator);
  const std::string_view found = text.substr(0, at);
  text = at == std::string_view::npos ? std::string_view{} : text.substr(at + 1);
  return found;
}

// An extent, 0 if it is not one.
inline int parse_extent(std::string_view text) {
  int value = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9' || value > kLongestExtent) return 0;
    value = 10 * value + (digit - '0');
  }
  return value <= kLongestExtent ? value : 0;
}

inline bool parse_choice(std::string_view text, WrittenChoice& choice) {
  const bool has_extents = text.find(':') != std::string_view::npos;
  choice = WrittenChoice{};
  choice.name = split(text, ':');
  if (!has_extents) return true;
  for (bool continues = true; continues; ++choice.groups) {
    if (choice.groups == 2) return false;
    continues = text.find(',') != std::string_view::npos;
    std::string_view group = split(text, ',');
    int& count = choice.count[choice.groups];
    for (bool longer = true; longer; ++count) {
      if (count == kAxes) return false;
      longer = group.find('x') != std::string_view::npos;
      int& extent = choice.extents[choice.groups][count];
      extent = parse_extent(split(group, 'x'));
      if (extent == 0) return false;
    }
  }
  return true;
}

// How many extents each tile of a form has, and how many tiles.
inline int extents_of(Form form, int rank) { return form == Form::kLeadingAxes ? rank - 1 : rank; }
inline int tiles_of(Form form, int rank) {
  if (form == Form::kNone || extents_of(form, rank) == 0) return 0;
  return form == Form::kTilePair ? 2 : 1;
}

// The written extents as tiles of three axes; false if there are not as many as the form has.
inline bool place_extents(const WrittenChoice& choice, Form form, int rank, Tiles& tiles) {
  const int groups = tiles_of(form, rank), extents = extents_of(form, rank);
  if (choice.groups != groups) return false;
  for (int* side : {tiles.query, tiles.key})
    for (int a = 0; a < kAxes; ++a) side[a] = 1;
  for (int g = 0; g < groups; ++g) {
    if (choice.count[g] != extents) return false;
    for (int i = 0; i < extents; ++i) (g == 0 ? tiles.query : tiles.key)[kAxes - rank + i] = choice.extents[g][i];
  }
  return true;
}

inline std::string in_words(Form form, int rank) {
  const int extents = extents_of(form, rank);
  switch (tiles_of(form, rank)) {
    case 0:
      return "a name without extents";
    case 1:
      return "a name and " + std::to_string(extents) + " extents of a tile, as in \"name:" +
             (extents == 1   ? "4"
              : extents == 2 ? "4x4"
                             : "2x2x4") +
             "\"";
    default:
      return "a name and " + std::to_string(extents) +
             " extents of a query tile and of a key tile each, as in \"name:" +
             (rank == 1   ? "64,64"
              : rank == 2 ? "8x8,8x8"
                          : "4x4x4,4x4x4") +
             "\"";
  }
}

// The passes of a target on a platform, in the order of its rows.
struct PassList {
  Pass pass[kPasses];
  int count;
};
template <class Row>
PassList passes_of(const Table<Row>& table, Target target) {
  PassList passes{};
  for (const Row* row : table) {
    bool known = row->target != target;
    for (int i = 0; i < passes.count; ++i) known = known || passes.pass[i] == row->pass;
    if (!known) passes.pass[passes.count++] = row->pass;
  }
  return passes;
}

template <class Row>
const Row* find_row(const Table<Row>& table, Target target, Pass pass, std::string_view name) {
  for (const Row* row : table)
    if (row->target == target && row->pass == pass && name == row->name) return row;
  return nullptr;
}

template <class Row>
std::string names_of(const Table<Row>& table, Target target, Pass pass) {
  std::string names;
  for (const Row* row : table)
    if (row->target == target && row->pass == pass) names += (names.empty() ? "" : ", ") + std::string(row->name);
  return names;
}

// One pass of a call, and what may run it.
struct Wanted {
  Target target;
  Pass pass;
  std::string_view choices;
};
template <class Row>
struct Chosen {
  const Row* row;
  Tiles tiles;
};

// Finds the first choice without an obstacle. `late(row, tiles, text)` writes those that only a call has. The result is
// empty, or says why there is none.
template <class Row, class Late>
std::string choose(const Table<Row>& table, const Wanted& wanted, const Query& query, const Late& late,
                   Chosen<Row>& chosen) {
  const char* const pass = kPassNames[static_cast<int>(wanted.pass)];
  std::string reasons;
  std::string_view rest = wanted.choices;
  do {
    const std::string_view text = split(rest, '|');
    WrittenChoice choice{};
    const bool is_written = parse_choice(text, choice);
    chosen.row = find_row(table, wanted.target, wanted.pass, choice.name);
    if (chosen.row == nullptr)
      return std::string("kernels has no kernel of the pass ") + pass + " in \"" + std::string(text) +
             "\"; there are " + names_of(table, wanted.target, wanted.pass);
    const Variant& variant = *chosen.row;
    if (!is_written || !place_extents(choice, variant.form, query.problem.rank, chosen.tiles))
      return "kernels has \"" + std::string(text) + "\" where it should have " +
             in_words(variant.form, query.problem.rank) + ", each from 1 to " + std::to_string(kLongestExtent);
    Text obstacle{};
    find_obstacle(variant, query, obstacle);
    if (is_empty(obstacle) && variant.tile_obstacle != nullptr) variant.tile_obstacle(query, chosen.tiles, obstacle);
    if (is_empty(obstacle)) late(*chosen.row, chosen.tiles, obstacle);
    if (is_empty(obstacle)) return "";
    reasons += "; \"" + std::string(text) + "\": " + obstacle.at;
  } while (!rest.empty());
  return std::string("no kernel can run the pass ") + pass + reasons;
}

// The part of the attribute that is for pass `index` of `count`; false if it has not as many parts.
inline bool part_of_pass(std::string_view kernels, int index, int count, std::string_view& part) {
  int parts = 0;
  std::string_view rest = kernels;
  for (bool continues = true; continues; ++parts) {
    continues = rest.find(';') != std::string_view::npos;
    const std::string_view next = split(rest, ';');
    if (parts == index) part = next;
  }
  return parts == count;
}

}  // namespace JAX_NA_ISA
}  // namespace jax_na
