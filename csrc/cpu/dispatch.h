// Chooses the CPU target at run time; DANCE_CPU=baseline|avx2|avx512|neon forces one.
#pragma once

#include "cpu/kernels.h"
#include "cpu/select_kernels.h"

namespace dance::cpu {

// The kernels in use. The choice is made at the first call and kept; throws ArgumentError when DANCE_CPU names an
// unknown target and UnavailableError when this build or this CPU lacks it.
const Kernels& kernels();
const SelectKernels& select_kernels();

}  // namespace dance::cpu
