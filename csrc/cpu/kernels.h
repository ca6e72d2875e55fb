// The table of loops that each CPU target provides, and the plain structs they take.
#pragma once

#include <cstdint>

#include "codecs/list.h"
#include "codecs/operation.h"

namespace dance::cpu {

constexpr int kNumDense = DenseCodecs::size;

// Blocks first <= b < last; returns the index of the first non-finite element of a block that was sent as zeros, or -1.
using EncodeBlocks = int64_t (*)(const EncodeJob&, uint64_t first, uint64_t last);
// decode[..][1] adds to out.
using DecodeBlocks = void (*)(const DecodeJob&, uint64_t first, uint64_t last);
// Whether every code of the blocks is one that an encoder makes (and, without scales, every value is finite).
using CheckBlocks = bool (*)(const DecodeJob&, uint32_t levels, uint64_t first, uint64_t last);

struct DenseKernels {
  uint8_t id, mode;
  EncodeBlocks encode[kNumOperations];
  DecodeBlocks decode[2];
  CheckBlocks check;
};

struct Kernels {
  const char* target;
  DenseKernels dense[kNumDense];
  // Elements [first, last).
  void (*mix)(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t first,
              uint64_t last);
};

const Kernels& kernels_baseline();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();

}  // namespace dance::cpu
