// topk: the k elements of largest magnitude, exactly, ties to the lower index (Aji & Heafield 2017; Stich et al. 2018).
#pragma once

#include "codecs/dense.h"

namespace dance {

// A sparse codec: a selector per backend chooses indices; the values are sent as they are.
struct TopK {
  static constexpr uint8_t id = 5;
  static constexpr const char* name = "topk";
  // Order of selection: by magnitude; a non-finite value counts as zero.
  DANCE_HD static uint32_t key(float value) {
    const uint32_t size = magnitude(value);
    return size < kInfinityBits ? size : 0u;
  }
  // The selectors' first radix digit: bits 30..20 of the key, exponent and three bits of the mantissa.
  static constexpr uint32_t kBins = 2048;
  static constexpr uint32_t kBinShift = 20;
};

// Payload: k indices (uint32, strictly increasing), then k values (float32).
DANCE_HD uint64_t topk_nbytes(uint64_t count) { return 8 * count; }

}  // namespace dance
