// sign: one bit an element and the mean magnitude of the block as its scale (Karimireddy et al. 2019, EF-SignSGD).
#pragma once

#include "codecs/dense.h"

namespace dance {

struct Sign {
  static constexpr uint8_t id = 4;
  static constexpr uint8_t mode = 0;
  static constexpr const char* name = "sign";
  static constexpr uint32_t bits = 1;
  static constexpr Statistic statistic = Statistic::sum_abs;
  using Scale = float;
  static constexpr bool kStochastic = false;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 0;
  struct Coder {
    float scale;
    uint32_t mask;  // 0 when the block is sent as zero, so that its bits are zero too
  };
  DANCE_HD static Coder coder(float sum, uint32_t n, uint32_t) {
    float scale = sum / static_cast<float>(static_cast<int32_t>(n)) * kSumUnscale;
    scale = scale < kLargest ? scale : kLargest;
    const bool usable = scale >= kSmallestNormal;
    return {usable ? scale : 0.0f, usable ? 1u : 0u};
  }
  DANCE_HD static Coded encode(Coder coder, float value, uint32_t) {
    const uint32_t code = (float_bits(value) >> 31) & coder.mask;
    return {code, bits_float(float_bits(coder.scale) | (code << 31))};
  }
  DANCE_HD static float decode(uint32_t code, float scale) {
    const uint32_t bit = scale > 0.0f ? code & 1u : 0u;
    return bits_float(float_bits(scale) | (bit << 31));
  }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return code <= 1u; }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return float_bits(kLargest); }
};

}  // namespace dance
