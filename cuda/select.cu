// Selecting from a whole array: exact, in one pass over memory as a rule, without waiting for the host, and the same
// whatever the order of thread groups.
//
//   sample      the keys of a sample, and of these the one a little below which the k-th key of all must lie: `lowest`
//   collect     the one pass over x and state: elements above `lowest` go to a pool, tile by tile; the state becomes v
//   histogram   three times, the last group picking a digit: radix select of the k-th key among the pool's
//   count, scan, write   every tile learns its places and writes its chosen elements in order of index
//
// A tile's part of the pool lies wherever there was room when it came, but which elements it holds, and their order in
// it, do not depend on that. Equal keys on `lowest` are counted, not stored, so that arrays of zeros do not fill the
// pool. What the sample cannot promise is made good: where the pool is full, or fewer than k elements reach `lowest`,
// the later kernels read the tiles again (from the state, where it holds v). Only a state that cannot hold v, one of 16
// bits or of a tile with a non-finite element, is read again and written by the last kernel as a rule.
//
// Bytes an element with feedback and float32: 12, and 8 for each candidate and pass over the pool; five passes over x
// and state, as before, were 44.
#include "select.h"

#include "check.h"
#include "radix.h"
#include "rows.h"
#include "scan.h"

namespace dance::cuda {
namespace {

constexpr uint32_t kTileWarps = 8;
constexpr uint32_t kTileThreads = kTileWarps * kLanes;
constexpr uint32_t kTile = kTileWarps * kRow;
// Each group of a histogram flushes its own bins, so more groups cost more atomic additions.
constexpr uint64_t kHistogramGrid = 264;

// What a tile has above and on `lowest`.
struct Tile {
  uint32_t place;  // of its part of the pool
  uint32_t above, equal;
  bool stored;    // whether there was room
  bool finished;  // whether the state holds v
};

// The head of the scratch memory, zeroed before each selection.
struct Selection {
  uint32_t bins[kNumDigits][kBins];
  uint32_t tickets[kNumDigits + 1];
  uint32_t lowest;    // of a sample
  uint32_t above;     // elements above `lowest`, which is also where the pool ends
  uint32_t equal;     // elements on it
  uint32_t unstored;  // tiles without room
  uint32_t nth;       // the digits of the k-th key found so far, zeros below
  uint32_t ties;      // which of the keys on these digits it is; in the end, how many on the k-th key are chosen
  uint32_t count;     // elements chosen
};

struct Scratch {
  Selection* selection;
  uint32_t* sample;
  Tile* tiles;
  Counts* counts;
  uint32_t* pool_indices;
  float* pool_values;
  uint32_t pool_size;
};

struct Work {
  SelectJob job;
  Cut cut;
  Scratch scratch;
  uint64_t num_tiles;
  int64_t* nonfinite;
};

// What the pass over memory has settled. Not `known`: the k-th key is for the histograms to find, among the stored
// candidates or from all elements.
struct Settled {
  uint32_t lowest, count, nth, ties;
  bool known, from_all;
};

__device__ __forceinline__ Settled settle(const Work& work) {
  const Selection& found = *work.scratch.selection;
  const Cut& cut = work.cut;
  Settled settled;
  settled.lowest = cut.sample_rank != 0 ? found.lowest : cut.lowest;
  const uint64_t reach = uint64_t{found.above} + (cut.ties ? found.equal : 0u);
  const uint64_t count = reach < cut.least ? cut.least : reach > cut.most ? cut.most : reach;
  settled.count = static_cast<uint32_t>(count);
  settled.from_all = reach < cut.least;
  settled.known = !settled.from_all && found.above <= count;
  settled.nth = settled.known ? settled.lowest : found.nth;
  settled.ties = settled.known ? settled.count - found.above : found.ties;
  return settled;
}

template <Operation op>
__device__ __forceinline__ float value_at(const SelectJob& job, uint64_t i) {
  const float x = load_element(job.x, job.dtype, i);
  return op == Operation::encode ? x : combine<op>(x, load_element(job.state, job.state_dtype, i));
}

__device__ __forceinline__ uint32_t row_size(uint64_t start, uint64_t numel) {
  return start >= numel ? 0u : numel - start < kRow ? static_cast<uint32_t>(numel - start) : kRow;
}

// v of a row; `finished`: the state holds it.
template <Operation op>
__device__ __forceinline__ void load_values(const Warp& warp, const SelectJob& job, uint64_t start, uint32_t n,
                                            bool finished, float (&v)[kHeld]) {
  Raw raw_x{}, raw_state{};
  if (op != Operation::feedback || !finished)
    raw_x = load_raw(warp, job.x, job.dtype, start, n, is_wide(job.x, job.dtype));
  if (op != Operation::encode) {
    raw_state = load_raw(warp, job.state, job.state_dtype, start, n, is_wide(job.state, job.state_dtype));
  }
  float state[kHeld];
  convert(raw_x, job.dtype, v);
  convert(raw_state, job.state_dtype, state);
#pragma unroll
  for (uint32_t t = 0; t < kHeld; ++t)
    v[t] = op == Operation::feedback && finished ? state[t] : combine<op>(v[t], state[t]);
}

template <Operation op>
__global__ void __launch_bounds__(1024) sample_keys(Work work, uint32_t size) {
  const Warp warp;
  Selection* selection = work.scratch.selection;
  const uint32_t own = blockIdx.x * blockDim.x + threadIdx.x;
  for (uint32_t i = own; i < size; i += gridDim.x * blockDim.x) {
    const uint64_t at = stratified_index(work.cut.sample_seed, i, size, work.job.numel);
    work.scratch.sample[i] = selection_key(value_at<op>(work.job, at));
  }
  if (!last_group(&selection->tickets[kNumDigits])) return;
  constexpr uint32_t depth = kMaxSample / 1024;
  uint32_t key[depth], nth, ties;
#pragma unroll
  for (uint32_t t = 0; t < depth; ++t) {
    const uint32_t i = t * 1024 + threadIdx.x;
    key[t] = i < size ? __ldcg(work.scratch.sample + i) : kNoKey;
  }
  nth_key<depth>(warp, key, work.cut.sample_rank, &nth, &ties);
  if (threadIdx.x == 0) selection->lowest = nth;
}

// The sums over the lanes before this one, of the candidates in its first and in its second run (low and high half).
__device__ __forceinline__ uint32_t count_runs(const Warp& warp, const float (&v)[kHeld], uint32_t n, uint32_t lowest) {
  uint32_t counts = 0;
#pragma unroll
  for (uint32_t t = 0; t < kHeld; ++t) {
    const bool above = place_of(warp.lane, t) < n && selection_key(v[t]) > lowest;
    counts += above ? (t < 4 ? 1u : 1u << 16) : 0u;
  }
  return counts;
}

// One group a tile, one row a warp.
template <Operation op>
__global__ void __launch_bounds__(kTileThreads) collect(Work work) {
  __shared__ uint32_t above_of[kTileWarps], equal_of[kTileWarps], bad_of[kTileWarps];
  __shared__ Tile shared_tile;
  const Warp warp;
  const uint32_t own = threadIdx.x / kLanes;
  const SelectJob& job = work.job;
  const Scratch& scratch = work.scratch;
  const uint32_t lowest = work.cut.sample_rank != 0 ? scratch.selection->lowest : work.cut.lowest;
  const bool holds = op != Operation::feedback || job.state_dtype == Dtype::float32;
  for (uint64_t b = blockIdx.x; b < work.num_tiles; b += gridDim.x) {
    const uint64_t start = b * kTile + own * kRow;
    const uint32_t n = row_size(start, job.numel);
    float v[kHeld];
    load_values<op>(warp, job, start, n, false, v);
    uint32_t equal = 0, bad = 0;
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      const uint32_t e = place_of(warp.lane, t);
      equal += e < n && selection_key(v[t]) == lowest;
      if (!is_finite(v[t])) {
        bad = 1;
        lower(work.nonfinite, start + e);
      }
    }
    const uint32_t counts = count_runs(warp, v, n, lowest), prefix = warp.prefix_sum(counts);
    const uint32_t sums = warp.shuffle(prefix, kLanes - 1);
    equal = warp.sum(equal);
    bad = warp.ballot(bad != 0);
    if (warp.lane == 0) {
      above_of[own] = (sums & 0xffffu) + (sums >> 16);
      equal_of[own] = equal;
      bad_of[own] = bad;
    }
    __syncthreads();
    Tile tile{0, 0, 0, true, holds};
    uint32_t before = 0;
#pragma unroll
    for (uint32_t w = 0; w < kTileWarps; ++w) {
      before += w < own ? above_of[w] : 0u;
      tile.above += above_of[w];
      tile.equal += equal_of[w];
      tile.finished = tile.finished && bad_of[w] == 0;
    }
    if (threadIdx.x == 0) {
      if (tile.above > 0) tile.place = atomicAdd(&scratch.selection->above, tile.above);
      if (tile.equal > 0) atomicAdd(&scratch.selection->equal, tile.equal);
      tile.stored = tile.above == 0 || uint64_t{tile.place} + tile.above <= scratch.pool_size;
      if (!tile.stored) atomicAdd(&scratch.selection->unstored, 1u);
      scratch.tiles[b] = tile;
      shared_tile = tile;
    }
    __syncthreads();
    tile = shared_tile;
    if (tile.stored && counts != 0) {
      uint32_t place = tile.place + before + ((prefix - counts) & 0xffffu);
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) {
        if (t == 4) place = tile.place + before + (sums & 0xffffu) + ((prefix - counts) >> 16);
        const uint32_t e = place_of(warp.lane, t);
        if (e >= n || selection_key(v[t]) <= lowest) continue;
        scratch.pool_indices[place] = static_cast<uint32_t>(start + e);
        scratch.pool_values[place++] = v[t];
      }
    }
    if (op == Operation::feedback && tile.finished) {
      store_row(warp, job.state, job.state_dtype, start, n, is_wide(job.state, job.state_dtype), 0xffu, v);
    }
  }
}

