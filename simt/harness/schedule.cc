// SPDX-License-Identifier: Apache-2.0
// Which pairs of tokens the fused kernels compute, from the functions of cuda/geometry/ alone: a walk
// over all blocks and boxes as the kernels do it, without computing anything.
#include <stdint.h>

#include "cuda/geometry/owned_columns.cuh"

namespace jax_na::cuda {
namespace {

// Of one warp's rows and one box of columns: whether it goes without a mask, and whether it could.
struct Visit {
  int32_t unmasked, all_seen;
};

// The tokens present on one side.
struct Tokens {
  int first[kAxes], count[kAxes];

  // Index of a token by its positions in the groups of a block; -1 where there is none.
  int index(const Problem& problem, const Extent (&extent)[kAxes], const int (&position)[kAxes],
            const int* stop) const {
    int token = 0;
    for (int a = 0; a < kAxes; ++a) {
      if (position[a] >= stop[a]) return -1;
      token = token * count[a] + position[a] * problem.axis[a].dilation + extent[a].group - first[a];
    }
    return token;
  }
};

template <Side kRowSide>
struct Schedule {
  const Problem& problem;
  Tiling tiling;
  Repeats repeats;
  Tokens row_tokens, column_tokens;
  int warp_rows;
  uint8_t* pairs;  // [rows present, columns present]: how often a pair is computed
  Visit* visits;
  int64_t count = 0, capacity;
  bool complete = true;

  void run() {
    for (int64_t tile = 0; tile < tile_count(problem, tiling); ++tile) block(tile);
  }

  void block(int64_t tile) {
    Extent extent[kAxes];
    for (int a = kAxes - 1; a >= 0; --a) {
      const int tiles = tiling.tiles[a] * problem.axis[a].dilation;
      extent[a] = locate<kRowSide>(
          problem, tiling,
          {{row_tokens.first[a], row_tokens.count[a]}, {column_tokens.first[a], column_tokens.count[a]}}, a,
          static_cast<int>(tile % tiles), complete);
      tile /= tiles;
      if (extent[a].rows.stop <= extent[a].rows.start) return;
    }
    const int tile_rows = 1 << (tiling.rows[0] + tiling.rows[1] + tiling.rows[2]);
    Walk walk = make_walk(tiling, extent);
    for (int step = 0; step < walk.total(); ++step, walk.step())
      for (int first = 0; first < tile_rows; first += warp_rows) visit(extent, walk, first);
  }

  // What row `row` of a block sees, per axis; false for a row that does not exist.
  bool seen_by(const Extent (&extent)[kAxes], int row, int (&position)[kAxes], Range (&seen)[kAxes]) const {
    for (int a = 0; a < kAxes; ++a) {
      const Extent& e = extent[a];
      position[a] = e.origin + inside_box(tiling.rows, row, a);
      if (position[a] >= e.rows.stop) return false;
      const Range all = seen_from<kRowSide>(problem.axis[a], e.length, position[a]);
      seen[a] = {max(all.start, e.present.start), min(all.stop, e.present.stop)};
    }
    return true;
  }

  void visit(const Extent (&extent)[kAxes], const Walk& walk, int first_row) {
    int start[kAxes], stop[kAxes], row_stop[kAxes], position[kAxes];
    Range seen[kAxes], inner[kAxes] = {{0, INT32_MAX}, {0, INT32_MAX}, {0, INT32_MAX}};
    for (int row = first_row; row < first_row + warp_rows; ++row)
      if (seen_by(extent, row, position, seen))
        for (int a = 0; a < kAxes; ++a)
          inner[a] = {max(inner[a].start, seen[a].start), min(inner[a].stop, seen[a].stop)};
    Visit v{1, 1};
    for (int a = 0; a < kAxes; ++a) {
      start[a] = box_start(tiling, extent[a], walk, a);
      stop[a] = extent[a].columns.stop;
      row_stop[a] = extent[a].rows.stop;
      if (start[a] < inner[a].start || start[a] + (1 << tiling.columns[a]) > inner[a].stop) v.unmasked = 0;
    }
    bool some = false;
    for (int row = first_row; row < first_row + warp_rows; ++row) {
      if (!seen_by(extent, row, position, seen)) continue;
      some = true;
      const int r = row_tokens.index(problem, extent, position, row_stop);
      const uint64_t bits = v.unmasked ? ~uint64_t{0} : visible_columns<uint64_t>(tiling, repeats, seen, start);
      columns(extent, start, stop, bits, r, v);
    }
    if (some && count < capacity) visits[count] = v;
    count += some;
  }

