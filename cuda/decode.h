// How a warp decodes a row of elements of a dense payload.
#pragma once

#include "dense.h"
#include "rows.h"
#include "words.h"

namespace dance::cuda {

// What a warp takes at a time: a row of several blocks, or one block of one row or more.
struct Span {
  uint32_t block, size, shift;
  bool several;  // blocks in a row; then their number and that of an element follow from shifts

  __device__ __forceinline__ explicit Span(uint32_t block_)
      : block(block_),
        size(kRow % block_ == 0 ? kRow : block_),
        shift(block_ == 32   ? 5
              : block_ == 64 ? 6
                             : 7),
        several(block_ < kRow && kRow % block_ == 0) {}
  // The block of element e of the span.
  __device__ __forceinline__ uint32_t block_of(uint32_t e) const { return several ? e >> shift : 0u; }
  __device__ __forceinline__ uint64_t tasks(uint64_t numel) const { return divide_up(numel, size); }
};

// Elements [start, start + n), of the blocks from first_block on.
struct Task {
  uint64_t start, first_block;
  uint32_t n, num_full;  // elements, and whole blocks

  __device__ __forceinline__ Task(const Span& span, uint64_t number, uint64_t numel)
      : start(number * span.size), first_block(span.several ? number * (kRow >> span.shift) : number) {
    const uint64_t left = numel - start;
    n = left < span.size ? static_cast<uint32_t>(left) : span.size;
    num_full = span.several ? n >> span.shift : n / span.size;
  }
};

__device__ __forceinline__ uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// The payload with the count that the device knows; `codes` and `numel` are replaced.
template <class Codec>
__device__ __forceinline__ void place_values(const Values& values, uint32_t block, uint32_t bits, uint8_t*& codes,
                                             void*& scales, uint64_t& numel) {
  if (values.count == nullptr) return;
  const uint64_t count = *values.count;
  numel = count < numel ? count : numel;
  codes += EliasFano(values.numel, numel).num_bytes();
  scales = codes + codes_nbytes<Codec>(numel, block, bits);
}

template <class Codec>
struct Decoder {
  const uint8_t* codes;
  const void* scales;
  Span span;
  WordLayout full;  // of whole blocks
  uint32_t bits;

  __device__ __forceinline__ Decoder(const uint8_t* codes_, const void* scales_, uint32_t block, uint32_t bits_)
      : codes(codes_), scales(scales_), span(block), full(block, bits_), bits(bits_) {}

  __device__ __forceinline__ bool packed() const { return packs_words<Codec> && (!Codec::kVariableBits || bits < 8); }

  // Row r of a task; v is 0 behind the end.
  __device__ __forceinline__ void row(const Warp& warp, const Task& task, uint32_t r, float (&v)[kHeld]) const {
    const uint32_t first = r * kRow;
    uint32_t code[kHeld];
    if (packed()) {
      load_packed(warp, task, first, code);
    } else {
      load_whole(warp, task.start + first, task.n - first, code);
    }
#pragma unroll
    for (uint32_t t = 0; t < kHeld; t += 4) {
      const uint32_t e = first + place_of(warp.lane, t);
      float scale = 1.0f;
      if constexpr (has_scales<Codec>) {
        // All four elements lie in one block.
        const auto* from = static_cast<const typename Codec::Scale*>(scales) + task.first_block;
        if (e < task.n) scale = scale_value(from[span.block_of(e)]);
      }
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) v[t + c] = e + c < task.n ? Codec::decode(code[t + c], scale) : 0.0f;
    }
  }

 private:
  __device__ __forceinline__ void load_packed(const Warp& warp, const Task& task, uint32_t first,
                                              uint32_t (&code)[kHeld]) const {
    // Straight from memory: the words of a row lie in a few lines, which the first access brings to L1.
    const uint32_t words_of_block = static_cast<uint32_t>(words_of(span.block, bits));
    const uint32_t* words = reinterpret_cast<const uint32_t*>(codes) + task.first_block * words_of_block;
    const uint32_t in_tail = task.n - task.num_full * span.block;
    const WordLayout tail = in_tail == 0 ? full : WordLayout(in_tail, bits);
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      const uint32_t e = first + place_of(warp.lane, t);
      const uint32_t block = span.block_of(e);
      code[t] = 0;
      if (e >= task.n) continue;
      const uint32_t* from = words + block * words_of_block;
      const uint32_t inside = e - block * span.block;
      code[t] = block < task.num_full ? full.code(from, inside) : tail.code(from, inside);
      if constexpr (Codec::kVariableBits) {
        code[t] = static_cast<uint32_t>(static_cast<int32_t>(code[t] << (32 - bits)) >> (32 - bits));
      }
    }
  }

  __device__ __forceinline__ void load_whole(const Warp& warp, uint64_t start, uint32_t n,
                                             uint32_t (&code)[kHeld]) const {
    constexpr uintptr_t alignment = Codec::bits > 8 ? Codec::bits / 2 : 4;
    const bool wide = span.block % 4 == 0 && reinterpret_cast<uintptr_t>(codes) % alignment == 0;
    if constexpr (Codec::bits == 32) {
      const Raw raw = load_raw(warp, codes, Dtype::float32, start, n < kRow ? n : kRow, wide);
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) code[t] = raw.word[t];
    } else if constexpr (Codec::bits == 16) {
      const Raw raw = load_raw(warp, codes, Dtype::float16, start, n < kRow ? n : kRow, wide);
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) code[t] = raw.word[t / 2] >> (16 * (t % 2)) & 0xffffu;
    } else if (wide && n >= kRow) {
      const uint32_t* from = reinterpret_cast<const uint32_t*>(codes + start);
      const uint32_t four[2] = {from[warp.lane], from[warp.lane + kLanes]};
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) code[t] = four[t / 4] >> (8 * (t % 4)) & 0xffu;
    } else {
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) {
        const uint32_t e = place_of(warp.lane, t);
        code[t] = e < n ? codes[start + e] : 0u;
      }
    }
  }
};

// The weighted sum of one row of all packets: the first is written, or added to what v holds; the others are added.
template <class Codec>
__device__ __forceinline__ void sum_row(const Warp& warp, const Packets& packets, Decoder<Codec>& decoder,
                                        const Task& task, uint32_t r, bool add, float (&v)[kHeld]) {
  // The codes of two packets are under way at once, but for those in words, which take many registers.
#pragma unroll(packs_words<Codec> ? 1 : 2)
  for (uint32_t p = 0; p < packets.count; ++p) {
    decoder.codes = packets.payload[p];
    decoder.scales = decoder.codes + packets.codes_nbytes;
    float decoded[kHeld];
    decoder.row(warp, task, r, decoded);
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      v[t] = p == 0 && !add ? accumulate<false>(0.0f, packets.weight, decoded[t])
                            : accumulate<true>(v[t], packets.weight, decoded[t]);
    }
  }
}

}  // namespace dance::cuda