template <Operation op>
__global__ void __launch_bounds__(kTileThreads) histogram(Work work, uint32_t number) {
  __shared__ uint32_t bins[kBins];
  const Warp warp;
  const Scratch& scratch = work.scratch;
  Selection* selection = scratch.selection;
  const Settled settled = settle(work);
  if (settled.known) return;
  const Digit digit(number);
  const uint32_t found = number == 0 ? 0u : selection->nth;
  for (uint32_t b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = 0;
  __syncthreads();
  const auto count = [&](uint32_t key) {
    if (digit.counts(key, found)) atomicAdd(&bins[digit.bin(key)], 1u);
  };
  if (!settled.from_all && selection->unstored == 0) {
    const uint32_t stride = gridDim.x * blockDim.x;
#pragma unroll 4
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < selection->above; i += stride) {
      count(selection_key(scratch.pool_values[i]));
    }
  } else {
    for (uint64_t b = Warp::first(); b < work.num_tiles; b += Warp::stride()) {
      const Tile tile = scratch.tiles[b];
      if (tile.stored && !settled.from_all) {
        for (uint32_t i = warp.lane; i < tile.above; i += kLanes) {
          count(selection_key(scratch.pool_values[tile.place + i]));
        }
        continue;
      }
      for (uint64_t start = b * kTile; start < (b + 1) * kTile; start += kRow) {
        const uint32_t n = row_size(start, work.job.numel);
        float v[kHeld];
        load_values<op>(warp, work.job, start, n, tile.finished, v);
#pragma unroll
        for (uint32_t t = 0; t < kHeld; ++t) {
          const uint32_t key = selection_key(v[t]);
          if (place_of(warp.lane, t) < n && (settled.from_all || key > settled.lowest)) count(key);
        }
      }
    }
  }
  __syncthreads();
  for (uint32_t b = threadIdx.x; b < kBins; b += blockDim.x) {
    if (bins[b] != 0) atomicAdd(&selection->bins[number][b], bins[b]);
  }
  if (!last_group(&selection->tickets[number])) return;
  for (uint32_t b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = __ldcg(&selection->bins[number][b]);
  __syncthreads();
  uint32_t bin, remaining;
  pick_bin(warp, bins, number == 0 ? settled.count : settled.ties, &bin, &remaining);
  if (threadIdx.x == 0) {
    selection->nth = found | bin << digit.shift;
    selection->ties = remaining;
  }
}

// Whether the elements of a tile that are above the k-th key are all in the pool, and no others are chosen.
__device__ __forceinline__ bool in_pool(const Tile& tile, const Settled& settled) {
  return tile.stored && !settled.from_all;
}

// How many elements of each tile are above and on the k-th key: one warp a tile.
template <Operation op>
__global__ void __launch_bounds__(kTileThreads) count_chosen(Work work, uint32_t* reported) {
  const Warp warp;
  const Scratch& scratch = work.scratch;
  const Settled settled = settle(work);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    scratch.selection->count = settled.count;
    if (reported != nullptr) *reported = settled.count;
  }
  for (uint64_t b = Warp::first(); b < work.num_tiles; b += Warp::stride()) {
    const Tile tile = scratch.tiles[b];
    uint32_t above = 0, equal = 0;
    const auto count = [&](uint32_t key) {
      above += key > settled.nth;
      equal += key == settled.nth;
    };
    if (settled.known) {
      if (warp.lane == 0) scratch.counts[b] = {tile.above, tile.equal};
      continue;
    }
    if (in_pool(tile, settled)) {
      for (uint32_t i = warp.lane; i < tile.above; i += kLanes) {
        count(selection_key(scratch.pool_values[tile.place + i]));
      }
    } else {
      for (uint64_t start = b * kTile; start < (b + 1) * kTile; start += kRow) {
        const uint32_t n = row_size(start, work.job.numel);
        float v[kHeld];
        load_values<op>(warp, work.job, start, n, tile.finished, v);
#pragma unroll
        for (uint32_t t = 0; t < kHeld; ++t) {
          if (place_of(warp.lane, t) < n) count(selection_key(v[t]));
        }
      }
    }
    above = warp.sum(above);
    equal = warp.sum(equal);
    if (warp.lane == 0) scratch.counts[b] = {above, equal};
  }
}

