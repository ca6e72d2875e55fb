// The encode half of the CPU driver: one loop over blocks for every dense codec and operation. Included by kernels.cpp
// alone, once for each CPU target.
#pragma once

#include "codecs/operation.h"
#include "cpu/elements.h"
#include "cpu/noise.h"
#include "cpu/packing.h"

namespace dance::cpu {
namespace {

// Trip counts known at compile time for full blocks of the default size; Fixed == 0 means: only known at run time.
template <uint32_t Fixed>
inline __attribute__((always_inline)) uint32_t count(uint32_t n) {
  return Fixed ? Fixed : n;
}

// v of element i. The second pass over a block computes it again: both arrays are in L1, and a buffer for it would cost
// a store, which is dearer than a load.
template <Operation op>
inline __attribute__((always_inline)) float value_at(const float* x, const float* state, uint32_t i) {
  return combine<op>(x[i], op == Operation::encode ? 0.0f : state[i]);
}

// The largest magnitude of the block as bits.
template <Operation op, uint32_t Fixed>
inline uint32_t load_max(const float* __restrict x, const float* __restrict state, uint32_t n) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    const uint32_t size = magnitude(value_at<op>(x, state, i));
    largest = size > largest ? size : largest;
  }
  return largest;
}

// The sum of term(i) in the fixed shape of base/reduce.h.
template <uint32_t Fixed, class Term>
inline float striped_sum(uint32_t n, Term&& term) {
  float lane[kLanes] = {};
  const uint32_t striped = count<Fixed>(n) / kLanes * kLanes;
  for (uint32_t i = 0; i < striped; i += kLanes) {
    for (uint32_t l = 0; l < kLanes; ++l) lane[l] += term(i + l);
  }
  for (uint32_t i = striped; i < count<Fixed>(n); ++i) lane[i - striped] += term(i);
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

template <Operation op>
int64_t first_nonfinite(const float* x, const float* state, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) {
    if (!is_finite(value_at<op>(x, state, i))) return i;
  }
  return -1;
}

// Codecs without scales: a non-finite element is sent as zero and its state kept. Returns the largest magnitude.
template <class Codec, Operation op, uint32_t Fixed>
inline uint32_t encode_plain(const float* __restrict x, float* __restrict state, float* __restrict v,
                             uint8_t* __restrict codes, uint32_t n) {
  using Code = typename CodeType<Codec::bits>::Type;
  auto* __restrict out = reinterpret_cast<Code*>(codes);
  const typename Codec::Coder coder = Codec::coder(0.0f, n, 0);
  uint32_t largest = 0;
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    const float old = op == Operation::encode ? 0.0f : state[i];
    const float value = combine<op>(x[i], old);
    if (op != Operation::encode) v[i] = value;
    const uint32_t size = magnitude(value);
    largest = size > largest ? size : largest;
    const float sent = size < kInfinityBits ? value : 0.0f;
    const Coded coded = Codec::encode(coder, sent, 0);
    out[i] = static_cast<Code>(coded.code);
    if (op != Operation::encode) {
      const float next = next_state<op>(old, sent, coded.decoded);
      state[i] = size < kInfinityBits ? next : kept_state<op>(old);
    }
  }
  return largest;
}

// Codes of 16 bits of v = x; false where they are to be written anew: by encode_plain, which also knows where v is not
// finite.
template <class Codec>
inline bool encode_finite(const float* x, uint8_t* codes, uint32_t n) {
  auto* to = reinterpret_cast<uint16_t*>(codes);
  return Codec::id == Fp16::id ? narrow_halves(x, to, n) : narrow_bfloats(x, to, n);
}

// encode_plain with a state and for codes that are float16 numbers, in passes over L1, so that instructions can convert
// them.
template <Operation op>
inline uint32_t encode_halves(const float* __restrict x, float* __restrict state, float* __restrict v,
                              uint8_t* __restrict codes, uint32_t n) {
  alignas(64) float decoded[kChunk];
  for (uint32_t i = 0; i < n; ++i) decoded[i] = value_at<op>(x, state, i);
  if (!encode_finite<Fp16>(decoded, codes, n)) return encode_plain<Fp16, op, 0>(x, state, v, codes, n);
  widen_halves(reinterpret_cast<const uint16_t*>(codes), decoded, n, 1.0f);
  for (uint32_t i = 0; i < n; ++i) state[i] = next_state<op>(state[i], value_at<op>(x, state, i), decoded[i]);
  return 0;
}

