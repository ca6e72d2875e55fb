// The CPU driver: loops over blocks for every dense codec, and the passes of the top-k selector. Compiled once for each
// target of cmake/cpu_targets.cmake with DANCE_TARGET set; plain loops that the compiler vectorises for that target.
#include "cpu/kernels.h"

#include "codecs/list.h"

#define DANCE_JOIN(a, b) a##b
#define DANCE_TARGET_FUNCTION(target) DANCE_JOIN(kernels_, target)
#define DANCE_TARGET_NAME(target) #target
#define DANCE_TARGET_STRING(target) DANCE_TARGET_NAME(target)

namespace dance::cpu {
namespace {

// Trip counts known at compile time for full blocks of the default size; Fixed == 0 means: only known at run time.
template <uint32_t Fixed>
inline __attribute__((always_inline)) uint32_t count(uint32_t n) {
  return Fixed ? Fixed : n;
}

// Writes v = combine(x, state) and returns the largest magnitude of the block as bits.
template <Operation op, uint32_t Fixed>
inline uint32_t load_max(const float* __restrict x, const float* __restrict state, float* __restrict v, uint32_t n) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    const float value = combine<op>(x[i], op == Operation::encode ? 0.0f : state[i]);
    if (op != Operation::encode) v[i] = value;
    const uint32_t size = magnitude(value);
    largest = size > largest ? size : largest;
  }
  return largest;
}

// Writes v and returns the sum of summand(v) in the fixed shape of base/reduce.h.
template <Operation op, uint32_t Fixed>
inline float load_sum(const float* __restrict x, const float* __restrict state, float* __restrict v, uint32_t n) {
  float lane[kLanes] = {};
  const uint32_t striped = count<Fixed>(n) / kLanes * kLanes;
  for (uint32_t i = 0; i < striped; i += kLanes) {
    for (uint32_t l = 0; l < kLanes; ++l) {
      const float value = combine<op>(x[i + l], op == Operation::encode ? 0.0f : state[i + l]);
      if (op != Operation::encode) v[i + l] = value;
      lane[l] += summand(value);
    }
  }
  for (uint32_t i = striped; i < count<Fixed>(n); ++i) {
    const float value = combine<op>(x[i], op == Operation::encode ? 0.0f : state[i]);
    if (op != Operation::encode) v[i] = value;
    lane[i - striped] += summand(value);
  }
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

inline int64_t first_nonfinite(const float* v, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) {
    if (!is_finite(v[i])) return i;
  }
  return -1;
}

template <class Codec>
inline __attribute__((always_inline)) void store_code(uint8_t* __restrict codes, uint32_t i, uint32_t code) {
  if (Codec::bits == 8) codes[i] = static_cast<uint8_t>(code);
  if (Codec::bits == 16) reinterpret_cast<uint16_t*>(codes)[i] = static_cast<uint16_t>(code);
  if (Codec::bits == 32) reinterpret_cast<uint32_t*>(codes)[i] = code;
}

template <class Codec>
inline __attribute__((always_inline)) uint32_t load_code(const uint8_t* __restrict codes, uint32_t i) {
  if (Codec::bits == 8) return codes[i];
  if (Codec::bits == 16) return reinterpret_cast<const uint16_t*>(codes)[i];
  return reinterpret_cast<const uint32_t*>(codes)[i];
}

// Codes of a whole byte or more, in the order of the elements.
template <class Codec, Operation op, uint32_t Fixed>
inline void encode_bytes(typename Codec::Coder coder, const float* __restrict v, float* __restrict state,
                         uint8_t* __restrict codes, uint32_t n) {
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    const Coded coded = Codec::encode(coder, v[i]);
    store_code<Codec>(codes, i, coded.code);
    if (op != Operation::encode) state[i] = next_state<op>(state[i], v[i], coded.decoded);
  }
}

// Codes of less than a byte: word w holds elements w, w + W, w + 2W, ... The state is updated in a loop of its own, at
// full vector width: the loop over words has only 8 lanes for one bit.
template <class Codec, Operation op, uint32_t Fixed>
inline void encode_words(typename Codec::Coder coder, const float* __restrict v, float* __restrict state,
                         uint32_t* __restrict words, uint32_t n) {
  const uint32_t num_words = static_cast<uint32_t>(words_of<Codec>(count<Fixed>(n)));
  if (num_words == 0) return;
  uint32_t packed[Fixed ? Fixed * Codec::bits / 32 : kMaxBlock * Codec::bits / 32] = {};
  const uint32_t full = count<Fixed>(n) / num_words;
  for (uint32_t slot = 0; slot <= full; ++slot) {
    const uint32_t base = slot * num_words;
    const uint32_t here = slot < full ? num_words : count<Fixed>(n) - base;
    for (uint32_t w = 0; w < here; ++w)
      packed[w] |= Codec::encode(coder, v[base + w]).code << (slot * Codec::bits & 31u);
  }
  for (uint32_t w = 0; w < num_words; ++w) words[w] = packed[w];
  if (op == Operation::encode) return;
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    state[i] = next_state<op>(state[i], v[i], Codec::encode(coder, v[i]).decoded);
  }
}