// Writes an element that has `before` ones before it in order of index, if it is chosen.
__device__ __forceinline__ void put(const Chosen& chosen, const Settled& settled, Counts before, uint32_t key,
                                    uint32_t index, float v) {
  if (key < settled.nth || (key == settled.nth && before.equal >= settled.ties)) return;
  const uint64_t place = uint64_t{before.above} + (before.equal < settled.ties ? before.equal : settled.ties);
  if (place >= chosen.capacity) return;  // never, unless another stream writes to x meanwhile
  chosen.indices[place] = index;
  chosen.values[place] = v;
}

template <Operation op>
__device__ __forceinline__ void write_tile(const Warp& warp, const Work& work, const Settled& settled, const Tile& tile,
                                           uint64_t b, Counts before, const Chosen& chosen) {
  const SelectJob& job = work.job;
  for (uint64_t start = b * kTile; start < (b + 1) * kTile; start += kRow) {
    const uint32_t n = row_size(start, job.numel);
    float v[kHeld];
    load_values<op>(warp, job, start, n, tile.finished, v);
    uint32_t finite = 0, counts = 0;  // bytes: above and on the k-th key, of the first and the second run
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      const uint32_t key = selection_key(v[t]), shift = t < 4 ? 0 : 16;
      finite |= is_finite(v[t]) ? 1u << t : 0u;
      if (place_of(warp.lane, t) >= n) continue;
      counts += key > settled.nth ? 1u << shift : key == settled.nth ? 256u << shift : 0u;
    }
    const uint32_t prefix = warp.prefix_sum(counts), sums = warp.shuffle(prefix, kLanes - 1);
#pragma unroll
    for (uint32_t t = 0; t < kHeld; t += 4) {
      const uint32_t of_run = (prefix - counts) >> (t * 4);
      Counts at{before.above + (of_run & 255u), before.equal + (of_run >> 8 & 255u)};
#pragma unroll
      for (uint32_t c = t; c < t + 4; ++c) {
        const uint32_t e = place_of(warp.lane, c), key = selection_key(v[c]);
        if (e >= n) continue;
        put(chosen, settled, at, key, static_cast<uint32_t>(start + e), v[c]);
        at.above += key > settled.nth;
        at.equal += key == settled.nth;
      }
      before.above += sums >> (t * 4) & 255u;
      before.equal += sums >> (t * 4 + 8) & 255u;
    }
    if (op == Operation::feedback && !tile.finished) {
      store_row(warp, job.state, job.state_dtype, start, n, is_wide(job.state, job.state_dtype), finite, v);
    }
  }
}

