// Dense codecs on the CPU over several threads: what the front door and the sparse codecs' values share.
#pragma once

#include "codec_api.h"
#include "cpu/kernels.h"

namespace dance::cpu {

// How one codec and its parameters lie in a payload of numel elements of dtype. `none` of a 16-bit dtype is driven by
// the kernels of fp16 or bf16.
struct DenseLayout {
  const DenseKernels* kernels;
  uint32_t block;  // elements a kernel takes as one block: the codec's, or kChunk
  uint32_t bits, levels;
  uint64_t codes_size, payload_size;
  bool has_scales, is_float_scale;
  uint32_t largest_scale;  // float bits, or the byte; no encoder makes a larger one
};

// id, mode, block, levels are those of a dense codec, checked.
DenseLayout dense_layout(uint8_t id, uint8_t mode, uint32_t block, uint32_t levels, Dtype dtype, uint64_t numel);

// Of a dense codec's elements, or of the `count` values of a sparse codec.
inline DenseLayout dense_layout(const CodecSpec& codec, Dtype dtype, uint64_t count) {
  const uint8_t id = is_sparse(codec.id) ? codec.values : codec.id;
  return dense_layout(id, codec.mode, codec.block, codec.levels, dtype, count);
}

// Writes codes, padding and scales; returns the first non-finite index or -1.
int64_t encode_dense(const DenseLayout& layout, Operation operation, const void* x, Dtype dtype, void* state,
                     Dtype state_dtype, uint64_t numel, uint64_t seed, uint8_t* payload);

void decode_dense(const DenseLayout& layout, const uint8_t* payload, void* out, Dtype out_dtype, uint64_t numel,
                  bool add, float weight);

// Throws FrameError on padding that is not zero or a scale that no encoder makes; with `codes` also on such a code.
void check_dense(const DenseLayout& layout, const char* name, const uint8_t* payload, uint64_t numel, bool codes);

}  // namespace dance::cpu
