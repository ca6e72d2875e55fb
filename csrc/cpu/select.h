// Sparse codecs on the CPU: which elements are sent, how their indices are coded, and where received ones go.
#pragma once

#include "codec_api.h"
#include "cpu/kernels.h"

namespace dance::cpu {

// Encodes with a sparse codec (arguments checked, numel > 0): selects, writes indices and values, finishes the state.
// Any number of threads gives the same bits.
EncodeResult encode_sparse(const EncodeRequest& request);

// Throws FrameError unless the indices are those of the codec (nothing to check where none are sent).
void check_indices(const CodecSpec& codec, const uint8_t* payload, uint64_t numel);

// Scatters, after check_indices has passed: everywhere else out becomes +0.0, or stays where the request adds.
void decode_sparse(const DecodeRequest& request);

// The indices themselves, increasing; num_values of them.
void read_indices(const CodecSpec& codec, uint64_t seed, const uint8_t* payload, uint64_t numel, int64_t* out);

}  // namespace dance::cpu
