// A GPU in one host thread: as much of the CUDA language and runtime as cuda/*.cu use, so that the kernels run,
// unchanged, where there is no GPU. It stands in for the toolkit's header of this name.
//
// Every CUDA thread of a thread group is a fibre with its own stack. A fibre runs until it meets a barrier (a warp
// function or
// __syncthreads) that others have not reached. The order in which fibres run differs from launch to launch: a kernel
// that relies on an order gives wrong bits, and one whose threads do not all reach a barrier is reported. Launches use
// at most max_grid thread groups, so that every loop over blocks takes more than one turn.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __CUDA_ARCH_LIST__ 0

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// As aligned as on a GPU: the sanitizer that the test is built with reports an access that is not.
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulated {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackSize = 128 << 10;

// A barrier of some threads. A thread is at most one barrier ahead of another, so two sets of slots are enough.
struct Barrier {
  unsigned size = 0, arrived = 0;
  uint64_t turn = 0;
  uint64_t slots[2][kLanes] = {};
  int operation[2] = {0, 0};
};

struct Fibre {
  ucontext_t context;  // where it starts; from then on it is suspended and resumed by jumps, which make no system call
  jmp_buf here;
  bool started = false;
  std::unique_ptr<char[]> stack;
  unsigned index = 0;
  bool finished = false;
};

struct Device {
  unsigned max_grid = 3;
  uint64_t order = 1;  // of the fibres, from launch to launch
  std::vector<Fibre> fibres;
  std::vector<Barrier> warps;
  Barrier group;
  std::vector<uint4> shared;  // of the size a launch asks for, between guards
  ucontext_t start;
  jmp_buf scheduler;
  Fibre* running = nullptr;
  bool progress = false;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
};

inline Device device;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline void suspend() {
  if (_setjmp(device.running->here) == 0) _longjmp(device.scheduler, 1);
}

inline void resume(Fibre& fibre) {
  device.running = &fibre;
  threadIdx = dim3(fibre.index);
  if (_setjmp(device.scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.here, 1);
  fibre.started = true;
  swapcontext(&device.start, &fibre.context);
}

// Waits until all threads of the barrier are here; returns which of its two sets of slots this turn used.
inline unsigned arrive(Barrier& barrier, int operation, unsigned place, uint64_t value) {
  const uint64_t turn = barrier.turn;
  const unsigned set = turn % 2;
  if (barrier.arrived == 0) barrier.operation[set] = operation;
  if (barrier.operation[set] != operation) fail("threads of one warp or group wait at different barriers");
  if (place < kLanes) barrier.slots[set][place] = value;
  device.progress = true;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.turn;
  }
  while (barrier.turn == turn) suspend();
  return set;
}

inline unsigned lane() { return device.running->index % kLanes; }

inline const uint64_t* exchange(int operation, uint64_t value) {
  Barrier& warp = device.warps[device.running->index / kLanes];
  return warp.slots[arrive(warp, operation, lane(), value)];
}

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8, "warp functions take at most 8 bytes");
  uint64_t packed = 0;
  std::memcpy(&packed, &value, sizeof value);
  return packed;
}

template <class T>
T unpack(uint64_t packed) {
  T value;
  std::memcpy(&value, &packed, sizeof value);
  return value;
}

inline void enter() {
  device.body(device.arguments);
  device.running->finished = true;
  device.progress = true;
  suspend();
}

