// SPDX-License-Identifier: Apache-2.0
// mbarrier: phases of arrivals and announced bytes. Every operation counts as a read of the barrier's 8 bytes, so that
// initialising too late, or data on top of a barrier, is a race.
#include "simt/executor/mbarrier.h"

#include <stdlib.h>

#include <map>

#include "simt/executor/executor_sm90.h"
#include "simt/executor/memory.h"
#include "simt/executor/schedule_sm90.h"

namespace simt {
namespace {

struct Mbarrier {
  int count, missing;  // arrivals per phase, and of this one
  int bytes = 0;       // announced and not yet there
  uint32_t phase = 0;
  int slot;
  int owner;
  bool fenced = false;               // since it was initialised
  std::vector<Clock> arriving;       // published by the arrivals so far
  std::vector<Clock> released = {};  // at the end of the last phase
  std::vector<int> waiting = {};
};
std::map<uint32_t, Mbarrier> barriers;

Mbarrier& find(uint32_t address, Site site) {
  access_shared(address, 8, 8, generic_access(false, site));
  const auto found = barriers.find(address);
  if (found == barriers.end())
    fail("not an mbarrier", text("shared memory + 0x%x in block %u", address - kSharedBase, block.index),
         {{text("thread %d", block.current), site}});
  return found->second;
}

void finish_phase(Mbarrier& waited) {
  if (waited.missing > 0 || waited.bytes != 0) return;
  ++waited.phase;
  waited.missing = waited.count;
  waited.arriving[waited.slot] = waited.phase;
  waited.released = waited.arriving;
  for (const int thread : waited.waiting) wake(thread);
  waited.waiting.clear();
}

void arrive_with(uint32_t address, int bytes, Site site) {
  Mbarrier& waited = find(address, site);
  if (waited.missing == 0)
    fail("mbarrier with too many arrivals",
         text("shared memory + 0x%x in block %u, %d per phase", address - kSharedBase, block.index, waited.count),
         {{text("thread %d", block.current), site}});
  publish(waited.arriving.data(), block.current);
  waited.bytes += bytes;
  --waited.missing;
  finish_phase(waited);
}

}  // namespace

void begin_mbarriers() { barriers.clear(); }

void fence_mbarriers() {
  for (auto& [address, waited] : barriers) waited.fenced = waited.fenced || waited.owner == block.current;
}

Completion completion_of(uint32_t barrier, Site site) {
  const Mbarrier& waited = find(barrier, site);
  if (!waited.fenced)
    record("missing fence_mbarrier_init", text("in block %u", block.index), {{"first tensor copy", site}});
  return {waited.slot, waited.phase + 1};
}

void complete_bytes(uint32_t barrier, int bytes) {
  Mbarrier& waited = barriers.at(barrier);
  waited.bytes -= bytes;
  finish_phase(waited);
}

std::string explain_mbarrier(uint32_t address, uint32_t parity) {
  const Mbarrier& waited = barriers.at(address);
  const char* format = waited.bytes < 0 ? "%d of %d arrivals are missing, and %d bytes more than announced have come"
                                        : "%d of %d arrivals and %d bytes are missing";
  return text("for parity %u of mbarrier shared memory + 0x%x: in its phase %u, ", parity, address - kSharedBase,
              waited.phase) +
         text(format, waited.missing, waited.count, abs(waited.bytes));
}

void mbarrier_init(uint32_t barrier, int count) {
  const Site site = __builtin_return_address(0);
  access_shared(barrier, 8, 8, generic_access(true, site));
  const auto old = barriers.find(barrier);
  const int slot =
      old == barriers.end() ? new_slot(text("copies to mbarrier + 0x%x", barrier - kSharedBase)) : old->second.slot;
  barriers.insert_or_assign(
      barrier, Mbarrier{count, count, 0, 0, slot, block.current, false, std::vector<Clock>(slot_count(), 0)});
}

void fence_mbarrier_init() { fence_mbarriers(); }

void mbarrier_arrive(uint32_t barrier) { arrive_with(barrier, 0, __builtin_return_address(0)); }
void mbarrier_expect_tx(uint32_t barrier, int bytes) { arrive_with(barrier, bytes, __builtin_return_address(0)); }

void mbarrier_wait(uint32_t barrier, int parity) {
  const Site site = __builtin_return_address(0);
  Mbarrier& waited = find(barrier, site);
  while ((waited.phase & 1) == static_cast<uint32_t>(parity)) {
    waited.waiting.push_back(block.current);
    wait_for({Wait::kMbarrier, "mbarrier_wait", site, barrier, static_cast<uint32_t>(parity)});
  }
  if (!waited.released.empty()) merge(seen_by(block.current), waited.released.data());
}

}  // namespace simt
