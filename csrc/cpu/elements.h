// Elements on their way between arrays and the float32 math: conversion of 16-bit types and noise, block by block in
// L1. Included by kernels.cpp alone, once for each CPU target.
#pragma once

#include "base/dtype.h"
#include "base/random.h"
#include "codecs/fp16.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace dance::cpu {
namespace {

inline bool all_finite(const uint16_t* halves, uint32_t n) {
  uint16_t largest = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint16_t size = halves[i] & 0x7fff;
    largest = size > largest ? size : largest;
  }
  return largest < 0x7c00;
}

inline bool all_finite(const float* values, uint32_t n) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t size = magnitude(values[i]);
    largest = size > largest ? size : largest;
  }
  return largest < kInfinityBits;
}

// float16 by the instructions of F16C, for finite values: 1.3 to 3.2 times as fast as the integer arithmetic of
// base/half.h, with the same bits (benchmarks/halves.cpp). They would make a NaN quiet.
#if defined(__F16C__) && !defined(DANCE_PLAIN_LOOPS)
constexpr bool kHasHalves = true;

inline void widen_halves(const uint16_t* __restrict from, float* __restrict to, uint32_t n) {
  uint32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  for (; i < n; ++i) to[i] = half_to_float(from[i]);
}

inline void narrow_halves(const float* __restrict from, uint16_t* __restrict to, uint32_t n) {
  const __m256 most = _mm256_set1_ps(65504.0f), least = _mm256_set1_ps(-65504.0f);
  uint32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    // NOLINTNEXTLINE(portability-simd-intrinsics): beside F16C, which has no portable form
    const __m256 held = _mm256_max_ps(_mm256_min_ps(_mm256_loadu_ps(from + i), most), least);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(held, _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < n; ++i) to[i] = static_cast<uint16_t>(float_to_half(from[i]));
}
#else
constexpr bool kHasHalves = false;
inline void widen_halves(const uint16_t*, float*, uint32_t) {}
inline void narrow_halves(const float*, uint16_t*, uint32_t) {}
#endif

template <Dtype dtype>
__attribute__((noinline)) void load_as(const void* array, uint64_t at, float* __restrict out, uint32_t n) {
  const auto* __restrict from = static_cast<const typename Element<dtype>::Type*>(array) + at;
  if (dtype == Dtype::float16 && kHasHalves && all_finite(from, n)) return widen_halves(from, out, n);
  for (uint32_t i = 0; i < n; ++i) out[i] = Element<dtype>::load(from[i]);
}

template <Dtype dtype>
__attribute__((noinline)) void store_as(const float* __restrict values, void* array, uint64_t at, uint32_t n) {
  auto* __restrict to = static_cast<typename Element<dtype>::Type*>(array) + at;
  if (!all_finite(values, n)) {
    for (uint32_t i = 0; i < n; ++i) to[i] = Element<dtype>::store(values[i]);
  } else if (dtype == Dtype::bfloat16) {
    for (uint32_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(float_to_bfloat(values[i]));
  } else if (kHasHalves) {
    narrow_halves(values, to, n);
  } else {
    for (uint32_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(float_to_half(values[i]));
  }
}

// n elements from `at` on as float32: where they lie, or converted into buffer.
inline const float* load_elements(const void* array, Dtype dtype, uint64_t at, float* buffer, uint32_t n) {
  if (dtype == Dtype::float32) return static_cast<const float*>(array) + at;
  if (dtype == Dtype::float16) {
    load_as<Dtype::float16>(array, at, buffer, n);
  } else {
    load_as<Dtype::bfloat16>(array, at, buffer, n);
  }
  return buffer;
}

// The counterpart: nothing to do for float32, whose elements were written in place.
inline void store_elements(const float* buffer, void* array, Dtype dtype, uint64_t at, uint32_t n) {
  if (dtype == Dtype::float16) store_as<Dtype::float16>(buffer, array, at, n);
  if (dtype == Dtype::bfloat16) store_as<Dtype::bfloat16>(buffer, array, at, n);
}

// Whether a codec's codes are float16 numbers that instructions convert.
template <class Codec>
constexpr bool sends_halves = kHasHalves && Codec::id == Fp16::id;

// Blocks whose loops have trip counts known at compile time.
template <class Codec>
constexpr uint32_t fixed_block = !has_scales<Codec>       ? kChunk
                                 : Codec::kFixedBlock > 0 ? Codec::kFixedBlock
                                                          : kDefaultBlock;

// Elements that are taken at a time where the block is fixed_block: enough blocks to hide the latency of one behind the
// work on others, few enough for L1.
constexpr uint32_t kGroup = 2048;

// How an array is cut.
struct Blocks {
  uint64_t numel;
  uint32_t block;

  uint64_t num_full() const { return numel / block; }
  uint32_t size(uint64_t b) const {
    const uint64_t left = numel - b * block;
    return left < block ? static_cast<uint32_t>(left) : block;
  }
  // How many of the full blocks from b on, before `last`, make a group.
  uint64_t group(uint64_t b, uint64_t last, uint64_t most) const {
    const uint64_t left = (last < num_full() ? last : num_full()) - b;
    return left < most ? left : most;
  }
};

}  // namespace
}  // namespace dance::cpu
