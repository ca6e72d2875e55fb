// The prefix sums of scan.h: one thread group, as the parts are few.
#include "scan.h"

#include "check.h"
#include "warp.h"

namespace dance::cuda {
namespace {

constexpr uint32_t kScanThreads = 1024;
constexpr uint32_t kScanDepth = 4;

__global__ void __launch_bounds__(kScanThreads) scan_parts(Counts* parts, uint64_t num_parts) {
  __shared__ Counts totals[kScanThreads / kLanes];
  const Warp warp;
  const uint32_t own = threadIdx.x / kLanes;
  Counts carry = {0, 0};
  for (uint64_t base = 0; base < num_parts; base += kScanThreads * kScanDepth) {
    const uint64_t first = base + uint64_t{threadIdx.x} * kScanDepth;
    Counts part[kScanDepth];
    Counts sum = {0, 0};
#pragma unroll
    for (uint32_t t = 0; t < kScanDepth; ++t) {
      part[t] = first + t < num_parts ? parts[first + t] : Counts{0, 0};
      sum.above += part[t].above;
      sum.equal += part[t].equal;
    }
    Counts before = {warp.prefix_sum(sum.above), warp.prefix_sum(sum.equal)};
    if (warp.lane == kLanes - 1) totals[own] = before;
    __syncthreads();
    before = {carry.above + before.above - sum.above, carry.equal + before.equal - sum.equal};
    for (uint32_t w = 0; w < kScanThreads / kLanes; ++w) {
      const Counts total = totals[w];
      before.above += w < own ? total.above : 0;
      before.equal += w < own ? total.equal : 0;
      carry.above += total.above;
      carry.equal += total.equal;
    }
#pragma unroll
    for (uint32_t t = 0; t < kScanDepth; ++t) {
      if (first + t < num_parts) parts[first + t] = before;
      before.above += part[t].above;
      before.equal += part[t].equal;
    }
    __syncthreads();  // before the next round writes totals
  }
}

}  // namespace

void scan_counts(Counts* parts, uint64_t num_parts, cudaStream_t stream) {
  launch("dance scan", scan_parts, {1, kScanThreads, stream}, parts, num_parts);
}

}  // namespace dance::cuda