// One warp a tile.
template <Operation op>
__global__ void __launch_bounds__(kTileThreads) write_chosen(Work work, Chosen chosen) {
  const Warp warp;
  const Scratch& scratch = work.scratch;
  const Settled settled = settle(work);
  const uint32_t lanes_before = (1u << warp.lane) - 1u;
  for (uint64_t b = Warp::first(); b < work.num_tiles; b += Warp::stride()) {
    const Tile tile = scratch.tiles[b];
    Counts before = scratch.counts[b];
    // Elements on `lowest` are not in the pool.
    const bool takes_unstored = settled.known && tile.equal > 0 && before.equal < settled.ties;
    if (!in_pool(tile, settled) || takes_unstored || (op == Operation::feedback && !tile.finished)) {
      write_tile<op>(warp, work, settled, tile, b, before, chosen);
      continue;
    }
    for (uint32_t i = 0; i < tile.above; i += kLanes) {
      const bool inside = i + warp.lane < tile.above;
      const float v = inside ? scratch.pool_values[tile.place + i + warp.lane] : 0.0f;
      const uint32_t index = inside ? scratch.pool_indices[tile.place + i + warp.lane] : 0u;
      const uint32_t key = selection_key(v);
      const uint32_t above = warp.ballot(inside && key > settled.nth),
                     equal = warp.ballot(inside && key == settled.nth);
      const Counts at{before.above + static_cast<uint32_t>(__popc(above & lanes_before)),
                      before.equal + static_cast<uint32_t>(__popc(equal & lanes_before))};
      if (inside) put(chosen, settled, at, key, index, v);
      before.above += static_cast<uint32_t>(__popc(above));
      before.equal += static_cast<uint32_t>(__popc(equal));
    }
  }
}

