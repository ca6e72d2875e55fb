// bf16: a cast to bfloat16, round to nearest even, saturating at its largest finite value.
#pragma once

#include "base/half.h"
#include "codecs/dense.h"

namespace dance {

struct Bf16 {
  static constexpr uint8_t id = 2;
  static constexpr const char* name = "bf16";
  static constexpr uint32_t bits = 16;
  static constexpr Statistic statistic = Statistic::none;
  struct Coder {
    float scale;
  };
  DANCE_HD static Coder coder(float, uint32_t) { return {1.0f}; }
  DANCE_HD static Coded encode(Coder, float value) {
    const uint32_t code = float_to_bfloat(value);
    return {code, bfloat_to_float(code)};
  }
  DANCE_HD static float decode(uint32_t code, float) { return bfloat_to_float(code); }
};

}  // namespace dance
