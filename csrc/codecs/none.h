// none: the elements as they are, the codec that is always a candidate.
#pragma once

#include "codecs/dense.h"

namespace dance {

struct None {
  static constexpr uint8_t id = 0;
  static constexpr const char* name = "none";
  static constexpr uint32_t bits = 32;
  static constexpr Statistic statistic = Statistic::none;
  struct Coder {
    float scale;
  };
  DANCE_HD static Coder coder(float, uint32_t) { return {1.0f}; }
  DANCE_HD static Coded encode(Coder, float value) { return {float_bits(value), value}; }
  DANCE_HD static float decode(uint32_t code, float) { return bits_float(code); }
};

}  // namespace dance