// Codes of a byte, in the order of the elements.
template <class Codec, Operation op, uint32_t Fixed>
inline void encode_bytes(typename Codec::Coder coder, const float* __restrict x, float* __restrict state,
                         const uint16_t* __restrict noise, uint8_t* __restrict codes, uint32_t n) {
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    const float v = value_at<op>(x, state, i);
    const Coded coded = Codec::encode(coder, v, Codec::kStochastic ? noise[i] : 0);
    codes[i] = static_cast<uint8_t>(coded.code);
    if (op != Operation::encode) state[i] = next_state<op>(state[i], v, coded.decoded);
  }
}

// Codes of 1, 2 or 4 bits of a block of 32 or 256, without a detour over bytes: lane l of 32 collects the
// elements l, l + 32, l + 64, ... as fields of a word, then the lanes of one word are joined.
template <class Codec, Operation op, uint32_t Fixed>
inline void encode_lanes(typename Codec::Coder coder, const float* __restrict x, float* __restrict state,
                         const uint16_t* __restrict noise, uint32_t* __restrict words) {
  constexpr uint32_t mask = (1u << Codec::bits % 32) - 1;
  constexpr uint32_t num_words = Fixed * Codec::bits / 32, per_word = kLanes / num_words;
  alignas(64) uint32_t lane[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t word = 0;
#pragma GCC unroll 8
    for (uint32_t t = 0; t < Fixed / kLanes; ++t) {
      const uint32_t i = t * kLanes + l;
      const float v = value_at<op>(x, state, i);
      const Coded coded = Codec::encode(coder, v, Codec::kStochastic ? noise[i] : 0);
      word |= (coded.code & mask) << t * per_word * Codec::bits;
      if (op != Operation::encode) state[i] = next_state<op>(state[i], v, coded.decoded);
    }
    lane[l] = word;
  }
  for (uint32_t w = 0; w < num_words; ++w) {
    uint32_t word = lane[w];
#pragma GCC unroll 8
    for (uint32_t j = 1; j < per_word; ++j) word |= lane[w + j * num_words] << j * Codec::bits;
    words[w] = word;
  }
}

struct Scratch {
  alignas(64) float x[kMaxBlock], state[kMaxBlock], v[kChunk];
  alignas(64) uint16_t noise[kNoiseSize];
  alignas(64) uint8_t codes[kMaxBlock];
};

// The statistic of a block; infinite or NaN where the block holds such a value.
template <class Codec, Operation op, uint32_t Fixed>
inline float measure(const float* x, const float* state, uint32_t n) {
  if constexpr (Codec::statistic == Statistic::sum_abs) {
    return striped_sum<Fixed>(n, [&](uint32_t i) { return summand(value_at<op>(x, state, i)); });
  } else {
    const uint32_t largest = load_max<op, Fixed>(x, state, n);
    if (Codec::statistic == Statistic::max_abs || largest >= kInfinityBits) return bits_float(largest);
    const float factor = l2_factor(largest);
    const auto term = [&](uint32_t i) { return l2_summand(value_at<op>(x, state, i), factor); };
    return l2_norm(striped_sum<Fixed>(n, term), largest);
  }
}

// One block of a codec with scales and finite values.
template <class Codec, Operation op, uint32_t Fixed>
inline void encode_block(const EncodeJob& job, Scratch& scratch, typename Codec::Coder coder, const float* x,
                         float* state, const uint16_t* noise, uint8_t* codes, uint32_t n) {
  if constexpr (packs_words<Codec> && !Codec::kVariableBits && Fixed != 0) {
    encode_lanes<Codec, op, Fixed>(coder, x, state, noise, reinterpret_cast<uint32_t*>(codes));
  } else {
    const bool words = packs_words<Codec> && job.bits < 8;
    encode_bytes<Codec, op, Fixed>(coder, x, state, noise, words ? scratch.codes : codes, n);
    if (words) pack(scratch.codes, job.bits, reinterpret_cast<uint32_t*>(codes), n);
  }
}

