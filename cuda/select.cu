// Exact top-k on the GPU: a radix select over the 31 bits of the keys in digits of 11, 11 and 9 bits, then a compaction
// in order of index. Nothing depends on the order in which warps run, and nothing waits for the host.
//
//   histogram, pick    three times: counts the next digit of all keys that share the digits found so far, then
//                      takes the highest digit that has the k-th largest key below or in it
//   count, scan        how many keys of each segment lie above and on the k-th key, and of all segments before it
//   write              every segment knows its places: chosen are all keys above and the first `ties` on the k-th key
//
// The state is written only by the last pass, so the others see the same v. Five passes read x and state, 44 bytes an
// element with feedback; keeping the candidates of the first pass would save two of them.
#include "select.h"

#include "check.h"
#include "codecs/topk.h"
#include "warp.h"

namespace dance::cuda {
namespace {

// Elements that one warp compacts, a multiple of a row.
constexpr uint32_t kSegment = 4096;
// Elements that a warp loads at a time, eight a lane.
constexpr uint32_t kDepth = 8;
constexpr uint32_t kRow = kDepth * kLanes;
// Each thread group of a histogram flushes its own bins, so more groups cost more atomic additions.
constexpr uint64_t kHistogramGrid = 1056;
constexpr uint32_t kScanThreads = 1024;
constexpr uint32_t kScanDepth = 4;

struct Digit {
  uint32_t shift, bits;
};
constexpr Digit kDigits[3] = {{20, 11}, {9, 11}, {0, 9}};
static_assert(kDigits[0].shift == TopK::kBinShift && 1u << kDigits[0].bits == TopK::kBins, "the first digit is TopK's");

struct Segment {
  uint64_t above, equal;  // than the k-th key: in this segment, after the scan in all segments before it
};

// The head of the scratch memory; segments follow.
struct Selection {
  unsigned long long bins[3][TopK::kBins];
  uint64_t remaining;  // of the k: how many lie on the digits found so far; in the end, the ties that are chosen
  uint32_t lowest;     // the digits of the k-th key found so far, zeros below
  uint32_t unused;
};

__device__ __forceinline__ Segment* segments_of(Selection* selection) {
  return reinterpret_cast<Segment*>(selection + 1);
}

// v of the elements start + lane, start + lane + 32, ...; zero at and behind the end.
template <Operation op>
__device__ __forceinline__ void load_row(const Warp& warp, const SelectJob& job, uint64_t start, float (&v)[kDepth]) {
  float x[kDepth], state[kDepth];
#pragma unroll
  for (uint32_t t = 0; t < kDepth; ++t) {
    const uint64_t i = start + warp.lane + t * kLanes;
    x[t] = i < job.numel ? job.x[i] : 0.0f;
    state[t] = op != Operation::encode && i < job.numel ? job.state[i] : 0.0f;
  }
#pragma unroll
  for (uint32_t t = 0; t < kDepth; ++t) v[t] = combine<op>(x[t], state[t]);
}

template <Operation op>
__global__ void __launch_bounds__(kThreads)
    histogram(SelectJob job, Selection* selection, uint32_t digit, int64_t* nonfinite) {
  __shared__ uint32_t bins[TopK::kBins];
  for (uint32_t b = threadIdx.x; b < TopK::kBins; b += blockDim.x) bins[b] = 0;
  __syncthreads();

  const Warp warp;
  const uint32_t shift = digit == 0 ? kDigits[0].shift : digit == 1 ? kDigits[1].shift : kDigits[2].shift;
  const uint32_t bits = digit == 0 ? kDigits[0].bits : digit == 1 ? kDigits[1].bits : kDigits[2].bits;
  const uint32_t prefix = digit == 0 ? 0 : selection->lowest >> (shift + bits);
  for (uint64_t start = Warp::first() * kRow; start < job.numel; start += Warp::stride() * kRow) {
    float v[kDepth];
    load_row<op>(warp, job, start, v);
#pragma unroll
    for (uint32_t t = 0; t < kDepth; ++t) {
      const uint64_t i = start + warp.lane + t * kLanes;
      const uint32_t key = TopK::key(v[t]);
      const bool counts = i < job.numel && key >> (shift + bits) == prefix;
      const uint32_t bin = key >> shift & ((1u << bits) - 1u);
      if (digit == 0 && i < job.numel && !is_finite(v[t])) lower(nonfinite, i);
      // Lanes that share the bin of the first one are added at once: arrays of one value would queue up otherwise.
      const uint32_t counted = warp.ballot(counts);
      if (counted == 0) continue;
      const uint32_t leader = static_cast<uint32_t>(__ffs(static_cast<int>(counted)) - 1);
      const uint32_t first_bin = warp.shuffle(bin, leader);  // by all lanes, so not behind the &&
      const bool shared = counts && bin == first_bin;
      const uint32_t together = warp.ballot(shared);
      if (warp.lane == leader) {
        atomicAdd(&bins[bin], static_cast<uint32_t>(__popc(together)));
      } else if (counts && !shared) {
        atomicAdd(&bins[bin], 1u);
      }
    }
  }
  __syncthreads();
  for (uint32_t b = threadIdx.x; b < TopK::kBins; b += blockDim.x) {
    if (bins[b] != 0) atomicAdd(&selection->bins[digit][b], static_cast<unsigned long long>(bins[b]));
  }
}

// One warp: finds the digit of the k-th key, from the highest bin down.
__global__ void pick(Selection* selection, uint32_t digit, uint64_t count) {
  constexpr uint32_t each = TopK::kBins / kLanes;
  const Warp warp;
  // Lane 0 has the highest bins, so that those before a lane are those above it.
  const uint32_t top = TopK::kBins - warp.lane * each;
  const unsigned long long* bins = selection->bins[digit];
  uint64_t mine = 0;
#pragma unroll 8
  for (uint32_t j = 1; j <= each; ++j) mine += bins[top - j];
  uint64_t above = warp.prefix_sum(mine) - mine;
  const uint64_t remaining = digit == 0 ? count : selection->remaining;
  const uint32_t lowest = digit == 0 ? 0 : selection->lowest;
  warp.sync();  // all lanes have read what one of them now writes
  if (above >= remaining || above + mine < remaining) return;
  uint32_t bin = top - 1;
  while (above + bins[bin] < remaining) above += bins[bin--];
  const uint32_t shift = digit == 0 ? kDigits[0].shift : digit == 1 ? kDigits[1].shift : kDigits[2].shift;
  selection->lowest = lowest | bin << shift;
  selection->remaining = remaining - above;
}

template <Operation op>
__global__ void __launch_bounds__(kThreads) count_segments(SelectJob job, Selection* selection, uint64_t num_segments) {
  const Warp warp;
  const uint32_t kth = selection->lowest;
  for (uint64_t s = Warp::first(); s < num_segments; s += Warp::stride()) {
    uint32_t above = 0, equal = 0;
    for (uint32_t r = 0; r < kSegment; r += kRow) {
      const uint64_t start = s * kSegment + r;
      float v[kDepth];
      load_row<op>(warp, job, start, v);
#pragma unroll
      for (uint32_t t = 0; t < kDepth; ++t) {
        const uint32_t key = TopK::key(v[t]);
        above += key > kth;
        equal += key == kth && start + warp.lane + t * kLanes < job.numel;
      }
    }
    above = warp.sum(above);
    equal = warp.sum(equal);
    if (warp.lane == 0) segments_of(selection)[s] = {above, equal};
  }
}

// One thread group: replaces the counts of every segment by the sums over the segments before it.
__global__ void __launch_bounds__(kScanThreads) scan_segments(Selection* selection, uint64_t num_segments) {
  __shared__ Segment totals[kScanThreads / kLanes];
  const Warp warp;
  const uint32_t own = threadIdx.x / kLanes;
  Segment* segments = segments_of(selection);
  Segment carry = {0, 0};
  for (uint64_t base = 0; base < num_segments; base += kScanThreads * kScanDepth) {
    const uint64_t first = base + uint64_t{threadIdx.x} * kScanDepth;
    Segment part[kScanDepth];
    Segment sum = {0, 0};
#pragma unroll
    for (uint32_t t = 0; t < kScanDepth; ++t) {
      part[t] = first + t < num_segments ? segments[first + t] : Segment{0, 0};
      sum.above += part[t].above;
      sum.equal += part[t].equal;
    }
    Segment before = {warp.prefix_sum(sum.above), warp.prefix_sum(sum.equal)};
    if (warp.lane == kLanes - 1) totals[own] = before;
    __syncthreads();
    before = {carry.above + before.above - sum.above, carry.equal + before.equal - sum.equal};
    for (uint32_t w = 0; w < kScanThreads / kLanes; ++w) {
      const Segment total = totals[w];
      before.above += w < own ? total.above : 0;
      before.equal += w < own ? total.equal : 0;
      carry.above += total.above;
      carry.equal += total.equal;
    }
#pragma unroll
    for (uint32_t t = 0; t < kScanDepth; ++t) {
      if (first + t < num_segments) segments[first + t] = before;
      before.above += part[t].above;
      before.equal += part[t].equal;
    }
    __syncthreads();  // before the next round writes totals
  }
}

template <Operation op>
__global__ void __launch_bounds__(kThreads) write_chosen(SelectJob job, Selection* selection, uint64_t num_segments,
                                                         uint64_t count, uint32_t* indices, float* values) {
  const Warp warp;
  const uint32_t kth = selection->lowest;
  const uint64_t ties = selection->remaining;
  const uint32_t lanes_before = (1u << warp.lane) - 1u;
  for (uint64_t s = Warp::first(); s < num_segments; s += Warp::stride()) {
    Segment before = segments_of(selection)[s];
    for (uint32_t r = 0; r < kSegment; r += kRow) {
      const uint64_t start = s * kSegment + r;
      float v[kDepth];
      load_row<op>(warp, job, start, v);
#pragma unroll
      for (uint32_t t = 0; t < kDepth; ++t) {
        const uint64_t i = start + warp.lane + t * kLanes;
        const bool inside = i < job.numel;
        const uint32_t key = TopK::key(v[t]);
        const bool finite = is_finite(v[t]);
        const uint32_t above = warp.ballot(key > kth);
        const uint32_t equal = warp.ballot(inside && key == kth);
        const uint64_t equal_before = before.equal + static_cast<uint32_t>(__popc(equal & lanes_before));
        const bool chosen = key > kth || (inside && key == kth && equal_before < ties);
        if (chosen) {
          const uint64_t place = before.above + static_cast<uint32_t>(__popc(above & lanes_before)) +
                                 (equal_before < ties ? equal_before : ties);
          if (place < count) {  // always, unless another stream writes to x meanwhile
            indices[place] = static_cast<uint32_t>(i);
            values[place] = finite ? v[t] : 0.0f;
          }
        }
        if (op == Operation::feedback && inside && finite) job.state[i] = chosen ? 0.0f : v[t];
        if (op == Operation::difference && chosen && finite) job.state[i] = saturate(job.state[i] + v[t]);
        before.above += static_cast<uint32_t>(__popc(above));
        before.equal += static_cast<uint32_t>(__popc(equal));
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) scatter_values(const uint32_t* indices, const float* values, uint64_t count,
                                                           float* out, uint64_t numel, bool add, float weight) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint32_t index = indices[i];
    if (index >= numel) continue;
    const float value = values[i];
    out[index] = add ? accumulate<true>(out[index], weight, value) : accumulate<false>(0.0f, weight, value);
  }
}

uint64_t segments_for(uint64_t numel) { return divide_up(numel, kSegment); }

template <Operation op>
void select(const SelectJob& job, uint64_t count, uint32_t* indices, float* values, int64_t* nonfinite, void* scratch,
            cudaStream_t stream) {
  auto* selection = static_cast<Selection*>(scratch);
  const uint64_t num_segments = segments_for(job.numel);
  const uint64_t grid = divide_up(num_segments, kThreads / kLanes);
  const uint64_t rows = divide_up(job.numel, uint64_t{kRow} * (kThreads / kLanes));
  check(cudaMemsetAsync(selection, 0, sizeof(Selection), stream), "cudaMemsetAsync");
  for (uint32_t digit = 0; digit < 3; ++digit) {
    launch("dance topk histogram", histogram<op>, rows < kHistogramGrid ? rows : kHistogramGrid, kThreads, stream, job,
           selection, digit, nonfinite);
    launch("dance topk pick", pick, 1, kLanes, stream, selection, digit, count);
  }
  launch("dance topk count", count_segments<op>, grid, kThreads, stream, job, selection, num_segments);
  launch("dance topk scan", scan_segments, 1, kScanThreads, stream, selection, num_segments);
  launch("dance topk write", write_chosen<op>, grid, kThreads, stream, job, selection, num_segments, count, indices,
         values);
}

}  // namespace

void select_largest(Operation operation, const SelectJob& job, uint64_t count, uint32_t* indices, float* values,
                    int64_t* nonfinite, void* scratch, cudaStream_t stream) {
  switch (operation) {
    case Operation::encode:
      return select<Operation::encode>(job, count, indices, values, nonfinite, scratch, stream);
    case Operation::feedback:
      return select<Operation::feedback>(job, count, indices, values, nonfinite, scratch, stream);
    case Operation::difference:
      return select<Operation::difference>(job, count, indices, values, nonfinite, scratch, stream);
  }
}

uint64_t select_scratch_nbytes(uint64_t numel) { return sizeof(Selection) + segments_for(numel) * sizeof(Segment); }

void scatter(const uint32_t* indices, const float* values, uint64_t count, float* out, uint64_t numel, bool add,
             float weight, cudaStream_t stream) {
  if (!add) check(cudaMemsetAsync(out, 0, numel * sizeof(float), stream), "cudaMemsetAsync");
  if (count == 0) return;
  launch("dance topk scatter", scatter_values, divide_up(count, kThreads), kThreads, stream, indices, values, count,
         out, numel, add, weight);
}

}  // namespace dance::cuda
