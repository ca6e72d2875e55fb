// Stands in for csrc/cpu/dispatch.cpp.
#include "switched_dispatch.h"

#include "cpu/dispatch.h"

namespace dance::cpu {
namespace {

struct Target {
  const Kernels* kernels;
  const SelectKernels* select_kernels;
};

const std::vector<Target>& usable() {
  static const std::vector<Target> list = [] {
    std::vector<Target> found = {{&kernels_baseline(), &select_kernels_baseline()}};
#if defined(DANCE_HAS_NEON)
    found.push_back({&kernels_neon(), &select_kernels_neon()});
#endif
#if defined(DANCE_HAS_AVX2)
    if (__builtin_cpu_supports("avx2")) found.push_back({&kernels_avx2(), &select_kernels_avx2()});
#endif
#if defined(DANCE_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back({&kernels_avx512(), &select_kernels_avx512()});
    }
#endif
    return found;
  }();
  return list;
}

uint32_t current = 0;

}  // namespace

uint32_t num_usable_targets() { return static_cast<uint32_t>(usable().size()); }
void use_target(uint32_t i) { current = i; }

const Kernels& kernels() { return *usable()[current].kernels; }
const SelectKernels& select_kernels() { return *usable()[current].select_kernels; }

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const Target& target : usable()) names.emplace_back(target.kernels->target);
  return names;
}

}  // namespace dance::cpu
