// A warp as the kernels see it: 32 lanes in step, which exchange values and reduce them in the fixed shape of
// base/reduce.h; and what thread groups share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/reduce.h"

namespace dance::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

// The shared memory whose size the launch sets; tests/emulated_cuda has its own.
#if defined(__CUDACC__)
__device__ __forceinline__ uint8_t* dynamic_shared() {
  extern __shared__ uint4 dance_dynamic_shared[];
  return reinterpret_cast<uint8_t*>(dance_dynamic_shared);
}
#endif

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
  template <class T>
  __device__ __forceinline__ T shuffle_xor(T value, uint32_t mask) const {
    return __shfl_xor_sync(kAllLanes, value, static_cast<int>(mask));
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

  // The maximum over groups of `width` neighbouring lanes, a power of two, in every lane of the group.
  __device__ __forceinline__ uint32_t max_of(uint32_t value, uint32_t width) const {
    for (uint32_t half = width / 2; half > 0; half /= 2) {
      const uint32_t other = shuffle_xor(value, half);
      value = other > value ? other : value;
    }
    return value;
  }
  __device__ __forceinline__ uint32_t max(uint32_t value) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // on the emulated device, too
    return __reduce_max_sync(kAllLanes, value);
#else
    return max_of(value, kLanes);
#endif
  }
};

// Whether this thread group is the last of the grid to come here: what all others wrote before is then visible to it.
// `tickets` counts them and must be 0 before the kernel. Called by all threads.
__device__ __forceinline__ bool last_group(uint32_t* tickets) {
  __shared__ uint32_t ticket;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) ticket = atomicAdd(tickets, 1u);
  __syncthreads();
  __threadfence();
  return ticket == gridDim.x - 1;
}

// Lowers *lowest, the index of the first non-finite element; a null pointer means that nobody asks.
__device__ __forceinline__ void lower(int64_t* lowest, uint64_t index) {
  static_assert(sizeof(long long) == sizeof(int64_t), "atomicMin takes long long");
  const auto value = static_cast<long long>(index);
  // Looked at first, so that an array of NaN does not queue up at one address.
  if (lowest != nullptr && *static_cast<volatile int64_t*>(lowest) > value) {
    atomicMin(reinterpret_cast<long long*>(lowest), value);
  }
}

}  // namespace dance::cuda
