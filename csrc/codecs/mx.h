// mxfp8, mxfp4: blocks of 32 small floats that share a power of two (OCP Microscaling Formats (MX) specification v1.0).
#pragma once

#include "base/minifloat.h"
#include "codecs/dense.h"

namespace dance {

// exponent: that of the largest number of the format.
template <class Format, uint8_t codec, uint8_t number, uint32_t num_bits, uint32_t exponent>
struct Mx {
  static constexpr uint8_t id = codec;
  static constexpr uint8_t mode = number;
  static constexpr const char* name = num_bits == 8 ? "mxfp8" : "mxfp4";
  static constexpr uint32_t bits = num_bits;
  static constexpr Statistic statistic = Statistic::max_abs;
  using Scale = uint8_t;
  static constexpr bool kStochastic = false;
  static constexpr bool kVariableBits = false;
  static constexpr uint32_t kFixedBlock = 32;
  struct Coder {
    uint8_t scale;  // stands for 2^(scale - 127), and 0 for 0
    float inverse;
    uint32_t mask;  // 0 when the block is sent as zeros, so that no code keeps its sign
  };

  DANCE_HD static Coder coder(float largest, uint32_t, uint32_t) {
    const uint32_t biased = float_bits(largest) >> 23;
    uint32_t scale = biased > exponent ? biased - exponent : 1u;
    scale = biased > 0 ? scale : 0u;
    return {static_cast<uint8_t>(scale), bits_float((254u - scale) << 23), biased > 0 ? ~0u : 0u};
  }
  DANCE_HD static Coded encode(Coder coder, float value, uint32_t) {
    const Rounded rounded = Format::round(value * coder.inverse);
    return {rounded.code & coder.mask, bits_float(float_bits(rounded.value) & coder.mask) * scale_value(coder.scale)};
  }
  DANCE_HD static float decode(uint32_t code, float scale) { return Format::to_float(code) * scale; }
  DANCE_HD static bool valid(uint32_t code, uint32_t) { return (code & (Format::kSign - 1)) <= Format::kLargestCode; }
  DANCE_HD static uint32_t largest_scale(uint32_t) { return 254 - exponent; }
};

using MxFp8E4m3 = Mx<E4m3, 9, 0, 8, 8>;
using MxFp8E5m2 = Mx<E5m2, 9, 1, 8, 15>;
using MxFp4 = Mx<E2m1, 10, 0, 4, 2>;

}  // namespace dance
