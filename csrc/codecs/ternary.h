// ternary: -1, 0 or 1 times one and a half mean magnitudes of the block, whichever is nearest (after the ternary weight
// networks of Li & Liu 2016).
#pragma once

#include "codecs/dense.h"

namespace dance {

struct Ternary {
  static constexpr uint8_t id = 12;
  static constexpr uint8_t mode = 0;
  static constexpr const char* name = "ternary";
  static constexpr uint32_t bits = 2;
  static constexpr Statistic statistic = Statistic::sum_abs;
  using Scale = float;
  static constexpr bool kStochastic = false;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 0;
  struct Coder {
    float scale;
    uint32_t threshold;  // what is larger in magnitude is sent; in a block that is sent as zeros nothing is
  };
  static constexpr float kUnscale = 1.5f * kSumUnscale;

  DANCE_HD static Coder coder(float sum, uint32_t n, uint32_t) {
    float scale = sum / static_cast<float>(static_cast<int32_t>(n)) * kUnscale;
    scale = scale < kLargest ? scale : kLargest;
    const bool usable = scale >= kSmallestNormal;
    return {usable ? scale : 0.0f, usable ? float_bits(scale * 0.5f) : kMagnitudeMask};
  }
  DANCE_HD static Coded encode(Coder coder, float value, uint32_t) {
    const uint32_t sent = magnitude(value) > coder.threshold ? 0xffffffffu : 0u;
    const uint32_t sign = float_bits(value) & 0x80000000u;
    // 1 and -1 are 01 and 11: bit 0 says that it is sent, bit 1 is the sign.
    return {(1u | sign >> 30) & sent, bits_float((float_bits(coder.scale) | sign) & sent)};
  }
  DANCE_HD static float decode(uint32_t code, float scale) {
    return static_cast<float>(static_cast<int32_t>(code << 30) >> 30) * scale;
  }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return code != 2u; }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return float_bits(kLargest); }
};

}  // namespace dance
