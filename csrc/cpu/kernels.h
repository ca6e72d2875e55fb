// The table of loops that each CPU target provides, and the plain structs they take.
#pragma once

#include <cstdint>

#include "codecs/list.h"
#include "codecs/operation.h"

namespace dance::cpu {

constexpr int kNumDense = DenseCodecs::size;

struct Candidate {
  uint32_t index;
  float value;
};

// Blocks first <= b < last; returns the index of the first non-finite element of a block that was sent as zeros, or -1.
using EncodeBlocks = int64_t (*)(const EncodeJob&, uint64_t first, uint64_t last);
using DecodeBlocks = void (*)(const DecodeJob&, uint64_t first, uint64_t last);

struct Kernels {
  const char* target;
  uint8_t dense_ids[kNumDense];
  EncodeBlocks encode[kNumDense][kNumOperations];
  DecodeBlocks decode[kNumDense][2];  // [1] adds to out
  // Adds the first radix digit of every key in [first, last) to histogram[TopK::kBins].
  void (*histogram[kNumOperations])(const SelectJob&, uint64_t first, uint64_t last, uint64_t* histogram);
  // Collects, in order of index, every element whose key is >= lowest, and finishes the state of all others; lowers
  // *first_nonfinite. Returns their number, of which no more than `capacity` are written. A non-finite v is collected
  // as it is when its key, 0, is high enough.
  uint64_t (*collect[kNumOperations])(const SelectJob&, uint64_t first, uint64_t last, uint32_t lowest, Candidate* out,
                                      uint64_t capacity, int64_t* first_nonfinite);
  void (*mix)(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t first,
              uint64_t last);
};

const Kernels& kernels_baseline();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();

}  // namespace dance::cpu
