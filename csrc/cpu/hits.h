// Which elements of a group reach a magnitude, as bits. Compiled per CPU target.
#pragma once

#include "base/host_device.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dance::cpu {
namespace {

constexpr uint32_t kGroup = 64;

// Signed: SSE2 and AVX2 have no unsigned compare, and no magnitude uses the sign bit.
inline __attribute__((always_inline)) int32_t order(float value) { return static_cast<int32_t>(magnitude(value)); }

// Bit i is set where v[i] has a magnitude of at least `lowest` (as bits), 64 elements at once. Intrinsics because
// compilers do not turn comparisons into bits: collecting one element in 80 runs 1.7 (AVX2) and 2.4 times (AVX-512) as
// fast as with the loop below (benchmarks/hits.cpp).
inline __attribute__((always_inline)) uint64_t hits(const float* v, uint32_t lowest) {
  uint64_t mask = 0;
#if defined(__AVX512F__) && !defined(DANCE_PLAIN_LOOPS)
  const __m512i least = _mm512_set1_epi32(static_cast<int32_t>(lowest)), sign_off = _mm512_set1_epi32(kMagnitudeMask);
  for (uint32_t i = 0; i < kGroup; i += 16) {
    const __m512i size = _mm512_and_si512(_mm512_loadu_si512(v + i), sign_off);
    mask |= static_cast<uint64_t>(_mm512_cmpge_epi32_mask(size, least)) << i;
  }
#elif defined(__AVX2__) && !defined(DANCE_PLAIN_LOOPS)
  // There is no "at least"; below 0 nothing lies.
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(lowest) - 1);
  const __m256i sign_off = _mm256_set1_epi32(kMagnitudeMask);
  for (uint32_t i = 0; i < kGroup; i += 8) {
    const __m256i size = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i)), sign_off);
    const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(size, below)));
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(bits)) << i;
  }
#else
  uint8_t hit[kGroup];
  for (uint32_t i = 0; i < kGroup; ++i) hit[i] = order(v[i]) >= static_cast<int32_t>(lowest);
  for (uint32_t i = 0; i < kGroup; i += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, hit + i, 8);
    mask |= (bytes * 0x0102040810204080u >> 56) << i;  // eight bytes of 0 or 1 into the bits of the highest
  }
#endif
  return mask;
}

}  // namespace
}  // namespace dance::cpu
