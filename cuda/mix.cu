// The gossip step: x += step_size * (neighbour_sum - reference).
#include "mix.h"

#include "check.h"
#include "rows.h"

namespace dance::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    mix_rows(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel) {
  const Warp warp;
  const bool wide = is_wide(x, dtype) && is_wide(neighbour_sum, dtype) && is_wide(reference, dtype);
  for (uint64_t start = Warp::first() * kRow; start < numel; start += Warp::stride() * kRow) {
    const uint32_t n = numel - start < kRow ? static_cast<uint32_t>(numel - start) : kRow;
    const Raw raw_x = load_raw(warp, x, dtype, start, n, wide);
    const Raw raw_sum = load_raw(warp, neighbour_sum, dtype, start, n, wide);
    const Raw raw_own = load_raw(warp, reference, dtype, start, n, wide);
    float moved[kHeld], sum[kHeld], own[kHeld];
    convert(raw_x, dtype, moved);
    convert(raw_sum, dtype, sum);
    convert(raw_own, dtype, own);
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) moved[t] = moved[t] + step_size * (sum[t] - own[t]);
    store_row(warp, x, dtype, start, n, wide, 0xffu, moved);
  }
}

}  // namespace

void mix_arrays(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel,
                cudaStream_t stream) {
  launch("dance mix", mix_rows, per_warp(numel, kRow, true, stream), x, neighbour_sum, reference, dtype, step_size,
         numel);
}

}  // namespace dance::cuda
