// bf16: a cast to bfloat16, round to nearest even, saturating at its largest finite value.
#pragma once

#include "base/half.h"
#include "codecs/dense.h"

namespace dance {

struct Bf16 {
  static constexpr uint8_t id = 2;
  static constexpr uint8_t mode = 0;
  static constexpr const char* name = "bf16";
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
    const uint32_t code = float_to_bfloat(value);
    return {code, bfloat_to_float(code)};
  }
  DANCE_HD static float decode(uint32_t code, float) { return bfloat_to_float(code); }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return (code & 0x7fffu) < 0x7f80u; }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return 0; }
};

}  // namespace dance