template <class Codec>
inline uint8_t* codes_at(uint8_t* codes, uint64_t b, uint32_t block) {
  return codes + b * (packs_words<Codec> ? 4 * words_of<Codec>(block) : uint64_t{block} * (Codec::bits / 8));
}

template <class Codec>
inline void zero_codes(uint8_t* codes, uint32_t n) {
  const uint64_t bytes = packs_words<Codec> ? 4 * words_of<Codec>(n) : uint64_t{n} * (Codec::bits / 8);
  for (uint64_t i = 0; i < bytes; ++i) codes[i] = 0;
}

// One block; returns the offset of its first non-finite element, or -1. A bad block of a codec with scales is sent as
// zeros and its state stays; a codec without scales skips just the bad elements.
template <class Codec, Operation op, uint32_t Fixed>
inline int64_t encode_block(const float* x, float* state, uint8_t* codes, float* scale, float* buffer, uint32_t n) {
  const float* v = op == Operation::encode ? x : buffer;
  float statistic = 0.0f;
  bool finite;
  if constexpr (Codec::statistic == Statistic::sum_abs) {
    statistic = load_sum<op, Fixed>(x, state, buffer, n);
    finite = is_finite(statistic);
  } else {
    const uint32_t largest = load_max<op, Fixed>(x, state, buffer, n);
    statistic = bits_float(largest);
    finite = largest < kInfinityBits;
  }
  if (__builtin_expect(!finite, 0)) {
    if constexpr (has_scales<Codec>) {
      *scale = 0.0f;
      zero_codes<Codec>(codes, n);
    } else {
      for (uint32_t i = 0; i < n; ++i) {
        const bool ok = is_finite(v[i]);
        const float sent = ok ? v[i] : 0.0f;
        const Coded coded = Codec::encode(Codec::coder(0.0f, n), sent);
        store_code<Codec>(codes, i, coded.code);
        if (op != Operation::encode && ok) state[i] = next_state<op>(state[i], sent, coded.decoded);
      }
    }
    return first_nonfinite(v, n);
  }
  const typename Codec::Coder coder = Codec::coder(statistic, n);
  if constexpr (has_scales<Codec>) *scale = coder.scale;
  if constexpr (packs_words<Codec>) {
    encode_words<Codec, op, Fixed>(coder, v, state, reinterpret_cast<uint32_t*>(codes), n);
  } else {
    encode_bytes<Codec, op, Fixed>(coder, v, state, codes, n);
  }
  return -1;
}

template <class Codec, Operation op>
int64_t encode_blocks(const EncodeJob& job, uint64_t first, uint64_t last) {
  alignas(64) float buffer[kMaxBlock];
  constexpr uint32_t fixed = has_scales<Codec> ? kDefaultBlock : kChunk;
  int64_t bad = -1;
  for (uint64_t b = first; b < last; ++b) {
    const uint64_t start = b * job.block;
    const uint64_t left = job.numel - start;
    const uint32_t n = left < job.block ? static_cast<uint32_t>(left) : job.block;
    const float* x = job.x + start;
    float* state = op == Operation::encode ? nullptr : job.state + start;
    uint8_t* codes = codes_at<Codec>(job.codes, b, job.block);
    float* scale = has_scales<Codec> ? job.scales + b : nullptr;
    const int64_t offset = n == fixed ? encode_block<Codec, op, fixed>(x, state, codes, scale, buffer, n)
                                      : encode_block<Codec, op, 0>(x, state, codes, scale, buffer, n);
    if (offset >= 0 && bad < 0) bad = static_cast<int64_t>(start) + offset;
  }
  return bad;
}

template <class Codec, bool add, uint32_t Fixed>
inline void decode_bytes(const uint8_t* __restrict codes, float scale, float weight, float* __restrict out,
                         uint32_t n) {
  for (uint32_t i = 0; i < count<Fixed>(n); ++i) {
    const float decoded = Codec::decode(load_code<Codec>(codes, i), scale);
    out[i] = accumulate<add>(add ? out[i] : 0.0f, weight, decoded);
  }
}

