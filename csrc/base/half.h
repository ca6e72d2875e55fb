// float32 <-> float16 and bfloat16 by integer arithmetic: round to nearest even, saturating at the largest finite
// value. Plain selects, so that compilers vectorise them and every machine gives the same bits (IEEE 754-2019,
// binary16).
#pragma once

#include "base/host_device.h"

namespace dance {

DANCE_HD uint32_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t size = bits & kMagnitudeMask;
  // From 2^-14 on: move the exponent by 127 - 15 and round the 13 dropped bits.
  const uint32_t normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
  // Below: adding 0.5 puts the rounding position at 2^-24, the unit of a subnormal half.
  const uint32_t subnormal = float_bits(bits_float(size) + 0.5f) - float_bits(0.5f);
  uint32_t half = size < 0x38800000u ? subnormal : normal;
  half = size < 0x477ff000u ? half : 0x7bffu;  // 65520 and more would round to infinity
  return half | sign;
}

DANCE_HD float half_to_float(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t size = half & 0x7fffu;
  const uint32_t normal = (size << 13) + (112u << 23);
  const uint32_t special = (size << 13) | kInfinityBits;  // infinity and NaN keep their payload bits
  const uint32_t subnormal = float_bits(static_cast<float>(static_cast<int32_t>(size)) * 5.9604644775390625e-8f);
  uint32_t bits = size < 0x400u ? subnormal : normal;
  bits = size < 0x7c00u ? bits : special;
  return bits_float(bits | sign);
}

DANCE_HD uint32_t float_to_bfloat(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t size = bits & kMagnitudeMask;
  const uint32_t rounded = (size + 0x7fffu + ((size >> 16) & 1u)) >> 16;
  return (rounded < 0x7f80u ? rounded : 0x7f7fu) | sign;
}

DANCE_HD float bfloat_to_float(uint32_t bfloat) { return bits_float(bfloat << 16); }

}  // namespace dance
