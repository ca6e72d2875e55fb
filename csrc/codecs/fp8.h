// fp8: e4m3 or e5m2 floats (OCP OFP8) of the values divided by one float32 scale a block.
#pragma once

#include "base/minifloat.h"
#include "codecs/dense.h"

namespace dance {

template <class Format, uint8_t number>
struct Fp8 {
  static constexpr uint8_t id = 6;
  static constexpr uint8_t mode = number;
  static constexpr const char* name = "fp8";
  static constexpr uint32_t bits = 8;
  static constexpr Statistic statistic = Statistic::max_abs;
  using Scale = float;
  static constexpr bool kStochastic = false;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 0;
  struct Coder {
    float scale;
    float inverse;
    uint32_t mask;  // 0 when the block is sent as zeros, so that no code keeps its sign
  };

  DANCE_HD static Coder coder(float largest, uint32_t, uint32_t) {
    const Fit fitted = fit(largest, Format::to_float(Format::kLargestCode));
    return {fitted.scale, fitted.inverse, fitted.scale > 0.0f ? ~0u : 0u};
  }
  DANCE_HD static Coded encode(Coder coder, float value, uint32_t) {
    const Rounded rounded = Format::round(value * coder.inverse);
    return {rounded.code & coder.mask, bits_float(float_bits(rounded.value) & coder.mask) * coder.scale};
  }
  DANCE_HD static float decode(uint32_t code, float scale) { return Format::to_float(code) * scale; }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return (code & 0x7fu) <= Format::kLargestCode; }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return float_bits(coder(kLargest, 0, 0).scale); }
};

using Fp8E4m3 = Fp8<E4m3, 0>;
using Fp8E5m2 = Fp8<E5m2, 1>;

}  // namespace dance
