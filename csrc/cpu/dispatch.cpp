// Chooses the CPU target at run time.
#include "cpu/dispatch.h"

#include <cstdlib>

#if defined(DANCE_HAS_AVX2)
#include <cpuid.h>
#endif

#include "base/error.h"

namespace dance::cpu {
namespace {

struct Target {
  const char* name;
  const Kernels& (*kernels)();
  const SelectKernels& (*select_kernels)();
  bool (*supported)();
};

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

// From the plainest to the widest: without DANCE_CPU the last supported one is used.
const std::vector<Target>& built() {
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

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Target& choose() {
  const char* forced = std::getenv("DANCE_CPU");
  if (forced == nullptr || *forced == '\0') {
    const Target* best = &built().front();
    for (const auto& target : built()) {
      if (target.supported()) best = &target;
    }
    return *best;
  }
  const std::string name = forced;
  for (const auto& target : built()) {
    if (name != target.name) continue;
    if (!target.supported()) {
      throw UnavailableError("DANCE_CPU=" + name +
                             ": this CPU lacks these instructions; unset DANCE_CPU or choose baseline");
    }
    return target;
  }
  const bool known = name == "avx2" || name == "avx512" || name == "neon";
  const std::string remedy = "; this build has " + join(targets()) + "; unset DANCE_CPU to choose by itself";
  if (known) throw UnavailableError("DANCE_CPU=" + name + ": not in this build" + remedy);
  throw ArgumentError("DANCE_CPU=" + name + ": unknown CPU target" + remedy);
}

}  // namespace

namespace {

const Target& chosen() {
  static const Target& target = choose();
  return target;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = chosen().kernels();
  return table;
}

const SelectKernels& select_kernels() {
  static const SelectKernels& table = chosen().select_kernels();
  return table;
}

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const auto& target : built()) names.emplace_back(target.name);
  return names;
}

}  // namespace dance::cpu
