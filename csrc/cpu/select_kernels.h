// The loops of the sparse codecs' selectors that each CPU target provides (csrc/cpu/select.cpp and candidates.cpp alone
// call them).
#pragma once

#include <cstdint>

#include "codecs/list.h"
#include "codecs/operation.h"

namespace dance::cpu {

// Elements that are looked at together, and how much more room than what they keep the loops want behind their outputs.
constexpr uint32_t kSelectChunk = 4096;
constexpr uint32_t kSelectSlack = 64;

struct SelectKernels {
  const char* target;

  // Appends, in order of index, every element of [first, last) whose magnitude is >= lowest, those that are not finite
  // among them: its index and its v. With `write`, feedback also stores the state of every finite element: v, or 0 from
  // magnitude `sent` on. Returns how many; there must be room for last - first + kSelectSlack.
  uint64_t (*collect[kNumOperations])(const SelectJob&, uint64_t first, uint64_t last, uint32_t lowest, bool write,
                                      uint32_t sent, uint32_t* indices, float* values);

  // The elements that are taken of strata [first, last) (stratified_index, codecs/sparse.h), `last - first` of them.
  void (*stratified)(uint64_t seed, uint64_t count, uint64_t numel, uint64_t first, uint64_t last, uint32_t* indices);

  // A selection key that rank to rank + slack of the n values reach (1 <= rank <= n), or just the rank-th largest: then
  // *ties is how many with this key itself are among the rank largest, else it is n. At least rank of them
  // have keys >= lowest.
  // `scratch` has room for n.
  uint32_t (*nth_key)(const float* values, uint64_t n, uint64_t rank, uint64_t slack, uint32_t lowest, float* scratch,
                      uint64_t* ties);

  // Keeps, in place and in their order, the elements with selection keys > key, and the first `ties` with just this
  // key. Returns how many; key < kInfinityBits.
  uint64_t (*keep)(uint32_t* indices, float* values, uint64_t n, uint32_t key, uint64_t ties);

  // The `count` largest of the n <= kMaxScope elements from `first` on, in order: their indices and values, with
  // room for count. Finishes the state of all others as collect does, and returns the index of the first
  // element that is not finite, or -1. `scratch` has room for kBlockScratch.
  int64_t (*top_of_block[kNumOperations])(const SelectJob&, uint64_t first, uint32_t n, uint32_t count, float* scratch,
                                          uint32_t* indices, float* values);
};

constexpr uint64_t kBlockScratch = 4 * (uint64_t{kMaxScope} + kSelectSlack);

const SelectKernels& select_kernels_baseline();
const SelectKernels& select_kernels_avx2();
const SelectKernels& select_kernels_avx512();
const SelectKernels& select_kernels_neon();

}  // namespace dance::cpu
