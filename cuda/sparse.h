// Sparse codecs on the GPU: selection, indices and values put together.
#pragma once

#include "dense.h"

namespace dance::cuda {

// x of `dtype` instead of the request's own. Arguments as in cuda/kernels.h.
void encode_sparse(const EncodeRequest& request, const void* x, Dtype dtype, cudaStream_t stream);
void decode_sparse(const DecodeRequest& request, cudaStream_t stream);
uint64_t sparse_scratch_nbytes(const CodecSpec& codec, uint64_t numel);

}  // namespace dance::cuda
