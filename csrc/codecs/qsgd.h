// qsgd: a chosen number of levels between -m and m, rounded at random, where m is the largest magnitude or the
// Euclidean norm of a block (Alistarh et al. 2017).
#pragma once

#include "base/random.h"
#include "codecs/dense.h"

namespace dance {

template <bool euclidean>
struct Qsgd {
  static constexpr uint8_t id = 11;
  static constexpr uint8_t mode = euclidean ? 1 : 0;
  static constexpr const char* name = "qsgd";
  static constexpr uint32_t bits = 8;
  static constexpr Statistic statistic = euclidean ? Statistic::l2 : Statistic::max_abs;
  using Scale = float;
  static constexpr bool kStochastic = true;
  static constexpr bool kVariableBits = true;
  static constexpr uint32_t kFixedBlock = 0;
  struct Coder {
    float scale;
    float inverse;
    float largest;
  };

  DANCE_HD static int32_t largest_code(uint32_t levels) { return static_cast<int32_t>(levels - 1) / 2; }
  DANCE_HD static Coder coder(float norm, uint32_t, uint32_t levels) {
    const float largest = static_cast<float>(largest_code(levels));
    const Fit fitted = fit(norm, largest);
    return {fitted.scale, fitted.inverse, largest};
  }
  DANCE_HD static Coded encode(Coder coder, float value, uint32_t noise) {
    const float shifted = clamp(value * coder.inverse + dither(noise), coder.largest) + kRoundMagic;
    return {float_bits(shifted), (shifted - kRoundMagic) * coder.scale};
  }
  DANCE_HD static float decode(uint32_t code, float scale) {
    return static_cast<float>(static_cast<int8_t>(code)) * scale;
  }
  DANCE_HD static bool valid(uint32_t code, uint32_t levels) {
    const int32_t value = static_cast<int32_t>(code << 24) >> 24;  // the sign of 8 bits
    const int32_t largest = largest_code(levels);
    return value <= largest && value >= -largest;
  }
  DANCE_HD static uint32_t largest_scale(uint32_t levels) { return float_bits(coder(kLargest, 0, levels).scale); }
};

using QsgdMax = Qsgd<false>;
using QsgdL2 = Qsgd<true>;

}  // namespace dance
