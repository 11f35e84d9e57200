// SPDX-License-Identifier: Apache-2.0
#include "simt/executor/memory.h"

#include <link.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include <memory>
#include <string>
#include <vector>

#include "simt/executor/block.h"
#include "simt/executor/executor.h"

namespace simt {

void forget_findings();

namespace {

constexpr size_t kMostShared = 256 << 10;

struct Region {
  std::string name;
  uintptr_t begin, end;
  bool writable;
  std::unique_ptr<Shadow> shadow;  // of writable ones: what is only read cannot race

  bool contains(uintptr_t first, size_t bytes) const { return first >= begin && first + bytes <= end; }
};
std::vector<std::unique_ptr<Region>> regions;  // registered buffers
std::vector<std::unique_ptr<Region>> hidden;   // constants of loaded libraries, the launcher's stack

bool running;
uintptr_t stacks_begin;
size_t stacks_bytes;
size_t shared_bytes;
std::unique_ptr<Shadow> shared_shadow;

char* shared_memory() {
  static char* memory = static_cast<char*>(
      mmap(nullptr, kMostShared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory;
}

// What is found moves one place forward: the regions in use are soon the first.
const Region* find(std::vector<std::unique_ptr<Region>>& among, uintptr_t address, size_t bytes) {
  for (size_t i = 0; i < among.size(); ++i) {
    if (!among[i]->contains(address, bytes)) continue;
    const Region* found = among[i].get();
    if (i > 0) std::swap(among[i - 1], among[i]);
    return found;
  }
  return nullptr;
}

void hide(uintptr_t begin, uintptr_t end, bool writable) {
  hidden.push_back(std::make_unique<Region>(Region{"", begin, end, writable, nullptr}));
}

// Kernels may read their parameters, which lie on the launcher's stack, and static data.
void find_hidden() {
  hidden.clear();
  pthread_attr_t attributes;
  void* stack;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &bytes);
  pthread_attr_destroy(&attributes);
  hide(reinterpret_cast<uintptr_t>(stack), reinterpret_cast<uintptr_t>(stack) + bytes, false);
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void*) {
        for (int i = 0; i < library->dlpi_phnum; ++i) {
          const ElfW(Phdr) & segment = library->dlpi_phdr[i];
          const uintptr_t begin = library->dlpi_addr + segment.p_vaddr;
          if (segment.p_type == PT_LOAD) hide(begin, begin + segment.p_memsz, false);
        }
        return 0;
      },
      nullptr);
}

// "12 bytes past the end of key": the buffer that was probably meant.
std::string near(uintptr_t address) {
  std::string best = "far from every buffer";
  uintptr_t distance = 1 << 20;
  for (const auto& registered : regions) {
    if (address >= registered->begin && address < registered->end) return "across the end of " + registered->name;
    const bool after = address >= registered->end;
    const uintptr_t d = after ? address - registered->end : registered->begin - address;
    if (d >= distance) continue;
    distance = d;
    best = text("%zu bytes %s of %s", static_cast<size_t>(d), after ? "past the end" : "before the begin",
                registered->name.c_str());
  }
  return best;
}

std::vector<Place> place(const Access& access) {
  return {{(access.write ? "write by " : "read by ") + slot_name(access.slot), access.site}};
}

// Every load and store of the kernel's own code comes through here.
void plain_access(const void* begin, size_t bytes, size_t alignment, bool write, Site site) {
  if (!running) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  if (address - stacks_begin < stacks_bytes) return;
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(shared_memory());
  if (offset < kMostShared) {
    access_shared(static_cast<uint32_t>(offset) + kSharedBase, bytes, alignment, generic_access(write, site));
  } else {
    access_global(begin, bytes, alignment, generic_access(write, site));
  }
}

}  // namespace

void set_stacks(const char* begin, size_t bytes) {
  stacks_begin = reinterpret_cast<uintptr_t>(begin);
  stacks_bytes = bytes;
}

