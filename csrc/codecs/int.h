// int8, int4, int2: equal steps between -max|x| and max|x| of a block, one float32 scale a block (Dettmers 2016,
// block-wise), rounded to nearest or at random.
#pragma once

#include "base/random.h"
#include "codecs/dense.h"

namespace dance {

template <uint32_t num_bits, bool stochastic>
struct Int {
  static_assert(num_bits == 8 || num_bits == 4 || num_bits == 2);
  static constexpr uint8_t id = num_bits == 8 ? 3 : num_bits == 4 ? 7 : 8;
  static constexpr uint8_t mode = stochastic ? 1 : 0;
  static constexpr const char* name = num_bits == 8 ? "int8" : num_bits == 4 ? "int4" : "int2";
  static constexpr uint32_t bits = num_bits;
  static constexpr Statistic statistic = Statistic::max_abs;
  using Scale = float;
  static constexpr bool kStochastic = stochastic;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 0;
  static constexpr float kLargestCode = (1 << (num_bits - 1)) - 1;
  struct Coder {
    float scale;
    float inverse;
    float bound;  // kLargestCode: compilers clamp to a variable in two instructions, to a constant in many
  };

  DANCE_HD static Coder coder(float largest, uint32_t, uint32_t) {
    const Fit fitted = fit(largest, kLargestCode);
    return {fitted.scale, fitted.inverse, kLargestCode};
  }
  DANCE_HD static Coded encode(Coder coder, float value, uint32_t noise) {
    float t = value * coder.inverse;
    // |t| <= L (1 + 2^-22), so that rounding to nearest needs no clamp.
    if (stochastic) t = clamp(t + dither(noise), coder.bound);
    const float shifted = t + kRoundMagic;
    return {float_bits(shifted), (shifted - kRoundMagic) * coder.scale};
  }
  DANCE_HD static float decode(uint32_t code, float scale) {
    // Compilers know this cast as one instruction.
    if (num_bits == 8) return static_cast<float>(static_cast<int8_t>(code)) * scale;
    constexpr uint32_t shift = 32 - num_bits;
    return static_cast<float>(static_cast<int32_t>(code << shift) >> shift) * scale;
  }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return code != 1u << (num_bits - 1); }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return float_bits(fit(kLargest, kLargestCode).scale); }
};

using Int8 = Int<8, false>;
using Int8Stochastic = Int<8, true>;
using Int4 = Int<4, false>;
using Int4Stochastic = Int<4, true>;
using Int2 = Int<2, false>;
using Int2Stochastic = Int<2, true>;

}  // namespace dance
