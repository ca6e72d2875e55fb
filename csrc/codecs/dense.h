// What a dense codec is, and where its codes and scales lie in a payload (docs/format.md).
//
// A dense codec sends one code of `bits` bits for every element. It is a struct with
//   id, name            its number in the wire header and its name in Python
//   bits                1, 2, 4, 8, 16 or 32
//   statistic           what one block is reduced to; Statistic::none means: no blocks, no scales
//   coder(stat, n)      from the statistic of a block of n elements to what encode needs, its `scale` included
//   encode(coder, v)    the code of v and the value that receivers will decode
//   decode(code, scale) the value of a code
// Drivers (csrc/cpu, cuda) loop over blocks and know nothing else about a codec.
#pragma once

#include "base/host_device.h"
#include "base/reduce.h"

namespace dance {

// A code and what it decodes to; one of the two is dropped by the compiler where it is not needed.
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
constexpr bool packs_words = Codec::bits < 8;

DANCE_HD uint64_t divide_up(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

// The number of 32-bit words that hold n sub-byte codes of one block.
template <class Codec>
DANCE_HD uint64_t words_of(uint64_t n) {
  return divide_up(n * Codec::bits, 32);
}

// Bytes of all codes, padded so that scales are aligned to 4.
template <class Codec>
DANCE_HD uint64_t codes_nbytes(uint64_t numel, uint64_t block) {
  if (packs_words<Codec>) return 4 * ((numel / block) * words_of<Codec>(block) + words_of<Codec>(numel % block));
  const uint64_t bytes = numel * (Codec::bits / 8);
  return has_scales<Codec> ? divide_up(bytes, 4) * 4 : bytes;
}

template <class Codec>
DANCE_HD uint64_t dense_nbytes(uint64_t numel, uint64_t block) {
  return codes_nbytes<Codec>(numel, block) + (has_scales<Codec> ? 4 * divide_up(numel, block) : 0);
}

// A scale from the wire is valid when it is finite and not negative.
DANCE_HD bool valid_scale(uint32_t bits) { return bits < kInfinityBits; }

}  // namespace dance
