// Places in a compaction: how many elements of all parts before a part are chosen.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dance::cuda {

// Of one part; after the scan of all parts before it.
struct Counts {
  uint32_t above, equal;
};

// Replaces the counts of each part by the sums over the parts before it.
void scan_counts(Counts* parts, uint64_t num_parts, cudaStream_t stream);

}  // namespace dance::cuda
