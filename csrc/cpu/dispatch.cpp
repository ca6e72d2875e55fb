// Chooses the CPU target at run time.
#include "cpu/dispatch.h"

#include <cstdlib>

#include "base/error.h"
#include "cpu/targets.h"

namespace dance::cpu {
namespace {

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Target& choose() {
  const char* forced = std::getenv("DANCE_CPU");
  if (forced == nullptr || *forced == '\0') {
    const Target* best = &targets().front();
    for (const Target& target : targets()) {
      if (target.supported()) best = &target;
    }
    return *best;
  }
  const std::string name = forced;
  for (const Target& target : targets()) {
    if (name != target.name) continue;
    if (!target.supported()) {
      throw UnavailableError("DANCE_CPU=" + name +
                             ": this CPU lacks these instructions; unset DANCE_CPU or choose baseline");
    }
    return target;
  }
  const bool known = name == "avx2" || name == "avx512" || name == "neon";
  const std::string remedy = "; this build has " + join(target_names()) + "; unset DANCE_CPU to choose by itself";
  if (known) throw UnavailableError("DANCE_CPU=" + name + ": not in this build" + remedy);
  throw ArgumentError("DANCE_CPU=" + name + ": unknown CPU target" + remedy);
}

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

}  // namespace dance::cpu
