// fp16: a cast to IEEE binary16, round to nearest even, saturating at 65504.
#pragma once

#include "base/half.h"
#include "codecs/dense.h"

namespace dance {

struct Fp16 {
  static constexpr uint8_t id = 1;
  static constexpr uint8_t mode = 0;
  static constexpr const char* name = "fp16";
  static constexpr uint32_t bits = 16;
  static constexpr Statistic statistic = Statistic::none;
  using Scale = float;
  static constexpr bool kStochastic = false;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 0;
  struct Coder {
    float scale;
  };
  DANCE_HD static Coder coder(float, uint32_t, uint32_t) { return {1.0f}; }
  DANCE_HD static Coded encode(Coder, float value, uint32_t) {
    const Rounded rounded = Binary16::round(value);
    return {rounded.code, rounded.value};
  }
  DANCE_HD static float decode(uint32_t code, float) { return half_to_float(code); }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return (code & 0x7fffu) < 0x7c00u; }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return 0; }
};

}  // namespace dance
