// Coding and reading the indices of sparse packets (indices.h). Every word, and every index, is computed by itself from
// the whole input, so that nothing depends on the order of threads.
#include "indices.h"

#include "check.h"
#include "scan.h"
#include "warp.h"

namespace dance::cuda {
namespace {

// Words of the bit vector that one warp reads.
constexpr uint32_t kPartWords = 256;

__device__ __forceinline__ uint64_t first_thread() { return uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ uint64_t num_threads() { return uint64_t{gridDim.x} * blockDim.x; }

Launch per_thread(uint64_t amount, cudaStream_t stream) { return {amount / kThreads + 1, kThreads, stream}; }

// Word w of the low bits of all indices, one after the other.
__device__ __forceinline__ uint32_t low_word(const uint32_t* indices, const EliasFano& code, uint64_t w) {
  const uint32_t bits = code.low_bits, mask = (1u << bits) - 1u;  // bits < 32, as numel < 2^32
  const uint64_t begin = 32 * w;
  uint32_t word = 0;
  for (uint64_t i = begin / bits; i < code.count && i * bits < begin + 32; ++i) {
    const uint32_t low = indices[i] & mask;
    word |= i * bits >= begin ? low << (i * bits - begin) : low >> (begin - i * bits);
  }
  return word;
}

// Word w of the bit vector: bit (index_i >> low_bits) + i is set for each i.
__device__ __forceinline__ uint32_t high_word(const uint32_t* indices, const EliasFano& code, uint64_t w) {
  const auto position = [&](uint64_t i) { return uint64_t{indices[i] >> code.low_bits} + i; };
  // The first index whose bit lies in this word or behind it.
  uint64_t first = 0, last = code.count;
  while (first < last) {
    const uint64_t middle = (first + last) / 2;
    if (position(middle) < 32 * w) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  uint32_t word = 0;
  for (uint64_t i = first; i < code.count && position(i) < 32 * w + 32; ++i) word |= 1u << (position(i) - 32 * w);
  return word;
}

__global__ void __launch_bounds__(kThreads)
    write_words(const uint32_t* indices, uint64_t numel, uint64_t count, Values values, uint32_t* words) {
  if (values.count != nullptr) count = *values.count < count ? *values.count : count;
  const EliasFano code(numel, count);
  for (uint64_t w = first_thread(); w < code.low_words + code.high_words; w += num_threads()) {
    words[w] = w < code.low_words ? low_word(indices, code, w) : high_word(indices, code, w - code.low_words);
  }
}

__global__ void __launch_bounds__(kThreads) count_ones(const uint32_t* high, EliasFano code, Counts* parts) {
  const Warp warp;
  for (uint64_t p = Warp::first(); p * kPartWords < code.high_words; p += Warp::stride()) {
    uint32_t ones = 0;
#pragma unroll
    for (uint32_t t = 0; t < kPartWords; t += kLanes) {
      const uint64_t w = p * kPartWords + t + warp.lane;
      ones += w < code.high_words ? static_cast<uint32_t>(__popc(high[w])) : 0u;
    }
    ones = warp.sum(ones);
    if (warp.lane == 0) parts[p] = {ones, 0};
  }
}

// Index i lies at the i-th one. Fewer ones than indices leave the rest out of range.
__global__ void __launch_bounds__(kThreads)
    read_words(const uint32_t* low, EliasFano code, const Counts* parts, uint32_t* indices) {
  const Warp warp;
  const uint32_t* high = low + code.low_words;
  const uint32_t mask = (1u << code.low_bits) - 1u;
  for (uint64_t p = Warp::first(); p * kPartWords < code.high_words; p += Warp::stride()) {
    uint64_t before = parts[p].above;
    for (uint32_t t = 0; t < kPartWords; t += kLanes) {
      const uint64_t w = p * kPartWords + t + warp.lane;
      uint32_t word = w < code.high_words ? high[w] : 0u;
      const uint32_t ones = static_cast<uint32_t>(__popc(word)), prefix = warp.prefix_sum(ones);
      uint64_t i = before + prefix - ones;
      for (; word != 0 && i < code.count; word &= word - 1, ++i) {
        const uint64_t top = 32 * w + static_cast<uint32_t>(__ffs(static_cast<int>(word)) - 1) - i;
        uint32_t rest = 0;
        if (code.low_bits > 0) {
          // The second word is there: low words are followed by at least one of the bit vector.
          const uint64_t bit = i * code.low_bits;
          const uint64_t two = low[bit / 32] | uint64_t{low[bit / 32 + 1]} << 32;
          rest = static_cast<uint32_t>(two >> (bit % 32)) & mask;
        }
        const uint64_t index = top << code.low_bits | rest;
        indices[i] = index < code.numel ? static_cast<uint32_t>(index) : 0xffffffffu;
      }
      before += warp.shuffle(prefix, kLanes - 1);
    }
    const bool last = (p + 1) * kPartWords >= code.high_words;
    for (uint64_t i = before + warp.lane; last && i < code.count; i += kLanes) indices[i] = 0xffffffffu;
  }
}

__global__ void __launch_bounds__(kThreads)
    add_blocks(const uint16_t* in_block, uint32_t scope, uint32_t count, uint64_t total, uint32_t* indices) {
  for (uint64_t i = first_thread(); i < total; i += num_threads()) {
    const uint64_t index = i / count * scope + in_block[i];
    indices[i] = in_block[i] < scope && index <= 0xffffffffu ? static_cast<uint32_t>(index) : 0xffffffffu;
  }
}

__global__ void __launch_bounds__(kThreads)
    draw_strata(uint64_t seed, uint64_t numel, uint32_t scope, uint32_t count, uint64_t total, uint32_t* indices) {
  for (uint64_t i = first_thread(); i < total; i += num_threads()) {
    const uint64_t b = scope == 0 ? 0 : i / count, begin = b * scope, left = numel - begin;
    const uint64_t n = scope == 0 || left < scope ? left : scope;
    const uint64_t k = scope == 0 ? total : count_of_block(n, scope, count);
    indices[i] = static_cast<uint32_t>(begin + stratified_index(seed_of_block(seed, b), i - b * count, k, n));
  }
}

}  // namespace

void write_elias_fano(const uint32_t* indices, uint64_t numel, uint64_t count, Values values, uint8_t* payload,
                      cudaStream_t stream) {
  Launch how = per_thread(EliasFano(numel, count).num_bytes() / 4, stream);
  if (values.count != nullptr && how.grid > kFullGrid) how.grid = kFullGrid;
  launch("dance indices", write_words, how, indices, numel, count, values, reinterpret_cast<uint32_t*>(payload));
}

uint64_t elias_fano_scratch_nbytes(uint64_t numel, uint64_t count) {
  return divide_up(EliasFano(numel, count).high_words, kPartWords) * sizeof(Counts);
}

void read_elias_fano(const uint8_t* payload, uint64_t numel, uint64_t count, uint32_t* indices, void* scratch,
                     cudaStream_t stream) {
  const EliasFano code(numel, count);
  const auto* low = reinterpret_cast<const uint32_t*>(payload);
  auto* parts = static_cast<Counts*>(scratch);
  const uint64_t num_parts = divide_up(code.high_words, kPartWords);
  const Launch how{num_parts / (kThreads / kLanes) + 1, kThreads, stream};
  launch("dance indices", count_ones, how, low + code.low_words, code, parts);
  scan_counts(parts, num_parts, stream);
  launch("dance indices", read_words, how, low, code, parts, indices);
}

void read_block_indices(const uint16_t* in_block, uint32_t scope, uint32_t count, uint64_t total, uint32_t* indices,
                        cudaStream_t stream) {
  launch("dance indices", add_blocks, per_thread(total, stream), in_block, scope, count, total, indices);
}

void draw_indices(uint64_t seed, uint64_t numel, uint32_t scope, uint32_t count, uint64_t total, uint32_t* indices,
                  cudaStream_t stream) {
  launch("dance indices", draw_strata, per_thread(total, stream), seed, numel, scope, count, total, indices);
}

}  // namespace dance::cuda
