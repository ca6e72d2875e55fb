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

inline bool all_finite(const float* values, uint32_t n) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t size = magnitude(values[i]);
    largest = size > largest ? size : largest;
  }
  return largest < kInfinityBits;
}

// float16 by the instructions of F16C and AVX-512, with the bits of base/half.h as long as all is finite (they would
// make a NaN quiet) and nothing becomes infinite. In cache 1.5 to 3.5 times as fast (benchmarks/halves.cpp).
#if defined(__F16C__) && !defined(DANCE_PLAIN_LOOPS)
constexpr bool kHasHalves = true;

// A vector of float32, and as many float16.
// NOLINTBEGIN(portability-simd-intrinsics): beside F16C, which has no portable form
#if defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr uint32_t kVectorHalves = 16;
using Halves = __m256i;
inline Halves load_halves(const uint16_t* from) { return _mm256_loadu_si256(reinterpret_cast<const Halves*>(from)); }
inline void store_halves(uint16_t* to, Halves halves) { _mm256_storeu_si256(reinterpret_cast<Halves*>(to), halves); }
inline Halves max_halves(Halves a, Halves b) { return _mm256_max_epu16(a, b); }
inline Halves size_of(Halves halves) { return _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff)); }
inline void widen(Halves halves, float* to, float weight) {
  _mm512_storeu_ps(to, _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(weight)));
}
template <bool clamped>
inline Halves narrow(const float* from) {
  __m512 values = _mm512_loadu_ps(from);
  if (clamped) values = _mm512_max_ps(_mm512_min_ps(values, _mm512_set1_ps(65504.0f)), _mm512_set1_ps(-65504.0f));
  return _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
}
#else
constexpr uint32_t kVectorHalves = 8;
using Halves = __m128i;
inline Halves load_halves(const uint16_t* from) { return _mm_loadu_si128(reinterpret_cast<const Halves*>(from)); }
inline void store_halves(uint16_t* to, Halves halves) { _mm_storeu_si128(reinterpret_cast<Halves*>(to), halves); }
inline Halves max_halves(Halves a, Halves b) { return _mm_max_epu16(a, b); }
inline Halves size_of(Halves halves) { return _mm_and_si128(halves, _mm_set1_epi16(0x7fff)); }
inline void widen(Halves halves, float* to, float weight) {
  _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(weight)));
}
template <bool clamped>
inline Halves narrow(const float* from) {
  __m256 values = _mm256_loadu_ps(from);
  if (clamped) values = _mm256_max_ps(_mm256_min_ps(values, _mm256_set1_ps(65504.0f)), _mm256_set1_ps(-65504.0f));
  return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
}
#endif
// NOLINTEND(portability-simd-intrinsics)

inline uint32_t largest_of(Halves sizes) {
  alignas(Halves) uint16_t lane[kVectorHalves];
  store_halves(lane, sizes);
  uint16_t largest = 0;
  for (const uint16_t size : lane) largest = size > largest ? size : largest;
  return largest;
}

// to = weight * from; false where something is not finite, and `to` is to be written anew.
inline bool widen_halves(const uint16_t* __restrict from, float* __restrict to, uint32_t n, float weight) {
  Halves sizes{};
  uint32_t i = 0, infinite = 0;
  for (; i + kVectorHalves <= n; i += kVectorHalves) {
    const Halves halves = load_halves(from + i);
    sizes = max_halves(sizes, size_of(halves));
    widen(halves, to + i, weight);
  }
  for (; i < n; ++i) {
    infinite |= (from[i] & 0x7fff) < 0x7c00 ? 0 : 1;
    to[i] = weight * half_to_float(from[i]);
  }
  return infinite == 0 && largest_of(sizes) < 0x7c00;
}

template <bool clamped>
inline Halves narrow_all(const float* __restrict from, uint16_t* __restrict to, uint32_t n) {
  Halves sizes{};
  uint32_t i = 0;
  for (; i + kVectorHalves <= n; i += kVectorHalves) {
    const Halves halves = narrow<clamped>(from + i);
    sizes = max_halves(sizes, size_of(halves));
    store_halves(to + i, halves);
  }
  for (; i < n; ++i) to[i] = static_cast<uint16_t>(float_to_half(from[i]));
  return sizes;
}

// Saturates; false where something is not finite, and `to` is to be written anew.
inline bool narrow_halves(const float* __restrict from, uint16_t* __restrict to, uint32_t n) {
  const uint32_t rest = n % kVectorHalves;
  if (largest_of(narrow_all<false>(from, to, n)) < 0x7c00 && all_finite(from + (n - rest), rest)) return true;
  if (!all_finite(from, n)) return false;
  narrow_all<true>(from, to, n);
  return true;
}
#else
constexpr bool kHasHalves = false;
inline bool widen_halves(const uint16_t*, float*, uint32_t, float) { return false; }
inline bool narrow_halves(const float* __restrict from, uint16_t* __restrict to, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(float_to_half(from[i]));
  return all_finite(from, n);
}
#endif

// to = bfloat16 of `from`; false where something is not finite or would be rounded to infinity, and `to` is to be
// written anew.
inline bool narrow_bfloats(const float* __restrict from, uint16_t* __restrict to, uint32_t n) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t size = magnitude(from[i]);
    largest = size > largest ? size : largest;
    to[i] = static_cast<uint16_t>(float_to_bfloat_below(from[i]));
  }
  return largest < kBfloatOverflow;
}

template <Dtype dtype>
__attribute__((noinline)) void load_as(const void* array, uint64_t at, float* __restrict out, uint32_t n) {
  const auto* __restrict from = static_cast<const typename Element<dtype>::Type*>(array) + at;
  if constexpr (dtype == Dtype::float16 && kHasHalves) {
    if (widen_halves(from, out, n, 1.0f)) return;
  }
  for (uint32_t i = 0; i < n; ++i) out[i] = Element<dtype>::load(from[i]);
}

template <Dtype dtype>
__attribute__((noinline)) void store_as(const float* __restrict values, void* array, uint64_t at, uint32_t n) {
  auto* __restrict to = static_cast<typename Element<dtype>::Type*>(array) + at;
  if (dtype == Dtype::bfloat16 ? narrow_bfloats(values, to, n) : narrow_halves(values, to, n)) return;
  for (uint32_t i = 0; i < n; ++i) to[i] = Element<dtype>::store(values[i]);
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
