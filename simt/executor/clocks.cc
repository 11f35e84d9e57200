// SPDX-License-Identifier: Apache-2.0
// Vector clocks: one row per thread, one column per thread and per asynchronous thing (shadow.h says what they are
// for).
#include <algorithm>

#include "simt/executor/block.h"

namespace simt {
namespace {

// Barriers, warpgroups and bulk copies of a block that can have a slot; no kernel comes near.
constexpr int kMostAsync = 64;

std::vector<Clock> rows;
std::vector<std::string> async_names;

}  // namespace

int slot_count() { return block.threads + kMostAsync; }

void begin_clocks() {
  async_names.clear();
  rows.assign(static_cast<size_t>(block.threads) * slot_count(), 0);
  for (int t = 0; t < block.threads; ++t) time_of(t) = 1;
  block.fenced.assign(block.threads, 0);
}

int new_slot(const std::string& name) {
  if (async_names.size() == kMostAsync) fail("too many barriers", "the executor keeps track of 64", {});
  async_names.push_back(name);
  return block.threads + static_cast<int>(async_names.size()) - 1;
}

std::string slot_name(int slot) {
  return slot < block.threads ? text("thread %d", slot) : async_names[slot - block.threads];
}

Clock* seen_by(int thread) { return &rows[static_cast<size_t>(thread) * slot_count()]; }

void merge(Clock* into, const Clock* from) {
  const int slots = slot_count();
  for (int i = 0; i < slots; ++i) into[i] = std::max(into[i], from[i]);
}

void publish(Clock* into, int thread) {
  merge(into, seen_by(thread));
  ++time_of(thread);
}

void synchronise(int first, int count) {
  std::vector<Clock> all(slot_count(), 0);
  for (int t = first; t < first + count; ++t) publish(all.data(), t);
  for (int t = first; t < first + count; ++t) merge(seen_by(t), all.data());
}

Access generic_access(bool write, Site site) {
  const int self = block.current;
  return {write, false, self, time_of(self), seen_by(self), site};
}

}  // namespace simt