template <class Codec, bool add, uint32_t Fixed>
inline void decode_words(const uint32_t* __restrict words, float scale, float weight, float* __restrict out,
                         uint32_t n) {
  const uint32_t num_words = static_cast<uint32_t>(words_of<Codec>(count<Fixed>(n)));
  constexpr uint32_t mask = (1u << Codec::bits % 32) - 1u;
  if (num_words == 0) return;
  const uint32_t full = count<Fixed>(n) / num_words;
  for (uint32_t slot = 0; slot <= full; ++slot) {
    const uint32_t base = slot * num_words;
    const uint32_t here = slot < full ? num_words : count<Fixed>(n) - base;
    for (uint32_t w = 0; w < here; ++w) {
      const float decoded = Codec::decode((words[w] >> (slot * Codec::bits & 31u)) & mask, scale);
      out[base + w] = accumulate<add>(add ? out[base + w] : 0.0f, weight, decoded);
    }
  }
}

template <class Codec, bool add>
void decode_blocks(const DecodeJob& job, uint64_t first, uint64_t last) {
  constexpr uint32_t fixed = has_scales<Codec> ? kDefaultBlock : kChunk;
  for (uint64_t b = first; b < last; ++b) {
    const uint64_t start = b * job.block;
    const uint64_t left = job.numel - start;
    const uint32_t n = left < job.block ? static_cast<uint32_t>(left) : job.block;
    const uint8_t* codes = codes_at<Codec>(const_cast<uint8_t*>(job.codes), b, job.block);
    const float scale = has_scales<Codec> ? job.scales[b] : 1.0f;
    float* out = job.out + start;
    if constexpr (packs_words<Codec>) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(codes);
      if (n == fixed) {
        decode_words<Codec, add, fixed>(words, scale, job.weight, out, n);
      } else {
        decode_words<Codec, add, 0>(words, scale, job.weight, out, n);
      }
    } else if (n == fixed) {
      decode_bytes<Codec, add, fixed>(codes, scale, job.weight, out, n);
    } else {
      decode_bytes<Codec, add, 0>(codes, scale, job.weight, out, n);
    }
  }
}

template <Operation op>
void histogram(const SelectJob& job, uint64_t first, uint64_t last, uint64_t* bins) {
  for (uint64_t i = first; i < last; ++i) {
    const float v = combine<op>(job.x[i], op == Operation::encode ? 0.0f : job.state[i]);
    ++bins[TopK::key(v) >> TopK::kBinShift];
  }
}

template <Operation op>
uint64_t collect(const SelectJob& job, uint64_t first, uint64_t last, uint32_t lowest, Candidate* out,
                 uint64_t capacity, int64_t* first_bad) {
  uint64_t found = 0;
  int64_t bad = -1;
  for (uint64_t i = first; i < last; ++i) {
    const float v = combine<op>(job.x[i], op == Operation::encode ? 0.0f : job.state[i]);
    const bool finite = is_finite(v);
    if (__builtin_expect(!finite && bad < 0, 0)) bad = static_cast<int64_t>(i);
    if (op == Operation::feedback) job.state[i] = finite ? v : job.state[i];
    if (__builtin_expect(TopK::key(v) >= lowest, 0)) {
      if (found < capacity) out[found] = {static_cast<uint32_t>(i), v};
      ++found;
    }
  }
  if (bad >= 0 && (*first_bad < 0 || bad < *first_bad)) *first_bad = bad;
  return found;
}

void mix(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t first, uint64_t last) {
  float* __restrict moved = x;
  const float* __restrict sum = neighbour_sum;
  const float* __restrict own = reference;
  for (uint64_t i = first; i < last; ++i) moved[i] = moved[i] + step_size * (sum[i] - own[i]);
}

template <class... Codecs>
constexpr Kernels make_table(CodecList<Codecs...>) {
  constexpr Operation encode = Operation::encode, feedback = Operation::feedback, difference = Operation::difference;
  return {DANCE_TARGET_STRING(DANCE_TARGET),
          {Codecs::id...},
          {{encode_blocks<Codecs, encode>, encode_blocks<Codecs, feedback>, encode_blocks<Codecs, difference>}...},
          {{decode_blocks<Codecs, false>, decode_blocks<Codecs, true>}...},
          {histogram<encode>, histogram<feedback>, histogram<difference>},
          {collect<encode>, collect<feedback>, collect<difference>},
          mix};
}

constexpr Kernels table = make_table(DenseCodecs{});

}  // namespace

const Kernels& DANCE_TARGET_FUNCTION(DANCE_TARGET)() { return table; }

}  // namespace dance::cpu
