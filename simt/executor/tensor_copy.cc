// SPDX-License-Identifier: Apache-2.0
// Tensor copies: they land one by one in random order, stores as late as somebody waits for them or later still. Until
// then the destination of a load reads as NaN.
#include <string.h>

#include <algorithm>
#include <map>

#include "simt/executor/executor_hopper.h"
#include "simt/executor/hopper.h"
#include "simt/executor/mbarrier.h"
#include "simt/executor/memory.h"
#include "simt/executor/swizzle.h"

namespace simt {
namespace {

struct TensorCopy {
  bool load;
  TensorMap map;
  uint32_t shared, barrier;
  int coordinate[5];
  int thread, group;
  Site site;
};
std::vector<TensorCopy> under_way;

// Stores of one thread.
struct Stores {
  int group = 0;                             // that stores join now
  int read_slot, write_slot;                 // their reads of shared memory and their writes, at time group + 1
  std::vector<std::pair<int, Site>> unread;  // groups not waited for, even if they have landed
};
std::map<int, Stores> stores;

int box_bytes(const TensorMap& map) {
  return static_cast<int>(2 * map.count[0] * map.count[1] * map.count[2] * map.count[3] * map.count[4]);
}

// One row of the box, along axis 0: calls body(shared address, global address, first byte, end byte) for every 16 bytes
// of it, with the part of them that lies inside the tensor.
template <class Body>
void for_each_chunk(const TensorMap& m, uint32_t shared, char* row, int64_t first, bool inside, const Body& body) {
  for (uint32_t chunk = 0; chunk < m.count[0] / 8; ++chunk) {
    const int64_t element = first + 8 * chunk, extent = inside ? static_cast<int64_t>(m.extent[0]) : 0;
    const int64_t begin = std::clamp<int64_t>(-element, 0, 8), end = std::clamp<int64_t>(extent - element, begin, 8);
    body(swizzled(shared + 16 * chunk, m.swizzle), row + 2 * element, 2 * begin, inside ? 2 * end : 2 * begin);
  }
}

template <class Body>
void for_each_chunk(const TensorCopy& copy, const Body& body) {
  const TensorMap& m = copy.map;
  uint32_t shared = copy.shared;
  uint32_t i[5] = {};
  for (i[4] = 0; i[4] < m.count[4]; ++i[4])
    for (i[3] = 0; i[3] < m.count[3]; ++i[3])
      for (i[2] = 0; i[2] < m.count[2]; ++i[2])
        for (i[1] = 0; i[1] < m.count[1]; ++i[1], shared += 2 * m.count[0]) {
          bool inside = true;
          char* row = m.data;
          for (int axis = 1; axis < 5; ++axis) {
            const int64_t x = copy.coordinate[axis] + int64_t{i[axis]} * m.step[axis];
            inside = inside && x >= 0 && x < static_cast<int64_t>(m.extent[axis]);
            row += x * static_cast<int64_t>(m.stride[axis]);
          }
          for_each_chunk(m, shared, row, copy.coordinate[0], inside, body);
        }
}

void land(const TensorCopy& copy) {
  for_each_chunk(copy, [&](uint32_t address, char* global, int64_t begin, int64_t end) {
    char* shared = shared_at(address);
    if (copy.load) memset(shared, 0, 16);
    if (end <= begin) return;
    if (copy.load) {
      memcpy(shared + begin, global + begin, static_cast<size_t>(end - begin));
    } else {
      memcpy(global + begin, shared + begin, static_cast<size_t>(end - begin));
    }
  });
  if (copy.load) complete_bytes(copy.barrier, box_bytes(copy.map));
}

// Checks the part of global memory that a copy touches.
void check_global(const TensorCopy& copy, const Access& access) {
  for_each_chunk(copy, [&](uint32_t, char* global, int64_t begin, int64_t end) {
    if (end > begin) access_global(global + begin, static_cast<size_t>(end - begin), 1, access);
  });
}

void start(const TensorCopy& copy, const Access& shared_access) {
  if (copy.coordinate[0] % 8 != 0)
    record("misaligned",
           text("rows of a box at element %d, inside of 16 bytes, in block %u", copy.coordinate[0], block.index),
           {{"tensor copy", copy.site}});
  for (int axis = 1; axis < 5 && !copy.load; ++axis)
    if (copy.coordinate[axis] < 0)  // of loads these elements are zero; of a store they are an illegal instruction
      record("box before the tensor",
             text("it begins at %d of axis %d, in block %u", copy.coordinate[axis], axis, block.index),
             {{"tensor store", copy.site}});
  const size_t bytes = static_cast<size_t>(box_bytes(copy.map));
  char* shared = access_shared(copy.shared, bytes, pattern_bytes(copy.map.swizzle), shared_access);
  if (copy.load) poison(shared, bytes);
  under_way.push_back(copy);
}

Access async_access(bool write, int slot, Clock clock, Site site) {
  return {write, true, slot, clock, seen_by(block.current), site};
}

Stores& stores_of(int thread) {
  const auto [found, is_new] = stores.try_emplace(thread);
  if (is_new) {
    found->second.read_slot = new_slot(text("tensor store of thread %d", thread));
    found->second.write_slot = new_slot(text("tensor store of thread %d", thread));
  }
  return found->second;
}

// Lands the current thread's stores, up to `pending` groups of them.
int retire(int pending) {
  Stores& mine = stores_of(block.current);
  const int done = mine.group - pending;
  for (size_t i = 0; i < under_way.size();) {
    const TensorCopy copy = under_way[i];
    if (copy.load || copy.thread != block.current || copy.group >= done) {
      ++i;
      continue;
    }
    under_way.erase(under_way.begin() + static_cast<long>(i));
    land(copy);
  }
  auto retired = [&](const std::pair<int, Site>& store) { return store.first < done; };
  mine.unread.erase(std::remove_if(mine.unread.begin(), mine.unread.end(), retired), mine.unread.end());
  Clock& seen = seen_by(block.current)[mine.read_slot];
  seen = std::max(seen, static_cast<Clock>(std::max(done, 0)));
  return done;
}

}  // namespace

bool land_a_copy() {
  if (under_way.empty()) return false;
  const uint32_t which = random_below(static_cast<uint32_t>(under_way.size()));
  const TensorCopy copy = under_way[which];
  under_way.erase(under_way.begin() + which);
  land(copy);
  return true;
}

void begin_tensor_copies() {
  under_way.clear();
  stores.clear();
}

void end_tensor_copies() {
  for (const TensorCopy& copy : under_way)
    if (copy.load) record("copy never waited for", text("in block %u", block.index), {{"tensor load", copy.site}});
  for (const auto& [thread, mine] : stores)
    for (const auto& [group, site] : mine.unread)
      record("copy never waited for", text("in block %u", block.index), {{"tensor store", site}});
  while (land_a_copy()) {
  }
}

void tensor_load(uint32_t to, const TensorMap* map, uint32_t barrier, const int (&coordinate)[5]) {
  const Site site = __builtin_return_address(0);
  const Completion completion = completion_of(barrier, site);
  TensorCopy copy{true, *map, to, barrier, {}, block.current, 0, site};
  std::copy_n(coordinate, 5, copy.coordinate);
  check_global(copy, async_access(false, completion.slot, completion.clock, site));
  Access write = async_access(true, completion.slot, completion.clock, site);
  write.swizzle = static_cast<uint8_t>(map->swizzle);
  start(copy, write);
}

void tensor_store(const TensorMap* map, uint32_t from, const int (&coordinate)[5]) {
  const Site site = __builtin_return_address(0);
  Stores& mine = stores_of(block.current);
  const Clock clock = static_cast<Clock>(mine.group) + 1;
  TensorCopy copy{false, *map, from, 0, {}, block.current, mine.group, site};
  std::copy_n(coordinate, 5, copy.coordinate);
  check_global(copy, async_access(true, mine.write_slot, clock, site));
  start(copy, async_access(false, mine.read_slot, clock, site));
  mine.unread.emplace_back(mine.group, site);
}

void bulk_commit() { ++stores_of(block.current).group; }
void bulk_wait_read(int pending) { retire(pending); }
void bulk_wait() {
  const int done = retire(0);
  seen_by(block.current)[stores_of(block.current).write_slot] = static_cast<Clock>(done);
}

void fence_proxy_async() {
  const int self = block.current;
  block.fenced[self] = time_of(self)++;
  fence_mbarriers();
}

}  // namespace simt
