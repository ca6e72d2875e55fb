// The gossip step on the GPU.
#pragma once

#include <cuda_runtime.h>

#include "base/dtype.h"

namespace dance::cuda {

void mix_arrays(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel,
                cudaStream_t stream);

}  // namespace dance::cuda