// First the statistics of all blocks, then their coders, then their codes: the latency of the reductions and divisions
// of one block is hidden behind the work on others. num blocks of n elements each, the first of which is block b of the
// array; returns the offset of the first non-finite element, or -1. A bad block is sent as zeros and its state kept.
template <class Codec, Operation op, uint32_t Fixed>
inline int64_t encode_group(const EncodeJob& job, Scratch& scratch, uint64_t b, uint32_t num, const float* x,
                            float* state, uint32_t n) {
  constexpr uint32_t most = kGroup / (Fixed ? Fixed : kGroup);
  float statistic[most];
  typename Codec::Coder coder[most];
  auto* scales = static_cast<typename Codec::Scale*>(job.scales) + b;
  const uint64_t codes_nbytes = codes_offset<Codec>(1, job.block, job.bits);
  uint8_t* codes = job.codes + b * codes_nbytes;
  const uint16_t* noise =
      Codec::kStochastic ? fill_noise(job.seed, b * job.block, scratch.noise, num * n) : scratch.noise;
  // Tried: folding the lanes of eight blocks together, by shuffles of pairs of vectors: no faster from L2.
  for (uint32_t i = 0; i < num; ++i) {
    statistic[i] = measure<Codec, op, Fixed>(x + i * n, state + i * n, n);
  }
  uint32_t largest = 0;
  for (uint32_t i = 0; i < num; ++i) {
    const uint32_t size = magnitude(statistic[i]);
    largest = size > largest ? size : largest;
    coder[i] = Codec::coder(statistic[i], n, job.levels);
    scales[i] = coder[i].scale;
  }
  if (__builtin_expect(largest < kInfinityBits, 1)) {
    for (uint32_t i = 0; i < num; ++i) {
      encode_block<Codec, op, Fixed>(job, scratch, coder[i], x + i * n, state + i * n, noise + i * n,
                                     codes + i * codes_nbytes, n);
    }
    return -1;
  }
  int64_t bad = -1;
  for (uint32_t i = 0; i < num; ++i) {
    if (is_finite(statistic[i])) {
      encode_block<Codec, op, 0>(job, scratch, coder[i], x + i * n, state + i * n, noise + i * n,
                                 codes + i * codes_nbytes, n);
      continue;
    }
    scales[i] = 0;
    const uint64_t size = packs_words<Codec> && job.bits < 8 ? 4 * words_of(n, job.bits) : n;
    for (uint64_t at = 0; at < size; ++at) codes[i * codes_nbytes + at] = 0;
    if (bad < 0) bad = i * n + first_nonfinite<op>(x + i * n, state + i * n, n);
    for (uint32_t e = i * n; op == Operation::difference && e < (i + 1) * n; ++e) state[e] = kept_state<op>(state[e]);
  }
  return bad;
}

template <class Codec, Operation op>
int64_t encode_blocks(const EncodeJob& job, uint64_t first, uint64_t last) {
  constexpr uint32_t fixed = fixed_block<Codec>;
  Scratch scratch;
  int64_t bad = -1;
  const Blocks blocks{job.numel, job.block};
  for (uint64_t b = first, num; b < last; b += num) {
    const uint64_t start = b * job.block, at = start - job.begin;
    const bool grouped = job.block == fixed && b < blocks.num_full();
    num = grouped ? blocks.group(b, last, kGroup / fixed) : 1;
    const uint32_t n = blocks.size(b), size = n * static_cast<uint32_t>(num);
    const float* x = load_elements(job.x, job.dtype, at, scratch.x, size);
    float* state = scratch.state;
    if (op != Operation::encode) {
      state = const_cast<float*>(load_elements(job.state, job.state_dtype, at, scratch.state, size));
    }
    int64_t offset = -1;
    if constexpr (has_scales<Codec>) {
      offset = grouped ? encode_group<Codec, op, fixed>(job, scratch, b, static_cast<uint32_t>(num), x, state, fixed)
                       : encode_group<Codec, op, 0>(job, scratch, b, 1, x, state, n);
    } else {
      for (uint32_t i = 0; i < num; ++i) {
        uint8_t* codes = job.codes + codes_offset<Codec>(b + i, job.block, job.bits);
        const uint32_t from = i * fixed;
        uint32_t largest;
        if constexpr (op != Operation::encode && sends_halves<Codec>) {
          largest = encode_halves<op>(x + from, state + from, scratch.v, codes, n);
        } else {
          if (op == Operation::encode && Codec::bits == 16 && encode_finite<Codec>(x + from, codes, n)) continue;
          largest = grouped ? encode_plain<Codec, op, fixed>(x + from, state + from, scratch.v, codes, fixed)
                            : encode_plain<Codec, op, 0>(x, state, scratch.v, codes, n);
        }
        if (__builtin_expect(largest >= kInfinityBits, 0) && offset < 0) {
          offset =
              from + first_nonfinite<Operation::encode>(op == Operation::encode ? x + from : scratch.v, nullptr, n);
        }
      }
    }
    if (op != Operation::encode) store_elements(state, job.state, job.state_dtype, at, size);
    if (offset >= 0 && bad < 0) bad = static_cast<int64_t>(start) + offset;
  }
  return bad;
}

}  // namespace
}  // namespace dance::cpu
