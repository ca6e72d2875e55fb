// The noise of base/random.h for many elements at a time. Included by kernels.cpp alone, once for each CPU target.
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

// The blocks of Philox that lie one after another in memory are counted so that interleaving two vectors within 128
// bits gives their order.
#if defined(__AVX512F__)
constexpr Wide kCounters = {0, 4, 1, 5, 2, 6, 3, 7};
#define DANCE_INTERLEAVE_LOW 0, 8, 2, 10, 4, 12, 6, 14
#define DANCE_INTERLEAVE_HIGH 1, 9, 3, 11, 5, 13, 7, 15
#elif defined(__AVX2__)
constexpr Wide kCounters = {0, 2, 1, 3};
#define DANCE_INTERLEAVE_LOW 0, 4, 2, 6
#define DANCE_INTERLEAVE_HIGH 1, 5, 3, 7
#else
constexpr Wide kCounters = {0, 1};
#define DANCE_INTERLEAVE_LOW 0, 2
#define DANCE_INTERLEAVE_HIGH 1, 3
#endif

constexpr uint32_t kNoiseSize = kMaxBlock + 16 * kWideLanes;

// Writes the noise of elements [start, start + n), n <= kMaxBlock, to the returned place inside `buffer` of kNoiseSize.
__attribute__((noinline)) const uint16_t* fill_noise(uint64_t seed, uint64_t start, uint16_t* buffer, uint32_t n) {
  const uint64_t first = start >> 3, last = (start + n + 7) >> 3;
  uint16_t* out = buffer;
  for (uint64_t counter = first; counter < last; counter += kWideLanes, out += 8 * kWideLanes) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    Wide c0 = kCounters + counter, c1 = c0 >> 32, c2 = {}, c3 = {};
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
      const Wide p0 = multiply(c0, 0xD2511F53u), p1 = multiply(c2, 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const Wide front = (c0 & 0xffffffffu) | c1 << 32, back = (c2 & 0xffffffffu) | c3 << 32;
    const Wide low = __builtin_shufflevector(front, back, DANCE_INTERLEAVE_LOW);
    const Wide high = __builtin_shufflevector(front, back, DANCE_INTERLEAVE_HIGH);
    std::memcpy(out, &low, sizeof low);
    std::memcpy(out + 4 * kWideLanes, &high, sizeof high);
  }
  return buffer + (start & 7);
}

}  // namespace
}  // namespace dance::cpu