uint64_t tiles_for(uint64_t numel) { return divide_up(numel, kTile); }

// Room for what is expected and six standard deviations of a sample's error.
uint64_t pool_size_for(uint64_t numel, uint64_t expected) {
  const uint64_t size = expected + expected / 2 + 4096;
  return size < numel ? size : numel;
}

// Where everything lies in the scratch memory, aligned to 16, and where it ends.
uint64_t lay_out(void* memory, uint64_t numel, uint64_t expected, Scratch* scratch) {
  auto* base = static_cast<uint8_t*>(memory);
  uint64_t at = 0;
  const auto take = [&](uint64_t num_bytes) {
    uint8_t* start = base + at;
    at += divide_up(num_bytes, 16) * 16;
    return start;
  };
  const uint64_t num_tiles = tiles_for(numel), pool_size = pool_size_for(numel, expected);
  scratch->selection = reinterpret_cast<Selection*>(take(sizeof(Selection)));
  scratch->sample = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * (numel < kMaxSample ? numel : kMaxSample)));
  scratch->tiles = reinterpret_cast<Tile*>(take(sizeof(Tile) * num_tiles));
  scratch->counts = reinterpret_cast<Counts*>(take(sizeof(Counts) * num_tiles));
  scratch->pool_indices = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * pool_size));
  scratch->pool_values = reinterpret_cast<float*>(take(sizeof(float) * pool_size));
  scratch->pool_size = static_cast<uint32_t>(pool_size);
  return at;
}

template <Operation op>
void run(const Work& work, const Chosen& chosen, uint32_t* count, cudaStream_t stream) {
  Selection* selection = work.scratch.selection;
  check(cudaMemsetAsync(selection, 0, sizeof(Selection), stream), "cudaMemsetAsync");
  if (work.cut.sample_rank != 0) {
    const uint32_t size = work.job.numel < kMaxSample ? static_cast<uint32_t>(work.job.numel) : kMaxSample;
    launch("dance select sample", sample_keys<op>, {divide_up(size, 1024), 1024, stream}, work, size);
  }
  launch("dance select collect", collect<op>, {work.num_tiles, kTileThreads, stream}, work);
  // `known` follows from memory that all groups see, so that either all count or none does.
  const uint64_t groups = divide_up(work.num_tiles, kTileWarps);
  for (uint32_t digit = 0; digit < kNumDigits && work.cut.sample_rank != 0; ++digit) {
    launch("dance select histogram", histogram<op>,
           {groups < kHistogramGrid ? groups : kHistogramGrid, kTileThreads, stream}, work, digit);
  }
  launch("dance select count", count_chosen<op>, {groups, kTileThreads, stream}, work, count);
  scan_counts(work.scratch.counts, work.num_tiles, stream);
  launch("dance select write", write_chosen<op>, {groups, kTileThreads, stream}, work, chosen);
}

}  // namespace

const uint32_t* select_global(Operation operation, const SelectJob& job, const Cut& cut, const Chosen& chosen,
                              int64_t* nonfinite, uint32_t* count, void* scratch, uint64_t expected,
                              cudaStream_t stream) {
  Work work{job, cut, {}, tiles_for(job.numel), nonfinite};
  lay_out(scratch, job.numel, expected, &work.scratch);
  switch (operation) {
    case Operation::encode:
      run<Operation::encode>(work, chosen, count, stream);
      break;
    case Operation::feedback:
      run<Operation::feedback>(work, chosen, count, stream);
      break;
    case Operation::difference:
      run<Operation::difference>(work, chosen, count, stream);
      break;
  }
  return &work.scratch.selection->count;
}

uint64_t select_scratch_nbytes(uint64_t numel, uint64_t expected) {
  Scratch scratch;
  return lay_out(nullptr, numel, expected, &scratch);
}

}  // namespace dance::cuda
