// cpu/dispatch.h with a switch: one process runs the tables of all CPU targets in turn.
#pragma once

#include <cstdint>

namespace dance::cpu {

// How many targets this build has and this CPU runs.
uint32_t num_usable_targets();
// kernels() and select_kernels() are those of target i from now on.
void use_target(uint32_t i);

}  // namespace dance::cpu
