// SPDX-License-Identifier: Apache-2.0
#include "cpu/host/instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace jax_na {

// cpu/isa/kernels.cc, compiled for each.
inline namespace portable {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512bf16 {
extern const Kernels kKernels;
}
#endif

namespace {

struct Level {
  std::string name;
  const Kernels* kernels;
};

std::vector<Level> levels() {
  std::vector<Level> result{{"baseline", &portable::kKernels}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v3")) result.push_back({"avx2", &avx2::kKernels});
#if defined(JAX_NA_EMULATE_AVX512)
  const bool has_avx512 = true, has_bf16 = true;
#else
  const bool has_avx512 = __builtin_cpu_supports("x86-64-v4"), has_bf16 = __builtin_cpu_supports("avx512bf16");
#endif
  if (has_avx512) result.push_back({"avx512", &avx512::kKernels});
  // Intel's dot products of bfloat16 do no more multiplications in a cycle than its fused multiply-add of float32 does,
  // and their operands cost conversions: measured, bfloat16 is up to 1.5 times slower with them than without.
  if (has_avx512 && has_bf16)
    result.insert(result.end() - (__builtin_cpu_is("intel") ? 1 : 0), {"avx512bf16", &avx512bf16::kKernels});
#endif
  return result;
}

const Level& chosen() {
  static const Level level = [] {
    const std::vector<Level> all = levels();
    const char* forced = std::getenv("JAX_NA_ISA");
    if (forced == nullptr || *forced == '\0') return all.back();
    std::string names;
    for (const Level& candidate : all) {
      if (candidate.name == forced) return candidate;
      names += " " + candidate.name;
    }
    throw std::runtime_error("JAX_NA_ISA=" + std::string(forced) + " cannot run here; this machine has:" + names);
  }();
  return level;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Level& level : levels()) names.push_back(level.name);
  return names;
}

const std::string& instruction_set() { return chosen().name; }
const Kernels& best_kernels() { return *chosen().kernels; }

}  // namespace jax_na
