// The CUDA backend as the front door sees it; cuda/absent.cpp gives the same symbols to a build without nvcc.
#pragma once

#include <cstdint>
#include <vector>

#include "codec_api.h"

namespace dance::cuda {

bool built();
// Whether a driver and at least one device answer. Never throws.
bool available();
// The architectures this build has code for, e.g. {90}; the newest also as PTX.
std::vector<int> architectures();

// All work goes on place.stream, without allocation and without waiting for the device. Arguments are those of
// codec_api.h, checked there. Without a device: UnavailableError.
void encode(Operation operation, const CodecSpec& codec, const float* x, float* state, uint8_t* payload, uint64_t numel,
            uint64_t seed, Place place, int64_t* nonfinite, void* scratch);
void decode(const CodecSpec& codec, const uint8_t* payload, float* out, uint64_t numel, bool add, float weight,
            Place place);
void mix(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t numel, Place place);

// Device memory that one encode call needs beside its payload.
uint64_t scratch_nbytes(const CodecSpec& codec, uint64_t numel);

}  // namespace dance::cuda
