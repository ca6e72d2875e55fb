// float32 <-> float16 and bfloat16 by integer arithmetic: round to nearest even, saturating at the largest finite
// value (IEEE 754-2019, binary16).
#pragma once

#include "base/minifloat.h"

namespace dance {

DANCE_HD uint32_t float_to_half(float value) { return Binary16::round(value).code; }

DANCE_HD float half_to_float(uint32_t half) {
  // Infinity and NaN keep their payload bits.
  const uint32_t special = (half & 0x8000u) << 16 | (half & 0x7fffu) << 13 | kInfinityBits;
  return static_cast<int32_t>(half & 0x7fffu) < 0x7c00 ? Binary16::to_float(half) : bits_float(special);
}

// Magnitudes from here on, as bits, are rounded to infinity, or are not finite.
constexpr uint32_t kBfloatOverflow = 0x7f7f8000u;
// Of magnitudes below that.
DANCE_HD uint32_t float_to_bfloat_below(float value) {
  const uint32_t bits = float_bits(value);
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Of finite values.
DANCE_HD uint32_t float_to_bfloat(float value) {
  const uint32_t rounded = float_to_bfloat_below(value);
  return rounded - ((rounded & 0x7fffu) == 0x7f80u ? 1u : 0u);
}

DANCE_HD float bfloat_to_float(uint32_t bfloat) { return bits_float(bfloat << 16); }

// For arrays that are not codes (states, outputs): finite values as above, but infinity and NaN stay what they are, so
// that a value that was read and not changed is written as it was.
DANCE_HD uint32_t store_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t special = ((bits >> 16) & 0x8000u) | 0x7c00u | ((bits >> 13) & 0x3ffu);
  return is_finite(value) ? float_to_half(value) : special;
}

DANCE_HD uint32_t store_bfloat(float value) {
  return is_finite(value) ? float_to_bfloat(value) : float_bits(value) >> 16;
}

}  // namespace dance
