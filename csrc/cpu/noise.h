// The noise of base/random.h for many elements at a time. Compiled per CPU target.
#pragma once

#include "base/random.h"
#include "codecs/dense.h"

namespace dance::cpu {
namespace {

#if defined(__AVX512F__)
constexpr uint32_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr uint32_t kVectorBytes = 32;
#else
constexpr uint32_t kVectorBytes = 16;
#endif

// One Philox block a lane. Each lane holds a word of 32 bits in its low half; what is in the high half does not matter.
typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));
constexpr uint32_t kWideLanes = kVectorBytes / 8;

inline __attribute__((always_inline)) Wide multiply(Wide words, uint32_t factor) {
#if defined(__AVX2__) && !defined(__AVX512DQ__) && !defined(__clang__)
  // gcc 12 makes three multiplications of the plain product below: 4 times slower (benchmarks/philox.cpp).
  typedef int Narrow __attribute__((vector_size(kVectorBytes)));
  const Wide factors = Wide{} + factor;
  return (Wide)__builtin_ia32_pmuludq256((Narrow)words, (Narrow)factors);
#else
  return (words & 0xffffffffu) * factor;
#endif
}

// The same bits as 32-bit lanes; floats, because gcc 12 knows the shuffles below for them alone. No arithmetic is done.
typedef float Words __attribute__((vector_size(kVectorBytes)));

// Every other word of two vectors, within each 128 bits: joins the words of the Philox blocks, which are counted so
// that those of the even lanes come before those of the odd ones.
#if defined(__AVX512F__)
constexpr Wide kCounters = {0, 4, 1, 5, 2, 6, 3, 7};
#define DANCE_EVEN 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30
#define DANCE_ODD 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31
#elif defined(__AVX2__)
constexpr Wide kCounters = {0, 2, 1, 3};
#define DANCE_EVEN 0, 2, 8, 10, 4, 6, 12, 14
#define DANCE_ODD 1, 3, 9, 11, 5, 7, 13, 15
#else
constexpr Wide kCounters = {0, 1};
#define DANCE_EVEN 0, 2, 4, 6
#define DANCE_ODD 1, 3, 5, 7
#endif

constexpr uint32_t kNoiseSize = kMaxBlock + 16 * kWideLanes;

// Writes the noise of elements [start, start + n), n <= kMaxBlock, to the returned place inside `buffer` of kNoiseSize.
// The first three rounds of base/random.h are written out: two words of the counter are zero, and its high word is the
// same for 2^32 blocks, so that a third of their work falls away or is done once.
__attribute__((noinline)) const uint16_t* fill_noise(uint64_t seed, uint64_t start, uint16_t* buffer, uint32_t n) {
  constexpr uint32_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u;
  uint32_t k0[7], k1[7];
  for (uint32_t round = 0; round < 7; ++round) {
    k0[round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
    k1[round] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
  }
  // From a whole vector on, so that the high word changes between vectors alone.
  const uint64_t first = (start >> 3) / kWideLanes * kWideLanes, last = (start + n + 7) >> 3;
  uint16_t* out = buffer;
  for (uint64_t counter = first, end; counter < last; counter = end) {
    const uint64_t high = counter >> 32, behind = (high + 1) << 32;
    end = last < behind ? last : behind;
    const uint64_t second = uint64_t{kFactor0} * (static_cast<uint32_t>(high) ^ k0[0]);
    const uint32_t second_high = static_cast<uint32_t>(second >> 32) ^ k1[1];
    const uint32_t second_low = static_cast<uint32_t>(second) ^ k1[2];
    Wide counters = kCounters + counter;
    for (; counter < end; counter += kWideLanes, counters += kWideLanes, out += 8 * kWideLanes) {
      Wide p0 = multiply(counters, kFactor0), p1 = multiply((p0 >> 32) ^ k1[0], kFactor1);
      Wide c0 = (p1 >> 32) ^ k0[1], c1 = p1, c2 = p0 ^ second_high;
      p0 = multiply(c0, kFactor0);
      p1 = multiply(c2, kFactor1);
      c0 = (p1 >> 32) ^ c1 ^ k0[2];
      c2 = (p0 >> 32) ^ second_low;
      c1 = p1;
      Wide c3 = p0;
#pragma GCC unroll 4
      for (int round = 3; round < 7; ++round) {
        p0 = multiply(c0, kFactor0);
        p1 = multiply(c2, kFactor1);
        c0 = (p1 >> 32) ^ c1 ^ k0[round];
        c2 = (p0 >> 32) ^ c3 ^ k1[round];
        c1 = p1;
        c3 = p0;
      }
      const Words front = __builtin_shufflevector((Words)c0, (Words)c1, DANCE_EVEN);
      const Words back = __builtin_shufflevector((Words)c2, (Words)c3, DANCE_EVEN);
      const Words even = __builtin_shufflevector(front, back, DANCE_EVEN);
      const Words odd = __builtin_shufflevector(front, back, DANCE_ODD);
      std::memcpy(out, &even, sizeof even);
      std::memcpy(out + 4 * kWideLanes, &odd, sizeof odd);
    }
  }
  return buffer + (start - 8 * first);
}

}  // namespace
}  // namespace dance::cpu
