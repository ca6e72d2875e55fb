// The decode half of the CPU driver, and the check of received codes. Included by kernels.cpp alone, once for each CPU
// target.
#pragma once

#include "codecs/operation.h"
#include "cpu/elements.h"
#include "cpu/packing.h"

namespace dance::cpu {
namespace {

template <class Codec>
using CodeOf = typename CodeType<Codec::bits>::Type;

// The codes of block b, one an integer: where they lie, or unpacked into buffer.
template <class Codec>
inline const CodeOf<Codec>* load_codes(const DecodeJob& job, uint64_t b, uint8_t* buffer, uint32_t n) {
  const uint8_t* codes = job.codes + codes_offset<Codec>(b, job.block, job.bits);
  if constexpr (packs_words<Codec>) {
    if (job.bits < 8) {
      unpack(reinterpret_cast<const uint32_t*>(codes), job.bits, buffer, n);
      if (Codec::kVariableBits) extend_sign(buffer, job.bits, n);
      return buffer;
    }
  }
  return reinterpret_cast<const CodeOf<Codec>*>(codes);
}

// Fixed: n where it is known at compile time, else 0.
template <class Codec, bool add, uint32_t Fixed>
inline void decode_codes(const CodeOf<Codec>* __restrict codes, float scale, float weight, float* __restrict out,
                         uint32_t n) {
  for (uint32_t i = 0; i < (Fixed ? Fixed : n); ++i) {
    out[i] = accumulate<add>(add ? out[i] : 0.0f, weight, Codec::decode(codes[i], scale));
  }
}

// Codes of 1, 2 or 4 bits of a block of 32 or 256: the inverse of encode_lanes, in two steps.
template <class Codec, uint32_t Fixed>
inline void spread_words(const uint32_t* __restrict words, uint32_t* __restrict lane) {
  constexpr uint32_t num_words = Fixed * Codec::bits / 32;
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kLanes / num_words; ++j) {
    for (uint32_t w = 0; w < num_words; ++w) lane[j * num_words + w] = words[w] >> j * Codec::bits;
  }
}

template <class Codec, bool add, uint32_t Fixed>
inline void decode_lanes(const uint32_t* __restrict lane, float scale, float weight, float* __restrict out) {
  constexpr uint32_t mask = (1u << Codec::bits % 32) - 1, step = 32 / (Fixed / kLanes);
  for (uint32_t l = 0; l < kLanes; ++l) {
#pragma GCC unroll 8
    for (uint32_t t = 0; t < Fixed / kLanes; ++t) {
      float* to = out + t * kLanes + l;
      *to = accumulate<add>(add ? *to : 0.0f, weight, Codec::decode(lane[l] >> t * step & mask, scale));
    }
  }
}

template <class Codec>
inline float scale_of(const DecodeJob& job, uint64_t b) {
  if constexpr (!has_scales<Codec>) return 1.0f;
  return scale_value(static_cast<const typename Codec::Scale*>(job.scales)[b]);
}

// num blocks of n elements, the first of which is block b of the array. Fixed: n where it is known at compile time.
template <class Codec, bool add, uint32_t Fixed>
inline void decode_group(const DecodeJob& job, uint64_t b, uint32_t num, float* out, uint32_t n) {
  if constexpr (packs_words<Codec> && !Codec::kVariableBits && Fixed != 0) {
    // All blocks at once: short stores that a longer load follows at once would stall it.
    alignas(64) uint32_t lane[kGroup / Fixed * kLanes];
    const uint32_t* words = reinterpret_cast<const uint32_t*>(job.codes) + b * (Fixed * Codec::bits / 32);
    for (uint32_t i = 0; i < num; ++i) {
      spread_words<Codec, Fixed>(words + i * (Fixed * Codec::bits / 32), lane + i * kLanes);
    }
    for (uint32_t i = 0; i < num; ++i) {
      decode_lanes<Codec, add, Fixed>(lane + i * kLanes, scale_of<Codec>(job, b + i), job.weight, out + i * Fixed);
    }
  } else {
    alignas(64) uint8_t unpacked[kMaxBlock];
    for (uint32_t i = 0; i < num; ++i) {
      const auto* codes = load_codes<Codec>(job, b + i, unpacked, n);
      if constexpr (sends_halves<Codec>) {
        alignas(64) float values[add ? kChunk : 1];
        float* to = out + i * n;
        if (widen_halves(codes, add ? values : to, n, job.weight)) {
          for (uint32_t e = 0; add && e < n; ++e) to[e] = add_finite(to[e], values[e]);
          continue;
        }
      }
      decode_codes<Codec, add, Fixed>(codes, scale_of<Codec>(job, b + i), job.weight, out + i * n, n);
    }
  }
}

template <class Codec, bool add>
void decode_blocks(const DecodeJob& job, uint64_t first, uint64_t last) {
  constexpr uint32_t fixed = fixed_block<Codec>;
  alignas(64) float converted[kMaxBlock];
  const Blocks blocks{job.numel, job.block};
  for (uint64_t b = first, num; b < last; b += num) {
    const bool grouped = job.block == fixed && b < blocks.num_full();
    num = grouped ? blocks.group(b, last, kGroup / fixed) : 1;
    const uint32_t n = blocks.size(b), size = n * static_cast<uint32_t>(num);
    const uint64_t at = b * job.block - job.begin;
    float* out = job.dtype == Dtype::float32 ? static_cast<float*>(job.out) + at : converted;
    if (add && job.dtype != Dtype::float32) load_elements(job.out, job.dtype, at, converted, size);
    if (grouped) {
      decode_group<Codec, add, fixed>(job, b, static_cast<uint32_t>(num), out, fixed);
    } else {
      decode_group<Codec, add, 0>(job, b, 1, out, n);
    }
    store_elements(out, job.out, job.dtype, at, size);
  }
}

// Whether an encoder makes such codes. Where they are fractions of a word, words are looked at as they lie: it does not
// matter whose code is wrong, and the padding of the last one has been seen to be zero, which is a code everywhere.
template <class Codec>
bool check_blocks(const DecodeJob& job, uint32_t levels, uint64_t first, uint64_t last) {
  const Blocks blocks{job.numel, job.block};
  uint32_t wrong = 0;
  if constexpr (packs_words<Codec> && !Codec::kVariableBits) {
    constexpr uint32_t mask = (1u << Codec::bits) - 1;
    const auto* words = reinterpret_cast<const uint32_t*>(job.codes);
    const uint64_t each = words_of(job.block, Codec::bits);
    const uint64_t end =
        last == first ? first * each : (last - 1) * each + words_of(blocks.size(last - 1), Codec::bits);
    for (uint64_t w = first * each; w < end; ++w) {
      for (uint32_t at = 0; at < 32; at += Codec::bits) {
        wrong |= Codec::valid(words[w] >> at & mask, levels) ? 0u : 1u;
      }
    }
  } else {
    alignas(64) uint8_t unpacked[kMaxBlock];
    for (uint64_t b = first; b < last; ++b) {
      const uint32_t n = blocks.size(b);
      const auto* codes = load_codes<Codec>(job, b, unpacked, n);
      for (uint32_t i = 0; i < n; ++i) wrong |= Codec::valid(codes[i], levels) ? 0u : 1u;
    }
  }
  return wrong == 0;
}

}  // namespace
}  // namespace dance::cpu
