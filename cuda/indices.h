// How the indices of sparse packets are coded: after Elias and Fano, per block as 16 bits, or by the seed alone.
#pragma once

#include <cuda_runtime.h>

#include "dense.h"

namespace dance::cuda {

// Writes the code of `count` increasing indices; with `values` the device knows how many, `count` at most.
void write_elias_fano(const uint32_t* indices, uint64_t numel, uint64_t count, Values values, uint8_t* payload,
                      cudaStream_t stream);

// Reads `count` indices. Bytes that are no code give some indices, perhaps of numel and more. scratch is device memory
// of elias_fano_scratch_nbytes, aligned to 8.
void read_elias_fano(const uint8_t* payload, uint64_t numel, uint64_t count, uint32_t* indices, void* scratch,
                     cudaStream_t stream);
uint64_t elias_fano_scratch_nbytes(uint64_t numel, uint64_t count);

// `total` indices from those of their blocks, and those that the seed draws (scope 0: of the whole array).
void read_block_indices(const uint16_t* in_block, uint32_t scope, uint32_t count, uint64_t total, uint32_t* indices,
                        cudaStream_t stream);
void draw_indices(uint64_t seed, uint64_t numel, uint32_t scope, uint32_t count, uint64_t total, uint32_t* indices,
                  cudaStream_t stream);

}  // namespace dance::cuda
