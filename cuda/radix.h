// Radix select within a thread group: the r-th largest of keys of 31 bits, by digits of 11, 11 and 9 bits.
#pragma once

#include "warp.h"

namespace dance::cuda {

constexpr uint32_t kBins = 2048;
constexpr uint32_t kNumDigits = 3;
// No key: it shares no digit with any.
constexpr uint32_t kNoKey = 0xffffffffu;

struct Digit {
  uint32_t shift, bits;

  __device__ __forceinline__ explicit Digit(uint32_t number)
      : shift(number == 0   ? 20
              : number == 1 ? 9
                            : 0),
        bits(number < 2 ? 11 : 9) {}
  // Whether a key shares the digits before this one, and its bin.
  __device__ __forceinline__ bool counts(uint32_t key, uint32_t found) const {
    return key >> (shift + bits) == found >> (shift + bits);
  }
  __device__ __forceinline__ uint32_t bin(uint32_t key) const { return key >> shift & ((1u << bits) - 1u); }
};

// Called by all threads of the group: the sum over the threads before this one and, in *total, over all. Sums of packed
// halves work as long as none overflows.
__device__ __forceinline__ uint32_t group_prefix(const Warp& warp, uint32_t value, uint32_t* total) {
  __shared__ uint32_t totals[kLanes];
  const uint32_t own = threadIdx.x / kLanes, num_warps = blockDim.x / kLanes;
  const uint32_t prefix = warp.prefix_sum(value);
  __syncthreads();  // all have read the totals of the call before
  if (warp.lane == kLanes - 1) totals[own] = prefix;
  __syncthreads();
  uint32_t before = prefix - value;
  *total = 0;
  for (uint32_t w = 0; w < num_warps; ++w) {
    before += w < own ? totals[w] : 0;
    *total += totals[w];
  }
  return before;
}

// Called by all threads of the group: the bin that holds the want-th key from the top, and which of its keys that is.
__device__ __forceinline__ void pick_bin(const Warp& warp, const uint32_t* bins, uint32_t want, uint32_t* bin,
                                         uint32_t* remaining) {
  __shared__ uint32_t found[2];
  // Thread 0 has the highest bins, so that those before a thread are those above it.
  const uint32_t each = kBins / blockDim.x, top = kBins - threadIdx.x * each;
  uint32_t mine = 0, total;
  for (uint32_t j = 1; j <= each; ++j) mine += bins[top - j];
  uint32_t above = group_prefix(warp, mine, &total);
  if (above < want && above + mine >= want) {
    uint32_t b = top - 1;
    while (above + bins[b] < want) above += bins[b--];
    found[0] = b;
    found[1] = want - above;
  }
  __syncthreads();
  *bin = found[0];
  *remaining = found[1];
}

// Called by all threads of the group, each with `depth` keys: the rank-th largest of all, and how many of those that
// equal it are among the `rank` largest.
template <uint32_t depth>
__device__ __forceinline__ void nth_key(const Warp& warp, const uint32_t (&key)[depth], uint32_t rank, uint32_t* nth,
                                        uint32_t* ties) {
  __shared__ uint32_t bins[kBins];
  uint32_t found = 0;
  for (uint32_t number = 0; number < kNumDigits; ++number) {
    const Digit digit(number);
    for (uint32_t b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = 0;
    __syncthreads();
#pragma unroll
    for (uint32_t t = 0; t < depth; ++t) {
      if (digit.counts(key[t], found)) atomicAdd(&bins[digit.bin(key[t])], 1u);
    }
    __syncthreads();
    uint32_t bin;
    pick_bin(warp, bins, rank, &bin, &rank);
    found |= bin << digit.shift;
    __syncthreads();
  }
  *nth = found;
  *ties = rank;
}

}  // namespace dance::cuda
