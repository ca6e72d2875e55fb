// The one macro that lets the same function run on the host and in a CUDA kernel, and the bit casts both need.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DANCE_HD __host__ __device__ __forceinline__
#else
#define DANCE_HD inline __attribute__((always_inline))
#endif

// Everything compiled once per CPU target lives in anonymous namespaces or is always inlined, so that the linker never
// sees two copies of one inline function built with different instructions (xsimd #1311, numpy #25274).
namespace dance {

DANCE_HD uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

DANCE_HD float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// Rounded to nearest even everywhere (IEEE 754 demands it of CPUs).
DANCE_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}

constexpr uint32_t kMagnitudeMask = 0x7fffffffu;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr float kLargest = 3.402823466e+38f;         // FLT_MAX
constexpr float kSmallestNormal = 1.175494351e-38f;  // FLT_MIN

// The magnitude of a float as an unsigned integer: it orders like |x|, its maximum is associative, and every value
// from kInfinityBits on is infinite or NaN.
DANCE_HD uint32_t magnitude(float value) { return float_bits(value) & kMagnitudeMask; }

DANCE_HD bool is_finite(float value) { return magnitude(value) < kInfinityBits; }

// Clamps to the finite range, by integers: gcc 12 makes four comparisons of selects between floats and constants. For
// numbers and infinities; what becomes of NaN may differ between machines.
DANCE_HD float saturate(float value) {
  const uint32_t bits = float_bits(value);
  const int32_t size = static_cast<int32_t>(bits & kMagnitudeMask), most = static_cast<int32_t>(kInfinityBits) - 1;
  return bits_float(static_cast<uint32_t>(size < most ? size : most) | (bits & ~kMagnitudeMask));
}

}  // namespace dance
