// Dense codecs on the GPU as the rest of the backend sees them, and what their kernels are given.
#pragma once

#include <cuda_runtime.h>

#include "codec_api.h"
#include "codecs/list.h"
#include "codecs/sparse.h"

namespace dance::cuda {

// How one codec and its parameters lie in a payload of numel elements.
struct DenseLayout {
  uint8_t id, mode;  // of the kernels: `none` of a 16-bit type is driven by those of fp16 or bf16
  uint32_t block, bits, levels;
  uint64_t codes_nbytes;
};
DenseLayout dense_layout(uint8_t id, uint8_t mode, uint32_t block, uint32_t levels, Dtype dtype, uint64_t numel);
inline bool same_kernels(const DenseLayout& a, const DenseLayout& b) {
  return a.id == b.id && a.mode == b.mode && a.block == b.block && a.bits == b.bits;
}

// The dense payload of a sparse packet whose count only the device knows: then `codes` of a job is the start of the
// whole payload, its `numel` the most values there can be, and the kernel finds the true ones with place_values.
struct Values {
  const uint32_t* count = nullptr;  // null: the job says it all
  uint64_t numel = 0;               // of the array that the values are of
};

// What is reduced: payloads of one codec. A launch carries their addresses.
constexpr uint32_t kMaxPackets = 128;
struct Packets {
  const uint8_t* payload[kMaxPackets];
  uint64_t codes_nbytes;
  uint32_t count;
  float weight;
};

// Where the decoded values of a sparse packet go.
enum class Sink : int { write, add, feedback, difference };

// Value i belongs to element indices[i]. A payload that was not checked may hold any: those of numel or more are
// skipped.
struct ScatterJob {
  const uint32_t* indices;
  uint64_t numel;
  Sink sink;
  void* out;  // the array, or the state that is finished
  Dtype dtype;
  const float* values;  // sinks feedback and difference: v
};

// x, state and the rest as in EncodeJob; codes, scales and block are the layout's. `clean`: values that are not finite
// are sent as zeros.
void encode_dense(const DenseLayout& layout, Operation operation, EncodeJob job, uint8_t* payload, Values values,
                  bool clean, int64_t* nonfinite, cudaStream_t stream);

// The weighted sum of packets, encoded again with the same codec; operation encode or feedback.
void reduce_dense(const DenseLayout& layout, Operation operation, EncodeJob job, const Packets& packets,
                  uint8_t* payload, int64_t* nonfinite, cudaStream_t stream);

// out = (out +) the weighted sum of packets.
void decode_dense(const DenseLayout& layout, const Packets& packets, uint64_t numel, void* out, Dtype dtype, bool add,
                  cudaStream_t stream);

void scatter_dense(const DenseLayout& layout, const uint8_t* payload, uint64_t num_values, float weight, Values values,
                   const ScatterJob& scatter, cudaStream_t stream);

}  // namespace dance::cuda
