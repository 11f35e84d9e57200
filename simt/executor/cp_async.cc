// SPDX-License-Identifier: Apache-2.0
// cp.async: the bytes arrive as late as they may. Until the wait the destination reads as NaN, and to touch it is a
// race.
#include <string.h>

#include "simt/executor/block.h"
#include "simt/executor/executor.h"
#include "simt/executor/memory.h"

namespace simt {
namespace {

struct Copy {
  uint32_t to;
  char* destination;
  const void* from;  // null: zeros
  int group;
  Site site;
};
struct Copies {
  std::vector<Copy> pending;  // oldest first
  int group = 0;              // that copies join now
};
std::vector<Copies> copies;  // per thread

}  // namespace

void begin_cp_async() { copies.assign(block.threads, {}); }

void end_cp_async() {
  for (int t = 0; t < block.threads; ++t)
    if (!copies[t].pending.empty())
      record("copy never waited for", text("in block %u", block.index),
             {{text("cp.async by thread %d", t), copies[t].pending[0].site}});
}

void cp_async16(uint32_t to, const void* from, bool valid) {
  const Site site = __builtin_return_address(0);
  Access write = generic_access(true, site);
  write.clock = kInFlight;
  if (valid) access_global(from, 16, 16, generic_access(false, site));
  char* destination = access_shared(to, 16, 16, write);
  poison(destination, 16);
  Copies& mine = copies[block.current];
  mine.pending.push_back({to, destination, valid ? from : nullptr, mine.group, site});
}

void cp_async_commit() { ++copies[block.current].group; }

void cp_async_wait(int pending) {
  Copies& mine = copies[block.current];
  size_t landed = 0;
  for (; landed < mine.pending.size() && mine.pending[landed].group < mine.group - pending; ++landed) {
    const Copy& copy = mine.pending[landed];
    if (copy.from) {
      memcpy(copy.destination, copy.from, 16);
    } else {
      memset(copy.destination, 0, 16);
    }
    land_shared(copy.to, 16, time_of(block.current));
  }
  mine.pending.erase(mine.pending.begin(), mine.pending.begin() + static_cast<long>(landed));
}

}  // namespace simt
