// Exact top-k on the GPU: which elements are sent, and where received ones go.
#pragma once

#include <cuda_runtime.h>

#include "codecs/operation.h"

namespace dance::cuda {

// Writes the `count` chosen indices, increasing, and their values, and finishes the state, as cpu::select_largest does.
// 1 <= count <= job.numel <= 2^32; scratch is device memory of select_scratch_nbytes, aligned to 8.
void select_largest(Operation operation, const SelectJob& job, uint64_t count, uint32_t* indices, float* values,
                    int64_t* nonfinite, void* scratch, cudaStream_t stream);

uint64_t select_scratch_nbytes(uint64_t numel);

// out[index] = or += weight * value; indices that are out of range are skipped. Without `add`, all else becomes zero.
void scatter(const uint32_t* indices, const float* values, uint64_t count, float* out, uint64_t numel, bool add,
             float weight, cudaStream_t stream);

}  // namespace dance::cuda
