// The CPU targets of this build, and which of them this CPU runs.
#include "cpu/targets.h"

#if defined(DANCE_HAS_AVX2)
#include <cpuid.h>
#endif

namespace dance::cpu {
namespace {

bool always() { return true; }

#if defined(DANCE_HAS_AVX2)
// clang 14 has no name for F16C.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && has_f16c(); }
#endif
#if defined(DANCE_HAS_AVX512)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_f16c();
}
#endif

}  // namespace

const std::vector<Target>& targets() {
  static const std::vector<Target> list = {
      {"baseline", kernels_baseline, select_kernels_baseline, always},
#if defined(DANCE_HAS_NEON)
      {"neon", kernels_neon, select_kernels_neon, always},
#endif
#if defined(DANCE_HAS_AVX2)
      {"avx2", kernels_avx2, select_kernels_avx2, has_avx2},
#endif
#if defined(DANCE_HAS_AVX512)
      {"avx512", kernels_avx512, select_kernels_avx512, has_avx512},
#endif
  };
  return list;
}

std::vector<std::string> target_names() {
  std::vector<std::string> names;
  for (const Target& target : targets()) names.emplace_back(target.name);
  return names;
}

}  // namespace dance::cpu
