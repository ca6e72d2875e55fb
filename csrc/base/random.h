// Noise as a pure function of (seed, index): Philox4x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1,
// 2, 3"), the same bits on every machine and in any order.
#pragma once

#include "base/host_device.h"

namespace dance {

struct Random4 {
  uint32_t word[4];
};

// Block `counter` of the stream of `seed`: key = seed, counter words (low, high, 0, 0).
DANCE_HD Random4 philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// 16 random bits for element i: half i % 2 of word i % 8 / 2 of block i / 8.
DANCE_HD uint32_t noise16(uint64_t seed, uint64_t i) {
  const uint32_t word = philox(seed, i >> 3).word[i >> 1 & 3];
  return i & 1 ? word >> 16 : word & 0xffffu;
}

// 32 random bits for index i: word i % 4 of block i / 4.
DANCE_HD uint64_t random_word(uint64_t seed, uint64_t i) { return philox(seed, i >> 2).word[i & 3]; }

// 16 random bits as a number in (-1/2, 1/2), symmetric about 0: added before rounding to nearest it rounds at random.
// It is (noise - 32767.5) / 2^16, exactly; made from the bits of 1 + noise / 2^16, which is cheaper than a conversion.
DANCE_HD float dither(uint32_t noise) { return bits_float(0x3f800000u | noise << 7) - 1.49999237060546875f; }

}  // namespace dance
