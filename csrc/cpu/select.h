// Exact top-k on the CPU: which elements are sent.
#pragma once

#include "cpu/kernels.h"

namespace dance::cpu {

// Writes the `count` chosen indices, increasing, and their values, and finishes the state; returns the index of the
// first non-finite element or -1. count <= job.numel <= 2^32.
int64_t select_largest(Operation operation, const SelectJob& job, uint64_t count, uint32_t* indices, float* values);

}  // namespace dance::cpu
