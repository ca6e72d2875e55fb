// A warp as the kernels see it: 32 lanes in step, which exchange values and reduce them in the fixed shape of
// base/reduce.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/reduce.h"

namespace dance::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

// Every function is called by all lanes of the warp together.
struct Warp {
  uint32_t lane;

  __device__ __forceinline__ Warp() : lane(threadIdx.x % kLanes) {}

  // This warp's number in the grid, and how many there are: the stride of a loop over blocks.
  static __device__ __forceinline__ uint64_t first() {
    return uint64_t{blockIdx.x} * (blockDim.x / kLanes) + threadIdx.x / kLanes;
  }
  static __device__ __forceinline__ uint64_t stride() { return uint64_t{gridDim.x} * (blockDim.x / kLanes); }

  template <class T>
  __device__ __forceinline__ T shuffle(T value, uint32_t source) const {
    return __shfl_sync(kAllLanes, value, static_cast<int>(source));
  }
  template <class T>
  __device__ __forceinline__ T shuffle_down(T value, uint32_t distance) const {
    return __shfl_down_sync(kAllLanes, value, distance);
  }
  template <class T>
  __device__ __forceinline__ T shuffle_up(T value, uint32_t distance) const {
    return __shfl_up_sync(kAllLanes, value, distance);
  }
  __device__ __forceinline__ uint32_t ballot(bool vote) const { return __ballot_sync(kAllLanes, vote); }
  __device__ __forceinline__ void sync() const { __syncwarp(); }

  // The sum over all lanes, in every lane: lane l adds lane l + half for half = 16, 8, 4, 2, 1.
  template <class T>
  __device__ __forceinline__ T sum(T value) const {
#pragma unroll
    for (uint32_t half = kLanes / 2; half > 0; half /= 2) value += shuffle_down(value, half);
    return shuffle(value, 0);
  }

  // The sum over this lane and those before it. Integers only: its shape is another.
  template <class T>
  __device__ __forceinline__ T prefix_sum(T value) const {
#pragma unroll
    for (uint32_t distance = 1; distance < kLanes; distance *= 2) {
      const T other = shuffle_up(value, distance);
      value += lane >= distance ? other : T{0};
    }
    return value;
  }

  __device__ __forceinline__ uint32_t max(uint32_t value) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(kAllLanes, value);
#else
#pragma unroll
    for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
      const uint32_t other = shuffle_down(value, half);
      value = other > value ? other : value;
    }
    return shuffle(value, 0);
#endif
  }
};

// Lowers *lowest, the index of the first non-finite element; a null pointer means that nobody asks.
__device__ __forceinline__ void lower(int64_t* lowest, uint64_t index) {
  static_assert(sizeof(long long) == sizeof(int64_t), "atomicMin takes long long");
  if (lowest != nullptr) atomicMin(reinterpret_cast<long long*>(lowest), static_cast<long long>(index));
}

}  // namespace dance::cuda