  void columns(const Extent (&extent)[kAxes], const int (&start)[kAxes], const int* stop, uint64_t bits, int r,
               Visit& v) {
    const int box = 1 << (tiling.columns[0] + tiling.columns[1] + tiling.columns[2]);
    for (int c = 0; c < box; ++c) {
      int position[kAxes];
      for (int a = 0; a < kAxes; ++a) position[a] = start[a] + inside_box(tiling.columns, c, a);
      const int column = column_tokens.index(problem, extent, position, stop);
      if (!(bits >> c & 1)) {
        v.all_seen = 0;
      } else if (column < 0) {
        complete = false;  // a score of a token that does not exist
      } else {
        ++pairs[static_cast<int64_t>(r) * column_count() + column];
      }
    }
  }

  int64_t column_count() const {
    return int64_t{column_tokens.count[0]} * column_tokens.count[1] * column_tokens.count[2];
  }
};

template <Side kRowSide>
int64_t run(const Problem& problem, const int (&row_tile)[kAxes], const int (&column_tile)[kAxes], int warp_rows,
            uint8_t* pairs, Visit* visits, int64_t capacity) {
  Tokens queries{}, keys{};
  for (int a = 0; a < kAxes; ++a) {
    queries.first[a] = problem.q0[a], queries.count[a] = problem.nq[a];
    keys.first[a] = problem.k0[a], keys.count[a] = problem.nk[a];
  }
  const Tiling tiling = make_tiling<kRowSide>(problem, row_tile, column_tile);
  constexpr bool kQueries = kRowSide == Side::kQueries;
  Schedule<kRowSide> schedule{problem,
                              tiling,
                              make_repeats(tiling),
                              kQueries ? queries : keys,
                              kQueries ? keys : queries,
                              warp_rows,
                              pairs,
                              visits,
                              0,
                              capacity};
  schedule.run();
  return schedule.complete ? schedule.count : -1;
}

}  // namespace
}  // namespace jax_na::cuda

// Counts every pair that is computed in `pairs` and describes the visits. Returns their number, -1 if a window is not
// complete or if a token that does not exist is computed with.
extern "C" int64_t jax_na_schedule(const jax_na::Problem* problem, int rows_are_keys, const int (*tiles)[jax_na::kAxes],
                                   int warp_rows, uint8_t* pairs, void* visits, int64_t capacity) {
  using namespace jax_na::cuda;
  auto* v = static_cast<Visit*>(visits);
  return rows_are_keys ? run<Side::kKeys>(*problem, tiles[0], tiles[1], warp_rows, pairs, v, capacity)
                       : run<Side::kQueries>(*problem, tiles[0], tiles[1], warp_rows, pairs, v, capacity);
}

// How many bits owned_columns has wrong for a box with these log2 extents, over all lanes, axes and intervals.
extern "C" int jax_na_wrong_owned_columns(const int32_t* log2) {
  using namespace jax_na;
  using namespace jax_na::cuda;
  Tiling t{};
  for (int a = 0; a < kAxes; ++a) t.columns[a] = log2[a];
  const OwnedColumns owned = make_owned_columns(t);
  const int columns = 1 << (log2[0] + log2[1] + log2[2]), start = 5;
  int wrong = 0;
  for (int a = 0; a < kAxes; ++a)
    for (int from = -1; from <= (1 << log2[a]) + 1; ++from)
      for (int to = from; to <= (1 << log2[a]) + 1; ++to)
        for (int lane = 0; lane < 4; ++lane) {
          const uint32_t bits = owned_columns(owned.axis[a], lane, {start + from, start + to}, start, log2[a]);
          for (int i = 0; i < columns / 4; ++i) {
            const int at = inside_box(t.columns, i / 2 * 8 + 2 * lane + i % 2, a);
            wrong += (bits >> i & 1) != (from <= at && at < to);
          }
        }
  return wrong;
}

// Union and intersection of the windows of the queries first..last of a group: start and stop of each.
extern "C" void jax_na_tile_range(const jax_na::Axis* axis, int group, int first, int last, int32_t* found) {
  using namespace jax_na;
  const int length = group_length(*axis, group);
  const Range all = tile_keys(*axis, length, first, last), inner = tile_inner_keys(*axis, length, first, last);
  const int32_t values[] = {all.start, all.stop, inner.start, inner.stop};
  for (int i = 0; i < 4; ++i) found[i] = values[i];
}