inline void run_group(unsigned num_threads) {
  device.fibres.resize(num_threads);
  device.warps.assign(num_threads / kLanes, Barrier{});
  for (Barrier& warp : device.warps) warp.size = kLanes;
  device.group = Barrier{};
  device.group.size = num_threads;
  for (unsigned t = 0; t < num_threads; ++t) {
    Fibre& fibre = device.fibres[t];
    fibre.index = t;
    fibre.started = fibre.finished = false;
    if (!fibre.stack) fibre.stack.reset(new char[kStackSize]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStackSize;
    makecontext(&fibre.context, enter, 0);
  }
  // An odd stride visits every member of a power of two once: another permutation for every group. A warp runs on until
  // it waits for another one, so that warps drift as far apart as their barriers let them.
  const unsigned stride = static_cast<unsigned>(device.order >> 32) | 1u,
                 offset = static_cast<unsigned>(device.order >> 40);
  const unsigned num_warps = num_threads / kLanes;
  unsigned num_finished = 0;
  while (num_finished < num_threads) {
    bool progress = false;
    for (unsigned w = 0; w < num_warps; ++w) {
      Fibre* lanes = &device.fibres[(w * stride + offset) % num_warps * kLanes];
      do {
        device.progress = false;
        for (unsigned l = 0; l < kLanes; ++l) {
          Fibre& fibre = lanes[(l * stride + offset) % kLanes];
          if (fibre.finished) continue;
          resume(fibre);
          num_finished += fibre.finished;
        }
        progress = progress || device.progress;
      } while (device.progress);
    }
    if (!progress && num_finished < num_threads) fail("some threads wait at a barrier that the others do not reach");
  }
}

constexpr std::size_t kSharedGuard = 64;
constexpr unsigned char kSharedByte = 0x5a;

inline unsigned char* shared_begin() { return reinterpret_cast<unsigned char*>(device.shared.data()) + kSharedGuard; }

// A group finds nothing of use in its shared memory, and writes to no more than it was given.
inline void fill_shared(std::size_t num_bytes) {
  device.shared.resize((num_bytes + 2 * kSharedGuard) / sizeof(uint4) + 1);
  std::memset(device.shared.data(), kSharedByte, device.shared.size() * sizeof(uint4));
}
inline void check_shared(std::size_t num_bytes) {
  const unsigned char* begin = shared_begin();
  for (std::size_t i = 0; i < kSharedGuard; ++i) {
    if (begin[-1 - static_cast<std::ptrdiff_t>(i)] != kSharedByte || begin[num_bytes + i] != kSharedByte) {
      fail("a thread group wrote outside its shared memory");
    }
  }
}

template <class Body>
void run_grid(unsigned grid, unsigned num_threads, std::size_t shared_nbytes, Body body) {
  if (shared_nbytes > 48 << 10) fail("more than 48 KiB of shared memory");

  if ((num_threads & (num_threads - 1)) != 0 || num_threads < kLanes || num_threads > 1024 || grid == 0) {
    fail("expected a power of two of 32 to 1024 threads a group, and a group or more");
  }
  device.body = [](void* arguments) { (*static_cast<Body*>(arguments))(); };
  device.arguments = &body;
  gridDim = dim3(grid < device.max_grid ? grid : device.max_grid);
  blockDim = dim3(num_threads);
  for (unsigned b = 0; b < gridDim.x; ++b) {
    blockIdx = dim3(b);
    fill_shared(shared_nbytes);
    run_group(num_threads);
    check_shared(shared_nbytes);
    device.order = device.order * 6364136223846793005u + 1442695040888963407u;
  }
}

}  // namespace emulated

// Warp functions, for full warps.
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return emulated::unpack<T>(emulated::exchange(1, emulated::pack(value))[source & 31]);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned distance) {
  const unsigned from = emulated::lane() + distance;
  return emulated::unpack<T>(emulated::exchange(2, emulated::pack(value))[from < 32 ? from : emulated::lane()]);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
  const unsigned lane = emulated::lane();
  return emulated::unpack<T>(emulated::exchange(3, emulated::pack(value))[lane >= distance ? lane - distance : lane]);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated::unpack<T>(emulated::exchange(7, emulated::pack(value))[(emulated::lane() ^ mask) & 31]);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const uint64_t* votes = emulated::exchange(4, vote);
  unsigned word = 0;
  for (unsigned l = 0; l < 32; ++l) word |= static_cast<unsigned>(votes[l]) << l;
  return word;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const uint64_t* values = emulated::exchange(8, value);
  return static_cast<unsigned>(*std::max_element(values, values + 32));
}
inline void __syncwarp() { emulated::exchange(5, 0); }
inline void __syncthreads() { emulated::arrive(emulated::device.group, 6, emulated::kLanes, 0); }

inline void __threadfence() {}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

namespace dance::cuda {
inline uint8_t* dynamic_shared() { return emulated::shared_begin(); }
}  // namespace dance::cuda

template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address += value;
  return old;
}
inline long long atomicMin(long long* address, long long value) {
  const long long old = *address;
  if (value < old) *address = value;
  return old;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

// The runtime: one device, all work done at once.
using cudaStream_t = struct EmulatedStream*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorNoKernelImageForDevice,
  cudaErrorUnsupportedPtxVersion,
  cudaErrorInvalidDevice
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t num_bytes, cudaStream_t) {
  return std::memset(address, value, num_bytes), cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  emulated::run_grid(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
