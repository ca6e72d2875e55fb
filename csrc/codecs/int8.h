// int8: 255 equal steps between -max|x| and max|x| of a block, one float32 scale a block (Dettmers 2016, block-wise).
#pragma once

#include "codecs/dense.h"

namespace dance {

struct Int8 {
  static constexpr uint8_t id = 3;
  static constexpr const char* name = "int8";
  static constexpr uint32_t bits = 8;
  static constexpr Statistic statistic = Statistic::max_abs;
  struct Coder {
    float scale;
    float inverse;
  };
  // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits of the sum.
  static constexpr float kMagic = 12582912.0f;

  DANCE_HD static Coder coder(float largest, uint32_t) {
    float scale = largest / 127.0f;
    // At FLT_MAX the rounded scale times 127 would overflow.
    scale = scale * 127.0f <= kLargest ? scale : bits_float(float_bits(scale) - 1);
    // A subnormal scale has too few bits to be worth sending, and its inverse could overflow: the block is sent as
    // zero.
    const bool usable = scale >= kSmallestNormal;
    return {usable ? scale : 0.0f, usable ? 127.0f / largest : 0.0f};
  }
  // |value * inverse| <= 127 (1 + 2^-22), so no clamp is needed.
  DANCE_HD static Coded encode(Coder coder, float value) {
    const float shifted = value * coder.inverse + kMagic;
    return {float_bits(shifted), (shifted - kMagic) * coder.scale};
  }
  DANCE_HD static float decode(uint32_t code, float scale) {
    return static_cast<float>(static_cast<int8_t>(code)) * scale;
  }
};

}  // namespace dance
