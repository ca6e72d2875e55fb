// Floating-point formats of few bits with subnormals: binary16, and e4m3, e5m2, e2m1 of the OCP specifications (OFP8
// and MX v1.0). Integer arithmetic and selects, so that compilers vectorise it and every machine gives the same bits.
#pragma once

#include "base/host_device.h"

namespace dance {

// What a float is rounded to, as a code and as a float.
struct Rounded {
  uint32_t code;
  float value;
};

// A code is a sign, `exponent_bits` of exponent and `mantissa_bits` of mantissa; largest_code is that of the largest
// magnitude a finite value rounds to. No code for infinity or NaN is made. Comparisons are signed because AVX2 has no
// others.
template <uint32_t exponent_bits, uint32_t mantissa_bits, uint32_t largest_code>
struct MiniFloat {
  static constexpr uint32_t kLargestCode = largest_code;
  static constexpr uint32_t kSign = 1u << (exponent_bits + mantissa_bits);
  static constexpr uint32_t kBias = (1u << (exponent_bits - 1)) - 1;
  static constexpr uint32_t kDropped = 23 - mantissa_bits;
  // What the exponent of a float is larger by; the smallest normal number; the largest number: as bits of a float.
  static constexpr uint32_t kOffset = (127 - kBias) << 23;
  static constexpr uint32_t kNormal = (128 - kBias) << 23;
  static constexpr uint32_t kLargestBits = (largest_code << kDropped) + kOffset;
  // A power of two whose last mantissa bit is worth one unit of a subnormal number.
  static constexpr uint32_t kMagic = (151 - kBias - mantissa_bits) << 23;

  // Rounds to nearest, ties to even, saturating; keeps the sign of zero. Adding 2^(e + dropped bits) to a magnitude of
  // exponent e leaves the mantissa that is kept in the last bits of the sum.
  DANCE_HD static Rounded round(float value) {
    const uint32_t bits = float_bits(value), sign = bits & ~kMagnitudeMask;
    const int32_t whole = static_cast<int32_t>(bits & kMagnitudeMask);
    constexpr int32_t most = static_cast<int32_t>(kLargestBits), least = static_cast<int32_t>(kMagic);
    const int32_t size = whole < most ? whole : most;
    int32_t magic = (size & static_cast<int32_t>(kInfinityBits)) + static_cast<int32_t>(kDropped << 23);
    magic = magic > least ? magic : least;
    const float unit = bits_float(static_cast<uint32_t>(magic));
    const float sum = bits_float(static_cast<uint32_t>(size)) + unit;
    const uint32_t kept = float_bits(sum) - static_cast<uint32_t>(magic);
    const uint32_t code = kept + ((static_cast<uint32_t>(magic) >> kDropped) - (kMagic >> kDropped));
    return {code | sign >> (31 - exponent_bits - mantissa_bits), bits_float(float_bits(sum - unit) | sign)};
  }

  // The value of any code but one of infinity or NaN, exactly.
  DANCE_HD static float to_float(uint32_t code) {
    const uint32_t sign = (code & kSign) << (31 - exponent_bits - mantissa_bits);
    const uint32_t size = (code & (kSign - 1)) << kDropped;
    // 2^e (1 + m) - 2^e, so that no subnormal float is met.
    const uint32_t subnormal = float_bits(bits_float(size + kNormal) - bits_float(kNormal));
    const uint32_t bits = static_cast<int32_t>(size) < 1 << 23 ? subnormal : size + kOffset;
    return bits_float(bits | sign);
  }
};

using Binary16 = MiniFloat<5, 10, 0x7bff>;
using E4m3 = MiniFloat<4, 3, 0x7e>;  // 448
using E5m2 = MiniFloat<5, 2, 0x7b>;  // 57344
using E2m1 = MiniFloat<2, 1, 0x7>;   // 6

}  // namespace dance
