// none: the elements as they are, the codec that is always a candidate.
#pragma once

#include "codecs/dense.h"

namespace dance {

struct None {
  static constexpr uint8_t id = 0;
  static constexpr uint8_t mode = 0;
  static constexpr const char* name = "none";
  static constexpr uint32_t bits = 32;
  static constexpr Statistic statistic = Statistic::none;
  using Scale = float;
  static constexpr bool kStochastic = false;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 0;
  struct Coder {
    float scale;
  };
  DANCE_HD static Coder coder(float, uint32_t, uint32_t) { return {1.0f}; }
  DANCE_HD static Coded encode(Coder, float value, uint32_t) { return {float_bits(value), value}; }
  DANCE_HD static float decode(uint32_t code, float) { return bits_float(code); }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return is_finite(bits_float(code)); }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return 0; }
};

}  // namespace dance
