// How one warp reads and writes a row: 256 neighbouring elements, eight a lane, as two runs of four.
//
// Lane l holds elements 4 l to 4 l + 3 of each half of the row, so that a warp's access is one run of 512 bytes (256 of
// a 16-bit type): whole lines, 16 bytes a lane, and four codes of a lane make one word. Striped elements (l, l + 32,
// ...) would need no exchange for sums and words, but four times as many instructions for the same lines, and stores of
// one byte for int8; what needs the striped order goes through shared memory, where neither order has many conflicts.
// An array has two such loads under way in each lane, four with a state: whether more would help is still to be
// measured.
#pragma once

#include "base/dtype.h"
#include "warp.h"

namespace dance::cuda {

constexpr uint32_t kRow = 256;
constexpr uint32_t kHalfRow = 128;
constexpr uint32_t kHeld = kRow / kLanes;
static_assert(kHeld == 8, "two runs of four");

// The place in the row of element t of those a lane holds.
__device__ __forceinline__ uint32_t place_of(uint32_t lane, uint32_t t) { return t / 4 * kHalfRow + 4 * lane + t % 4; }

// Whether runs of four elements that start at multiples of four may be accessed as a whole.
__device__ __forceinline__ bool is_wide(const void* array, Dtype dtype) {
  return reinterpret_cast<uintptr_t>(array) % (dtype == Dtype::float32 ? 16 : 8) == 0;
}

// Elements of a row as they lie in memory, two 16-bit ones in a word. They are converted only when all loads of a row
// are under way.
struct Raw {
  uint32_t word[kHeld];
};

// Elements [start, start + n) of the array, n <= 256; zeros behind them. `wide`: start is a multiple of 4 and is_wide.
__device__ __forceinline__ Raw load_raw(const Warp& warp, const void* array, Dtype dtype, uint64_t start, uint32_t n,
                                        bool wide) {
  Raw raw;
  if (dtype == Dtype::float32) {
    const uint32_t* from = static_cast<const uint32_t*>(array) + start;
    if (wide && n == kRow) {
      const uint4 low = reinterpret_cast<const uint4*>(from)[warp.lane];
      const uint4 high = reinterpret_cast<const uint4*>(from)[warp.lane + kLanes];
      return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    }
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      const uint32_t e = place_of(warp.lane, t);
      raw.word[t] = e < n ? from[e] : 0u;
    }
    return raw;
  }
  const uint16_t* from = static_cast<const uint16_t*>(array) + start;
  if (wide && n == kRow) {
    const uint2 low = reinterpret_cast<const uint2*>(from)[warp.lane];
    const uint2 high = reinterpret_cast<const uint2*>(from)[warp.lane + kLanes];
    return {{low.x, low.y, high.x, high.y, 0, 0, 0, 0}};
  }
#pragma unroll
  for (uint32_t t = 0; t < kHeld; t += 2) {
    const uint32_t e = place_of(warp.lane, t);
    const uint32_t even = e < n ? from[e] : 0u, odd = e + 1 < n ? from[e + 1] : 0u;
    raw.word[t / 2] = even | odd << 16;
    raw.word[t / 2 + 4] = 0;
  }
  return raw;
}

__device__ __forceinline__ void convert(const Raw& raw, Dtype dtype, float (&v)[kHeld]) {
#pragma unroll
  for (uint32_t t = 0; t < kHeld; ++t) {
    const uint32_t half = raw.word[t / 2] >> (16 * (t % 2)) & 0xffffu;
    if (dtype == Dtype::float32) {
      v[t] = bits_float(raw.word[t]);
    } else {
      v[t] = dtype == Dtype::float16 ? half_to_float(half) : bfloat_to_float(half);
    }
  }
}

__device__ __forceinline__ void load_row(const Warp& warp, const void* array, Dtype dtype, uint64_t start, uint32_t n,
                                         bool wide, float (&v)[kHeld]) {
  convert(load_raw(warp, array, dtype, start, n, wide), dtype, v);
}

// Writes those elements whose bit t of `chosen` is set.
__device__ __forceinline__ void store_row(const Warp& warp, void* array, Dtype dtype, uint64_t start, uint32_t n,
                                          bool wide, uint32_t chosen, const float (&v)[kHeld]) {
  const bool whole = wide && n == kRow;
  if (dtype == Dtype::float32) {
    float* to = static_cast<float*>(array) + start;
#pragma unroll
    for (uint32_t t = 0; t < kHeld; t += 4) {
      if (whole && (chosen >> t & 15u) == 15u) {
        reinterpret_cast<float4*>(to)[warp.lane + t / 4 * kLanes] = make_float4(v[t], v[t + 1], v[t + 2], v[t + 3]);
        continue;
      }
#pragma unroll
      for (uint32_t c = t; c < t + 4; ++c) {
        const uint32_t e = place_of(warp.lane, c);
        if (e < n && chosen >> c & 1u) to[e] = v[c];
      }
    }
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(array) + start;
#pragma unroll
  for (uint32_t t = 0; t < kHeld; t += 4) {
    uint32_t half[4];
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c) {
      half[c] = dtype == Dtype::float16 ? store_half(v[t + c]) : store_bfloat(v[t + c]);
    }
    if (whole && (chosen >> t & 15u) == 15u) {
      reinterpret_cast<uint2*>(to)[warp.lane + t / 4 * kLanes] =
          make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16);
      continue;
    }
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c) {
      const uint32_t e = place_of(warp.lane, t + c);
      if (e < n && chosen >> (t + c) & 1u) to[e] = static_cast<uint16_t>(half[c]);
    }
  }
}

// One element, for accesses that have no neighbours.
__device__ __forceinline__ float load_element(const void* array, Dtype dtype, uint64_t i) {
  if (dtype == Dtype::float32) return static_cast<const float*>(array)[i];
  const uint32_t half = static_cast<const uint16_t*>(array)[i];
  return dtype == Dtype::float16 ? half_to_float(half) : bfloat_to_float(half);
}

__device__ __forceinline__ void store_element(void* array, Dtype dtype, uint64_t i, float value) {
  if (dtype == Dtype::float32) {
    static_cast<float*>(array)[i] = value;
  } else {
    static_cast<uint16_t*>(array)[i] =
        static_cast<uint16_t>(dtype == Dtype::float16 ? store_half(value) : store_bfloat(value));
  }
}

}  // namespace dance::cuda
