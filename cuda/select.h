// Which elements a sparse codec sends: selectors for the whole array, for its blocks, and by the seed.
#pragma once

#include <cuda_runtime.h>

#include "codecs/operation.h"
#include "codecs/sparse.h"

namespace dance::cuda {

// Where a selector leaves what it found, in order of index: device memory with room for `capacity`. Values are v as it
// is, NaN and infinity included. The state of every finite element is v afterwards, where the operation is feedback.
struct Chosen {
  uint32_t* indices;
  float* values;
  uint64_t capacity;
};

// All elements with a key above `lowest` (and, with `ties`, on it) if they are `least` to `most`, else the `least` or
// `most` largest. Where sample_rank is not 0, `lowest` is that of the keys of a sample drawn by sample_seed.
struct Cut {
  uint64_t least, most;
  bool ties;
  uint32_t lowest;
  uint64_t sample_seed;
  uint32_t sample_rank;
};

// The samples of dgc, and topk's guess at where the k-th key lies.
constexpr uint32_t kMaxSample = 32768;

// Scratch is device memory of select_scratch_nbytes, aligned to 16. The number of elements found is written to `count`
// (device memory, may be null) and found again at the address that is returned.
const uint32_t* select_global(Operation operation, const SelectJob& job, const Cut& cut, const Chosen& chosen,
                              int64_t* nonfinite, uint32_t* count, void* scratch, uint64_t expected,
                              cudaStream_t stream);
// `expected`: a guess at how many elements lie above `lowest`; a bad one costs time.
uint64_t select_scratch_nbytes(uint64_t numel, uint64_t expected);

// The `count` largest of each block of `scope` elements (of a last block in proportion); their places in their blocks
// go to in_block.
void select_blocks(Operation operation, const SelectJob& job, uint32_t scope, uint32_t count, const Chosen& chosen,
                   uint16_t* in_block, int64_t* nonfinite, cudaStream_t stream);

// v of the elements that `chosen` lists already.
void gather(Operation operation, const SelectJob& job, const Chosen& chosen, int64_t* nonfinite, cudaStream_t stream);

}  // namespace dance::cuda
