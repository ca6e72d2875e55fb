// Reading the elements that a seed has drawn, and the pass over all others that feedback and the report of non-finite
// values need.
#include "check.h"
#include "rows.h"
#include "select.h"

namespace dance::cuda {
namespace {

template <Operation op>
__global__ void __launch_bounds__(kThreads) read_chosen(SelectJob job, Chosen chosen) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < chosen.capacity; i += stride) {
    const uint64_t at = chosen.indices[i];
    const float state = op == Operation::encode ? 0.0f : load_element(job.state, job.state_dtype, at);
    chosen.values[i] = combine<op>(load_element(job.x, job.dtype, at), state);
  }
}

template <Operation op>
__global__ void __launch_bounds__(kThreads) pass_over(SelectJob job, int64_t* nonfinite) {
  const Warp warp;
  const bool wide_x = is_wide(job.x, job.dtype), wide_state = is_wide(job.state, job.state_dtype);
  for (uint64_t start = Warp::first() * kRow; start < job.numel; start += Warp::stride() * kRow) {
    const uint32_t n = job.numel - start < kRow ? static_cast<uint32_t>(job.numel - start) : kRow;
    Raw raw_state{};
    const Raw raw_x = load_raw(warp, job.x, job.dtype, start, n, wide_x);
    if (op != Operation::encode) raw_state = load_raw(warp, job.state, job.state_dtype, start, n, wide_state);
    float v[kHeld], state[kHeld];
    convert(raw_x, job.dtype, v);
    convert(raw_state, job.state_dtype, state);
    uint32_t finite = 0;
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      v[t] = combine<op>(v[t], state[t]);
      if (is_finite(v[t])) {
        finite |= 1u << t;
      } else {
        lower(nonfinite, start + place_of(warp.lane, t));
      }
    }
    if (op == Operation::feedback) store_row(warp, job.state, job.state_dtype, start, n, wide_state, finite, v);
  }
}

template <Operation op>
void run(const SelectJob& job, const Chosen& chosen, int64_t* nonfinite, cudaStream_t stream) {
  launch("dance gather", read_chosen<op>, {chosen.capacity / kThreads + 1, kThreads, stream}, job, chosen);
  if (op == Operation::feedback || nonfinite != nullptr) {
    launch("dance pass over", pass_over<op>, per_warp(job.numel, kRow, true, stream), job, nonfinite);
  }
}

}  // namespace

void gather(Operation operation, const SelectJob& job, const Chosen& chosen, int64_t* nonfinite, cudaStream_t stream) {
  switch (operation) {
    case Operation::encode:
      return run<Operation::encode>(job, chosen, nonfinite, stream);
    case Operation::feedback:
      return run<Operation::feedback>(job, chosen, nonfinite, stream);
    case Operation::difference:
      return run<Operation::difference>(job, chosen, nonfinite, stream);
  }
}

}  // namespace dance::cuda
