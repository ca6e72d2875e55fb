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
// codec_api.h, checked there; numel > 0. Without a device: UnavailableError.
void encode(const EncodeRequest& request);
void decode(const DecodeRequest& request);
void reduce(const ReduceRequest& request);
void mix(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel,
         Place place);

// Device memory that one call needs beside its payload.
uint64_t scratch_nbytes(const CodecSpec& codec, Dtype dtype, uint64_t numel);
uint64_t reduce_scratch_nbytes(const ReduceRequest& request);

}  // namespace dance::cuda