void set_running(bool now) {
  if (now && !running && block.serial == block.first_serial) find_hidden();
  running = now;
}

void poison(char* at, size_t bytes) { memset(at, 0xff, bytes); }

void begin_shared(size_t bytes) {
  if (!shared_shadow) shared_shadow = std::make_unique<Shadow>("shared memory", kMostShared, true);
  shared_bytes = bytes;
  poison(shared_memory(), bytes);
}

char* access_shared(uint32_t address, size_t bytes, size_t alignment, const Access& access) {
  const uint32_t offset = address - kSharedBase;
  if (address < kSharedBase || offset + bytes > shared_bytes)
    fail("out of bounds",
         text("%zu bytes at shared memory + %d, which has %zu, in block %u", bytes, static_cast<int>(offset),
              shared_bytes, block.index),
         place(access));
  if (address % alignment != 0)
    record("misaligned", text("%zu bytes at shared memory + 0x%x in block %u", bytes, offset, block.index),
           place(access));
  shared_shadow->access(offset, bytes, access);
  return shared_memory() + offset;
}

char* shared_at(uint32_t address) { return shared_memory() + (address - kSharedBase); }

void land_shared(uint32_t address, size_t bytes, Clock clock) {
  shared_shadow->land(address - kSharedBase, bytes, block.current, clock);
}

void access_global(const void* begin, size_t bytes, size_t alignment, const Access& access) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const Region* region = find(regions, address, bytes);
  if (!region && !access.write && find(hidden, address, bytes)) return;
  if (!region)
    fail("out of bounds", text("%zu bytes, %s, in block %u", bytes, near(address).c_str(), block.index), place(access));
  if (access.write && !region->writable)
    fail("write to an input", text("%s in block %u", region->name.c_str(), block.index), place(access));
  if (address % alignment != 0)
    record("misaligned", text("%zu bytes in %s in block %u", bytes, region->name.c_str(), block.index), place(access));
  if (region->shadow) region->shadow->access(address - region->begin, bytes, access);
}

void register_buffer(const void* begin, size_t bytes, const char* name, bool writable) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin);
  auto shadow = writable ? std::make_unique<Shadow>(name, bytes, false) : nullptr;
  regions.push_back(std::make_unique<Region>(Region{name, first, first + bytes, writable, std::move(shadow)}));
}

void reset() {
  regions.clear();
  forget_findings();
}

char* dynamic_shared() { return shared_memory(); }

uint32_t shared_address(const void* pointer) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(shared_memory());
  if (offset > kMostShared)
    fail("not in shared memory", text("in block %u", block.index),
         {{text("thread %d", block.current), __builtin_return_address(0)}});
  return static_cast<uint32_t>(offset) + kSharedBase;
}

}  // namespace simt

// What compilers call before every load and store with -fsanitize=thread; their own library is not linked.
#define SIMT_SITE __builtin_return_address(0)
#define SIMT_HOOKS(bytes)                                                                                      \
  extern "C" void __tsan_read##bytes(void* p) { simt::plain_access(p, bytes, bytes, false, SIMT_SITE); }       \
  extern "C" void __tsan_write##bytes(void* p) { simt::plain_access(p, bytes, bytes, true, SIMT_SITE); }       \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { simt::plain_access(p, bytes, 1, false, SIMT_SITE); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { simt::plain_access(p, bytes, 1, true, SIMT_SITE); }
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
#undef SIMT_HOOKS
extern "C" {
void __tsan_read_range(void* p, size_t bytes) { simt::plain_access(p, bytes, 1, false, SIMT_SITE); }
void __tsan_write_range(void* p, size_t bytes) { simt::plain_access(p, bytes, 1, true, SIMT_SITE); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  simt::plain_access(from, bytes, 1, false, SIMT_SITE);
  simt::plain_access(to, bytes, 1, true, SIMT_SITE);
  return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  simt::plain_access(to, bytes, 1, true, SIMT_SITE);
  return memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
