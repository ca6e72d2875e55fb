// What a dense codec is, and where its codes and scales lie in a payload (docs/format.md).
//
// A dense codec sends one code of `bits` bits for every element. It is a struct with:
//
// - id, mode, name: its number in the wire header, which of the kernels of that codec it is, its name in Python
// - bits: 1, 2, 4, 8, 16 or 32
// - kVariableBits: whether its codes of 8 bits are cut down to job.bits; drivers extend their sign to 8 bits before
//   decode and valid
// - statistic: what one block is reduced to; Statistic::none means no blocks, no scales
// - Scale: float, or uint8_t: the biased exponent of a power of two (E8M0)
// - kStochastic: whether encode uses its noise
// - kFixedBlock: the only block it has (32 for mx*), or 0: any of kMinBlock to kMaxBlock
// - coder(stat, n, levels): from the statistic of a block of n elements to what encode needs, its `scale` (a Scale)
//   included; `levels` is the spec's, and only qsgd looks at it
// - encode(coder, v, noise): the code of v and the value that receivers will decode; noise is 16 random bits
// - decode(code, scale): the value of a code, scale as float (scale_value)
// - valid(code, levels): whether an encoder makes this code
// - largest_scale(levels): no encoder makes a larger one (float bits, or the E8M0 byte), so code * scale stays finite
//
// Drivers (csrc/cpu, cuda) loop over blocks and know nothing else about a codec.
#pragma once

#include "base/host_device.h"
#include "base/reduce.h"

namespace dance {

// A code and what it decodes to; one of the two is dropped by the compiler where it is not needed. Bits of the code
// above `bits` are not zero for every codec: drivers mask them.
struct Coded {
  uint32_t code;
  float decoded;
};

constexpr uint32_t kMinBlock = 32;
constexpr uint32_t kMaxBlock = 4096;
constexpr uint32_t kDefaultBlock = 256;
// Codecs without scales are driven in chunks of this many elements.
constexpr uint32_t kChunk = 1024;

template <class Codec>
constexpr bool has_scales = Codec::statistic != Statistic::none;

template <class Codec>
constexpr bool packs_words = Codec::bits < 8 || Codec::kVariableBits;

// The integer a code of whole bytes is stored as, and one that holds any other code.
template <uint32_t bits>
struct CodeType {
  using Type = uint8_t;
};
template <>
struct CodeType<16> {
  using Type = uint16_t;
};
template <>
struct CodeType<32> {
  using Type = uint32_t;
};

DANCE_HD uint64_t divide_up(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

// The 32-bit words that hold n codes of one block, cut into fields of 4, 2 and 1 bits (those that `bits` is the sum
// of; from the high field to the low one). A field of f bits takes ceil(n f / 32) words of its own.
DANCE_HD uint64_t words_of(uint64_t n, uint32_t bits) {
  uint64_t words = 0;
  for (uint32_t field = 4; field > 0; field /= 2) words += bits & field ? divide_up(n * field, 32) : 0;
  return words;
}

// Bytes of all codes, padded so that scales are aligned to 4. `bits` is Codec::bits, or the spec's where it varies.
template <class Codec>
DANCE_HD uint64_t codes_nbytes(uint64_t numel, uint64_t block, uint32_t bits) {
  if (packs_words<Codec> && bits < 8)
    return 4 * (numel / block * words_of(block, bits) + words_of(numel % block, bits));
  const uint64_t bytes = numel * (bits / 8);
  return has_scales<Codec> ? divide_up(bytes, 4) * 4 : bytes;
}

// All codes of all blocks, then all scales; the payload ends where they end.
template <class Codec>
DANCE_HD uint64_t dense_nbytes(uint64_t numel, uint64_t block, uint32_t bits) {
  return codes_nbytes<Codec>(numel, block, bits) +
         (has_scales<Codec> ? sizeof(typename Codec::Scale) * divide_up(numel, block) : 0);
}

// The bits of a code that tells `levels` values apart: 2 to 8 for 3 to 255.
DANCE_HD uint32_t bits_of_levels(uint32_t levels) {
  uint32_t bits = 2;
  while ((1u << bits) < levels) ++bits;
  return bits;
}

DANCE_HD float scale_value(float scale) { return scale; }
DANCE_HD float scale_value(uint8_t exponent) {
  return exponent == 0 ? 0.0f : bits_float(static_cast<uint32_t>(exponent) << 23);
}

// The scale of codes up to `largest` for a block whose largest magnitude is m (any finite number), and its inverse.
struct Fit {
  float scale;
  float inverse;
};
DANCE_HD Fit fit(float m, float largest) {
  float scale = m / largest;
  // At FLT_MAX the rounded scale times `largest` can overflow.
  scale = scale * largest <= kLargest ? scale : bits_float(float_bits(scale) - 1);
  // A subnormal scale has too few bits to be worth sending, and its inverse could overflow: the block is sent as zeros.
  const bool usable = scale >= kSmallestNormal;
  return {usable ? scale : 0.0f, usable ? largest / m : 0.0f};
}

// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits of the sum.
constexpr float kRoundMagic = 12582912.0f;

DANCE_HD float clamp(float value, float bound) {
  value = value < bound ? value : bound;
  return value > -bound ? value : -bound;
}

}  // namespace dance
