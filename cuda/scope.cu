// The largest elements of each block of an array: one thread group a block, which holds it in registers, so that x and
// state are read once and the state is written in the same pass.
#include "check.h"
#include "radix.h"
#include "rows.h"
#include "select.h"

namespace dance::cuda {
namespace {

constexpr uint32_t kMaxGroup = 1024;

template <Operation op, uint32_t depth>
__global__ void __launch_bounds__(kMaxGroup) top_of_blocks(SelectJob job, uint32_t scope, uint32_t count, Chosen chosen,
                                                           uint16_t* in_block, int64_t* nonfinite) {
  // Of each row of the block and each warp: how many elements are above the k-th key, and in the upper half on it.
  __shared__ uint32_t parts[depth * (kMaxGroup / kLanes)];
  const Warp warp;
  const uint32_t own = threadIdx.x / kLanes, num_warps = blockDim.x / kLanes, num_parts = depth * num_warps;
  const uint32_t lanes_before = (1u << warp.lane) - 1u;
  const uint64_t num_blocks = divide_up(job.numel, scope);
  for (uint64_t b = blockIdx.x; b < num_blocks; b += gridDim.x) {
    const uint64_t begin = b * scope, left = job.numel - begin;
    const uint32_t n = left < scope ? static_cast<uint32_t>(left) : scope;
    const uint32_t k = static_cast<uint32_t>(count_of_block(n, scope, count));
    float v[depth];
    uint32_t key[depth];  // computing them again from v instead spilled
#pragma unroll
    for (uint32_t t = 0; t < depth; ++t) {
      const uint32_t e = t * blockDim.x + threadIdx.x;
      v[t] = e < n ? load_element(job.x, job.dtype, begin + e) : 0.0f;
      if (op != Operation::encode) {
        v[t] = combine<op>(v[t], e < n ? load_element(job.state, job.state_dtype, begin + e) : 0.0f);
      }
      key[t] = e < n ? selection_key(v[t]) : kNoKey;
    }
    uint32_t nth, ties;
    nth_key<depth>(warp, key, k, &nth, &ties);
#pragma unroll
    for (uint32_t t = 0; t < depth; ++t) {
      const uint32_t above = warp.ballot(key[t] > nth && key[t] != kNoKey), equal = warp.ballot(key[t] == nth);
      if (warp.lane == 0) {
        parts[t * num_warps + own] = static_cast<uint32_t>(__popc(above)) | static_cast<uint32_t>(__popc(equal)) << 16;
      }
    }
    __syncthreads();
    uint32_t total;
    const uint32_t part = threadIdx.x < num_parts ? parts[threadIdx.x] : 0u;
    const uint32_t before = group_prefix(warp, part, &total);
    if (threadIdx.x < num_parts) parts[threadIdx.x] = before;
    __syncthreads();
#pragma unroll
    for (uint32_t t = 0; t < depth; ++t) {
      const uint32_t e = t * blockDim.x + threadIdx.x;
      const uint32_t above = warp.ballot(key[t] > nth && key[t] != kNoKey), equal = warp.ballot(key[t] == nth);
      const uint32_t packed = parts[t * num_warps + own];
      const uint32_t equal_before = (packed >> 16) + static_cast<uint32_t>(__popc(equal & lanes_before));
      const uint32_t above_before = (packed & 0xffffu) + static_cast<uint32_t>(__popc(above & lanes_before));
      if (e >= n) continue;
      if (key[t] > nth || (key[t] == nth && equal_before < ties)) {
        const uint64_t at = b * count + above_before + (equal_before < ties ? equal_before : ties);
        in_block[at] = static_cast<uint16_t>(e);
        chosen.indices[at] = static_cast<uint32_t>(begin + e);
        chosen.values[at] = v[t];
      }
      if (!is_finite(v[t])) {
        lower(nonfinite, begin + e);
      } else if (op == Operation::feedback) {
        store_element(job.state, job.state_dtype, begin + e, v[t]);
      }
    }
    __syncthreads();  // before the next block overwrites what is shared
    if (b == num_blocks - 1 && threadIdx.x == 0 && chosen.capacity % 2 != 0) in_block[chosen.capacity] = 0;
  }
}

template <Operation op>
void run(const SelectJob& job, uint32_t scope, uint32_t count, const Chosen& chosen, uint16_t* in_block,
         int64_t* nonfinite, cudaStream_t stream) {
  uint32_t threads = 32;
  while (threads < kMaxGroup && threads * 16 < scope) threads *= 2;
  // A group holds 16 elements a thread, and 32 where blocks are larger than 16 of the largest group.
  const auto kernel = threads * 16 >= scope ? top_of_blocks<op, 16> : top_of_blocks<op, 32>;
  launch("dance topk of blocks", kernel, {divide_up(job.numel, scope), threads, stream}, job, scope, count, chosen,
         in_block, nonfinite);
}

}  // namespace

void select_blocks(Operation operation, const SelectJob& job, uint32_t scope, uint32_t count, const Chosen& chosen,
                   uint16_t* in_block, int64_t* nonfinite, cudaStream_t stream) {
  switch (operation) {
    case Operation::encode:
      return run<Operation::encode>(job, scope, count, chosen, in_block, nonfinite, stream);
    case Operation::feedback:
      return run<Operation::feedback>(job, scope, count, chosen, in_block, nonfinite, stream);
    case Operation::difference:
      return run<Operation::difference>(job, scope, count, chosen, in_block, nonfinite, stream);
  }
}

}  // namespace dance::cuda
