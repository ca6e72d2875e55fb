// Stands in for csrc/cpu/dispatch.cpp.
#include "switched_dispatch.h"

#include "cpu/dispatch.h"
#include "cpu/targets.h"

namespace dance::cpu {
namespace {

const std::vector<Target>& usable() {
  static const std::vector<Target> list = [] {
    std::vector<Target> found;
    for (const Target& target : targets()) {
      if (target.supported()) found.push_back(target);
    }
    return found;
  }();
  return list;
}

uint32_t current = 0;

}  // namespace

uint32_t num_usable_targets() { return static_cast<uint32_t>(usable().size()); }
void use_target(uint32_t i) { current = i; }

const Kernels& kernels() { return usable()[current].kernels(); }
const SelectKernels& select_kernels() { return usable()[current].select_kernels(); }

}  // namespace dance::cpu
