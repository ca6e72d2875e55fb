// The CPU targets of this build, and which of them this CPU runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/select_kernels.h"

namespace dance::cpu {

struct Target {
  const char* name;
  const Kernels& (*kernels)();
  const SelectKernels& (*select_kernels)();
  bool (*supported)();  // has this CPU all instructions that the target is compiled with
};

// From the plainest to the widest.
const std::vector<Target>& targets();
std::vector<std::string> target_names();

}  // namespace dance::cpu
