// SPDX-License-Identifier: Apache-2.0
// Tensor copies: they land one by one in random order. Until then their destination reads as NaN.
#include <string.h>

#include <algorithm>

#include "simt/executor/executor_sm90.h"
#include "simt/executor/mbarrier.h"
#include "simt/executor/memory.h"
#include "simt/executor/schedule_sm90.h"
#include "simt/executor/swizzle.h"

namespace simt {
namespace {

struct TensorCopy {
  TensorMap map;
  uint32_t shared, barrier;
  int coordinate[5];
  Site site;
};
std::vector<TensorCopy> under_way;

int box_bytes(const TensorMap& map) {
  return static_cast<int>(2 * map.count[0] * map.count[1] * map.count[2] * map.count[3] * map.count[4]);
}

// One row of the box, along axis 0: calls body(shared address, global address, first byte, end byte) for every 16 bytes
// of it, with the part of them that lies inside the tensor.
template <class Body>
void for_each_chunk(const TensorMap& tensor, uint32_t shared, char* row, int64_t first, bool inside, const Body& body) {
  for (uint32_t chunk = 0; chunk < tensor.count[0] / 8; ++chunk) {
    const int64_t element = first + 8 * chunk, extent = inside ? static_cast<int64_t>(tensor.extent[0]) : 0;
    const int64_t begin = std::clamp<int64_t>(-element, 0, 8), end = std::clamp<int64_t>(extent - element, begin, 8);
    body(swizzled(shared + 16 * chunk, tensor.swizzle), row + 2 * element, 2 * begin, inside ? 2 * end : 2 * begin);
  }
}

template <class Body>
void for_each_chunk(const TensorCopy& copy, const Body& body) {
  const TensorMap& tensor = copy.map;
  uint32_t shared = copy.shared;
  uint32_t i[5] = {};
  for (i[4] = 0; i[4] < tensor.count[4]; ++i[4])
    for (i[3] = 0; i[3] < tensor.count[3]; ++i[3])
      for (i[2] = 0; i[2] < tensor.count[2]; ++i[2])
        for (i[1] = 0; i[1] < tensor.count[1]; ++i[1], shared += 2 * tensor.count[0]) {
          bool inside = true;
          char* row = tensor.data;
          for (int axis = 1; axis < 5; ++axis) {
            const int64_t x = copy.coordinate[axis] + int64_t{i[axis]} * tensor.step[axis];
            inside = inside && x >= 0 && x < static_cast<int64_t>(tensor.extent[axis]);
            row += x * static_cast<int64_t>(tensor.stride[axis]);
          }
          for_each_chunk(tensor, shared, row, copy.coordinate[0], inside, body);
        }
}

void land(const TensorCopy& copy) {
  for_each_chunk(copy, [&](uint32_t address, char* global, int64_t begin, int64_t end) {
    char* shared = shared_at(address);
    memset(shared, 0, 16);
    if (end > begin) memcpy(shared + begin, global + begin, static_cast<size_t>(end - begin));
  });
  complete_bytes(copy.barrier, box_bytes(copy.map));
}

// Checks the part of global memory that a copy reads.
void check_global(const TensorCopy& copy, const Access& access) {
  for_each_chunk(copy, [&](uint32_t, char* global, int64_t begin, int64_t end) {
    if (end > begin) access_global(global + begin, static_cast<size_t>(end - begin), 1, access);
  });
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

void begin_tensor_copies() { under_way.clear(); }

void end_tensor_copies() {
  for (const TensorCopy& copy : under_way)
    record("copy never waited for", text("in block %u", block.index), {{"tensor copy", copy.site}});
  while (land_a_copy()) {
  }
}

void tensor_load(uint32_t to, const TensorMap* map, uint32_t barrier, const int (&coordinate)[5]) {
  const Site site = __builtin_return_address(0);
  const Completion completion = completion_of(barrier, site);
  TensorCopy copy{*map, to, barrier, {}, site};
  std::copy_n(coordinate, 5, copy.coordinate);
  const Clock* seen = seen_by(block.current);
  check_global(copy, {false, true, completion.slot, completion.clock, seen, site});
  if (coordinate[0] % 8 != 0)
    record("misaligned",
           text("rows of a box at element %d, inside of 16 bytes, in block %u", coordinate[0], block.index),
           {{"tensor copy", site}});
  Access write{true, true, completion.slot, completion.clock, seen, site};
  write.swizzle = static_cast<uint8_t>(map->swizzle);
  const auto bytes = static_cast<size_t>(box_bytes(*map));
  poison(access_shared(to, bytes, pattern_bytes(map->swizzle), write), bytes);
  under_way.push_back(copy);
}

void fence_proxy_async() {
  const int self = block.current;
  block.fenced[self] = time_of(self)++;
  fence_mbarriers();
}

}  // namespace simt
