// How the CUDA backend calls the runtime: every failure becomes an error that names the call, the caller's device is
// restored.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "base/error.h"

namespace dance::cuda {

constexpr uint32_t kThreads = 128;
// Every kernel strides over its work, so this bounds only how much of it one launch schedules at once.
constexpr uint64_t kMaxGrid = uint64_t{1} << 20;

inline void check(cudaError_t error, const std::string& call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that a later call does not report this failure again
  const std::string text = call + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    throw UnavailableError(
        text +
        "; this build has no code for this GPU, rebuild with --config-settings cmake.define.DANCE_CUDA_ARCHITECTURES="
        "<its compute capability without the dot, such as 90>");
  }
  throw DeviceError(text);
}

inline int count_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

// Makes `device` the current device while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    const int count = count_devices();
    if (device >= count) {
      throw UnavailableError("no CUDA device: device " + std::to_string(device) + " was asked for and " +
                             std::to_string(count) +
                             " answer; check nvidia-smi and CUDA_VISIBLE_DEVICES, or move the array to the CPU");
    }
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device == previous_) return;
    check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// How a kernel is put on a stream.
struct Launch {
  uint64_t grid;
  uint32_t threads;
  cudaStream_t stream;
  uint32_t shared_nbytes = 0;
};

// As many thread groups as fill any GPU: for work whose amount only the device knows.
constexpr uint64_t kFullGrid = 2048;

// A warp for each span of a dense codec (decode.h).
inline Launch per_warp(uint64_t numel, uint32_t block, bool exact, cudaStream_t stream) {
  const uint32_t span = 256 % block == 0 ? 256 : block, warps = kThreads / 32;
  const uint64_t groups = numel / span / warps + 1;
  return {exact || groups < kFullGrid ? groups : kFullGrid, kThreads, stream};
}

// Puts a kernel on a stream. The template must be instantiated in the .cu file that defines the kernel.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Launch how, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.grid < kMaxGrid ? how.grid : kMaxGrid));
  config.blockDim = dim3(how.threads);
  config.stream = how.stream;
  config.dynamicSmemBytes = how.shared_nbytes;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace dance::cuda
