// SPDX-License-Identifier: Apache-2.0
// wgmma: products of a warpgroup. They run when somebody waits for them, from the shared memory of that moment; until
// then their sums read as NaN. Reads of shared memory are charged to a clock slot of the warpgroup, at time group + 1.
#include <string.h>

#include <algorithm>
#include <memory>

#include "simt/executor/block.h"
#include "simt/executor/executor_sm90.h"
#include "simt/executor/memory.h"
#include "simt/executor/numbers.h"
#include "simt/executor/schedule_sm90.h"
#include "simt/executor/swizzle.h"

namespace simt {
namespace {

constexpr int kRows = 64, kTerms = 16;

// Registers of one thread that products under way write: the thread sees NaN, the products these values.
struct Sums {
  float* at;
  std::vector<float> values;
  int last_group;
  Site site;
};

struct Operands {
  WgmmaShape shape;
  float* sums;
  uint64_t left, right;
  const uint32_t* left_registers;
};

struct Product {
  WgmmaShape shape;
  uint64_t left, right;
  std::vector<uint32_t> left_registers;  // four per thread, if any
  std::shared_ptr<Sums> sums[kWarpgroup];
  int group;
};

struct Warpgroup {
  int slot = -1, group = 0;  // that products join now
  bool fenced = false;
  std::vector<Product> products;
  std::vector<std::shared_ptr<Sums>> sums[kWarpgroup];
};
std::vector<Warpgroup> warpgroups;

Warpgroup& current_warpgroup() { return warpgroups[block.current / kWarpgroup]; }

// Shared address of the element (index, term) of an operand, index along M or N; as matrix_descriptor in
// cuda/ptx/wgmma.cuh.
uint32_t element_address(uint64_t descriptor, bool major_n, uint32_t index, uint32_t term) {
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t begin = field(0), leading = field(16), stride = field(32);
  const int swizzle = static_cast<int>(descriptor >> 62);
  const uint32_t bytes = row_bytes(swizzle), per_row = bytes / 2;
  const uint32_t offset = major_n
                              ? index / per_row * leading + term / 8 * stride + term % 8 * bytes + index % per_row * 2
                              : index / 8 * stride + index % 8 * bytes + term * 2;
  return swizzled(begin + offset, swizzle);
}

void read_operand(uint64_t descriptor, bool major_n, int extent, Access access) {
  access.swizzle = static_cast<uint8_t>(descriptor >> 62);
  if (access.swizzle == 0 || (descriptor >> 49 & 7) != 0)
    fail("illegal matrix descriptor", "this executor knows swizzled layouts, groups at multiples of 8 rows",
         {{"product", access.site}});
  for (int i = 0; i < extent; i += major_n ? 8 : 1)
    for (int step = 0; step < kTerms; step += major_n ? 1 : 8)
      access_shared(element_address(descriptor, major_n, static_cast<uint32_t>(i), static_cast<uint32_t>(step)), 16, 16,
                    access);
}

float element(uint64_t descriptor, bool major_n, int index, int term, bool bf16) {
  uint16_t bits;
  memcpy(&bits,
         shared_at(element_address(descriptor, major_n, static_cast<uint32_t>(index), static_cast<uint32_t>(term))),
         sizeof bits);
  return bf16 ? widen_bf16(bits) : widen_f16(bits);
}

// Calls body(thread, register, row, column) for all 64 x n sums.
template <class Body>
void for_each_sum(int n, const Body& body) {
  for (int thread = 0; thread < kWarpgroup; ++thread)
    for (int i = 0; i < n / 2; ++i)
      body(thread, i, thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2);
}

void load_left(const Product& p, float (&a)[kRows][kTerms]) {
  const bool bf16 = p.shape.type == Type::kBF16;
  for (int row = 0; row < kRows; ++row)
    for (int step = 0; step < kTerms; ++step) {
      if (p.left_registers.empty()) {
        a[row][step] = element(p.left, false, row, step, bf16);
        continue;
      }
      const int thread = row / 16 * 32 + row % 8 * 4 + step % 8 / 2, i = row / 8 % 2 + step / 8 * 2;
      const auto bits = static_cast<uint16_t>(p.left_registers[4 * thread + i] >> (16 * (step % 2)));
      a[row][step] = bf16 ? widen_bf16(bits) : widen_f16(bits);
    }
}

void execute(const Product& p) {
  static float a[kRows][kTerms], b[kTerms][256], d[kRows][256];
  const int n = p.shape.n;
  load_left(p, a);
  for (int step = 0; step < kTerms; ++step)
    for (int i = 0; i < n; ++i)
      b[step][i] = element(p.right, p.shape.right_major_n, i, step, p.shape.type == Type::kBF16);
  for (int row = 0; row < kRows; ++row) {
    std::fill_n(d[row], n, 0.f);
    for (int step = 0; step < kTerms; ++step)
      for (int i = 0; i < n; ++i) d[row][i] += a[row][step] * b[step][i];
  }
  for_each_sum(n, [&](int thread, int i, int row, int column) {
    float& sum = p.sums[thread]->values[i];
    sum = d[row][column] + (p.shape.accumulate ? sum : 0.f);
  });
}

// The sums of `thread` at `at`: those under way, or new ones that begin with what the registers hold.
std::shared_ptr<Sums> sums_under_way(std::vector<std::shared_ptr<Sums>>& all, float* at, int count, int group,
                                     Site site) {
  for (const auto& sums : all) {
    if (sums->at + sums->values.size() <= at || at + count <= sums->at) continue;
    if (sums->at != at || static_cast<int>(sums->values.size()) != count)
      fail("overlapping sums", "of products under way", {{"product", site}, {"product", sums->site}});
    sums->last_group = group;
    return sums;
  }
  auto sums = std::make_shared<Sums>(Sums{at, {at, at + count}, group, site});
  poison(reinterpret_cast<char*>(at), count * sizeof(float));
  all.push_back(sums);
  return sums;
}

// Puts the sums of finished products into their registers.
void write_back(std::vector<std::shared_ptr<Sums>>& all, int done) {
  for (const auto& sums : all) {
    if (sums->last_group >= done) continue;
    const std::vector<uint32_t> untouched(sums->values.size(), ~0u);
    if (memcmp(sums->at, untouched.data(), untouched.size() * 4) != 0)
      record("sums written before wgmma_wait", text("in block %u", block.index), {{"of the product", sums->site}});
    std::copy(sums->values.begin(), sums->values.end(), sums->at);
  }
  auto finished = [&](const std::shared_ptr<Sums>& sums) { return sums->last_group < done; };
  all.erase(std::remove_if(all.begin(), all.end(), finished), all.end());
}

void start(Operands** all, Site site) {
  const int first = block.current / kWarpgroup * kWarpgroup;
  Warpgroup& group = current_warpgroup();
  const Operands& operand = *all[0];
  for (int t = 1; t < kWarpgroup; ++t)
    if (all[t]->left != operand.left || all[t]->right != operand.right)
      fail("divergent matrix descriptors", text("in block %u", block.index), {{text("thread %d", first + t), site}});
  if (!group.fenced)
    record("missing wgmma_fence", text("since the last wait, in block %u", block.index), {{"product", site}});
  // Read by all: what one of the threads has not seen is not there yet.
  const int slots = slot_count();
  std::vector<Clock> seen(seen_by(first), seen_by(first) + slots);
  for (int t = first + 1; t < first + kWarpgroup; ++t) {
    const Clock* other = seen_by(t);
    for (int slot = 0; slot < slots; ++slot) seen[slot] = std::min(seen[slot], other[slot]);
  }
  if (group.slot < 0) group.slot = new_slot(text("wgmma of threads %d to %d", first, first + kWarpgroup - 1));
  const Access read{false, true, group.slot, static_cast<Clock>(group.group) + 1, seen.data(), site};
  if (!operand.left_registers) read_operand(operand.left, false, kRows, read);
  read_operand(operand.right, operand.shape.right_major_n, operand.shape.n, read);

  Product product{operand.shape, operand.left, operand.right, {}, {}, group.group};
  for (int t = 0; t < kWarpgroup; ++t) {
    if (operand.left_registers)
      product.left_registers.insert(product.left_registers.end(), all[t]->left_registers, all[t]->left_registers + 4);
    product.sums[t] = sums_under_way(group.sums[t], all[t]->sums, operand.shape.n / 2, group.group, site);
  }
  group.products.push_back(std::move(product));
}

void finish(int pending) {
  const int first = block.current / kWarpgroup * kWarpgroup;
  Warpgroup& group = current_warpgroup();
  group.fenced = false;
  const int done = group.group - pending;
  size_t finished = 0;
  while (finished < group.products.size() && group.products[finished].group < done) execute(group.products[finished++]);
  group.products.erase(group.products.begin(), group.products.begin() + static_cast<long>(finished));
  for (int t = 0; t < kWarpgroup; ++t) {
    write_back(group.sums[t], done);
    if (group.slot >= 0 && done > 0) {
      Clock& seen = seen_by(first + t)[group.slot];
      seen = std::max(seen, static_cast<Clock>(done));
    }
  }
}

}  // namespace

void begin_wgmma() { warpgroups.assign(block.threads / kWarpgroup, {}); }

void end_wgmma() {
  for (const Warpgroup& group : warpgroups)
    if (!group.products.empty())
      record("product never waited for", text("in block %u", block.index),
             {{"product", group.products[0].sums[0]->site}});
}

void wgmma_fence() {
  collective<kWarpgroup>("wgmma_fence", __builtin_return_address(0), [] { current_warpgroup().fenced = true; });
}

void wgmma_commit() {
  collective<kWarpgroup>("wgmma_commit", __builtin_return_address(0), [] { ++current_warpgroup().group; });
}

void wgmma_wait(int pending) {
  collective<kWarpgroup>("wgmma_wait", __builtin_return_address(0), [&] { finish(pending); });
}

void wgmma(const WgmmaShape& shape, float* sums, uint64_t left, const uint32_t* left_registers, uint64_t right) {
  const Site site = __builtin_return_address(0);
  Operands mine{shape, sums, left, right, left_registers};
  collective<kWarpgroup>("wgmma", site, mine, [&](Operands** all) { start(all, site); });
}

}  // namespace simt
