// The CUDA driver: loops over blocks for every dense codec, one warp a block; mix; and the backend's entry points.
//
// Lane l of a warp reads elements l, l + 32, l + 64, ...: every access of a warp is one run of neighbours, whatever the
// alignment of the arrays; the sums have the shape of base/reduce.h for free; and blocks of 256 keep all that they read
// in registers, eight loads an array in flight in every lane (as many bytes as two float4 loads).
#include "kernels.h"

#include "check.h"
#include "codecs/list.h"
#include "select.h"
#include "warp.h"

namespace dance::cuda {
namespace {

constexpr uint32_t kWarpsPerGroup = kThreads / kLanes;
// The block whose loops are unrolled; it is also what a warp takes at a time where a codec has no blocks.
constexpr uint32_t kFixed = kDefaultBlock;

// Calls f(t, e) for the elements e of this lane, in order. Fixed is their number in the block when it is known at
// compile time, and then t counts the calls, else 0: `t` may index an array of held<Fixed> registers.
template <uint32_t Fixed>
constexpr uint32_t held = Fixed == 0 ? 1 : Fixed / kLanes;

template <uint32_t Fixed, class F>
__device__ __forceinline__ void for_elements(const Warp& warp, uint32_t n, F&& f) {
  if constexpr (Fixed != 0) {
#pragma unroll
    for (uint32_t t = 0; t < held<Fixed>; ++t) f(t, warp.lane + t * kLanes);
  } else {
#pragma unroll 4
    for (uint32_t e = warp.lane; e < n; e += kLanes) f(0u, e);
  }
}

// The values v of one block and the state that belongs to them: held in registers, or read again where they do not fit.
template <Operation op, uint32_t Fixed>
struct Elements {
  const float* x;
  float* state;
  float held_v[held<Fixed>];
  float held_state[held<Fixed>];

  __device__ __forceinline__ Elements(const Warp& warp, const float* x_, float* state_, uint32_t n)
      : x(x_), state(state_) {
    if constexpr (Fixed != 0) {
      for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
        held_v[t] = x[e];
        held_state[t] = op == Operation::encode ? 0.0f : state[e];
      });
#pragma unroll
      for (uint32_t t = 0; t < held<Fixed>; ++t) held_v[t] = combine<op>(held_v[t], held_state[t]);
    }
  }
  __device__ __forceinline__ float v(uint32_t t, uint32_t e) const {
    if constexpr (Fixed != 0) return held_v[t];
    return combine<op>(x[e], op == Operation::encode ? 0.0f : state[e]);
  }
  __device__ __forceinline__ void finish(uint32_t t, uint32_t e, float value, float decoded) {
    if constexpr (op != Operation::encode) {
      state[e] = next_state<op>(Fixed != 0 ? held_state[t] : state[e], value, decoded);
    }
  }
};

template <class Codec>
__device__ __forceinline__ void store_code(uint8_t* codes, uint32_t e, uint32_t code) {
  if (Codec::bits == 8) codes[e] = static_cast<uint8_t>(code);
  if (Codec::bits == 16) reinterpret_cast<uint16_t*>(codes)[e] = static_cast<uint16_t>(code);
  if (Codec::bits == 32) reinterpret_cast<uint32_t*>(codes)[e] = code;
}

// The code of element e; num_words is the number of words of its block and only used by sub-byte codes.
template <class Codec>
__device__ __forceinline__ uint32_t load_code(const uint8_t* codes, uint32_t e, uint32_t num_words) {
  if constexpr (packs_words<Codec>) {
    const uint32_t word = reinterpret_cast<const uint32_t*>(codes)[e % num_words];
    return word >> (e / num_words * Codec::bits) & ((1u << Codec::bits % 32) - 1u);
  }
  if (Codec::bits == 8) return codes[e];
  if (Codec::bits == 16) return reinterpret_cast<const uint16_t*>(codes)[e];
  return reinterpret_cast<const uint32_t*>(codes)[e];
}

template <class Codec>
__device__ __forceinline__ uint64_t codes_offset(uint64_t b, uint32_t block) {
  return b * (packs_words<Codec> ? 4 * words_of<Codec>(block) : uint64_t{block} * (Codec::bits / 8));
}

__device__ __forceinline__ uint32_t block_size(uint64_t b, uint32_t block, uint64_t numel) {
  const uint64_t left = numel - b * block;
  return left < block ? static_cast<uint32_t>(left) : block;
}

// Codes of less than a byte: word w holds elements w, w + W, w + 2W, ... A lane builds word w = lane, lane + 32, ...;
// when there are fewer words than lanes, groups of W lanes take the slots of a word in turns and their parts are
// joined.
template <class Codec, Operation op, uint32_t Fixed>
__device__ __forceinline__ void encode_words(const Warp& warp, typename Codec::Coder coder,
                                             Elements<op, Fixed>& elements, uint32_t* words, uint32_t n) {
  const uint32_t num_words = static_cast<uint32_t>(words_of<Codec>(Fixed != 0 ? Fixed : n));
  const uint32_t span = num_words < kLanes ? num_words : kLanes;
  const uint32_t groups = kLanes / span;
  const uint32_t group = warp.lane / span;
  for (uint32_t base = 0; base < num_words; base += kLanes) {
    const uint32_t w = base + warp.lane % span;
    uint32_t word = 0;
    const auto put = [&](uint32_t t, uint32_t slot, uint32_t e) {
      const float v = elements.v(t, e);
      const Coded coded = Codec::encode(coder, v);
      word |= coded.code << (slot * Codec::bits & 31u);
      elements.finish(t, e, v, coded.decoded);
    };
    if constexpr (Fixed != 0) {
      // Then slot (group + t * groups) of word w is this lane's t-th element, the one it holds.
      constexpr uint32_t fixed_words = Fixed * Codec::bits / 32;
      static_assert(fixed_words <= kLanes && kLanes % fixed_words == 0, "one word a lane or less");
#pragma unroll
      for (uint32_t t = 0; t < held<Fixed>; ++t) put(t, group + t * groups, warp.lane + t * kLanes);
    } else if (group < groups && w < num_words) {
      for (uint32_t slot = group; slot * num_words + w < n; slot += groups) put(0, slot, slot * num_words + w);
    }
    uint32_t joined = word;
    for (uint32_t g = 1; g < groups; ++g) joined |= warp.shuffle(word, (warp.lane + g * span) % kLanes);
    if (warp.lane < span && w < num_words) words[w] = joined;
  }
}

// One block. A bad block of a codec with scales is sent as zeros and its state stays; a codec without scales skips just
// the bad elements.
template <class Codec, Operation op, uint32_t Fixed>
__device__ __forceinline__ void encode_block(const Warp& warp, const float* x, float* state, uint8_t* codes,
                                             float* scale, uint32_t n, uint64_t start, int64_t* nonfinite) {
  Elements<op, Fixed> elements(warp, x, state, n);
  if constexpr (!has_scales<Codec>) {
    for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
      const float v = elements.v(t, e);
      const bool finite = is_finite(v);
      const float sent = finite ? v : 0.0f;
      const Coded coded = Codec::encode(Codec::coder(0.0f, n), sent);
      store_code<Codec>(codes, e, coded.code);
      if (finite) {
        elements.finish(t, e, sent, coded.decoded);
      } else {
        lower(nonfinite, start + e);
      }
    });
    return;
  } else {
    float statistic;
    bool finite;
    if constexpr (Codec::statistic == Statistic::sum_abs) {
      float sum = 0.0f;
      for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) { sum += summand(elements.v(t, e)); });
      statistic = warp.sum(sum);
      finite = is_finite(statistic);
    } else {
      uint32_t largest = 0;
      for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
        const uint32_t size = magnitude(elements.v(t, e));
        largest = size > largest ? size : largest;
      });
      largest = warp.max(largest);
      statistic = bits_float(largest);
      finite = largest < kInfinityBits;
    }
    const typename Codec::Coder coder = Codec::coder(finite ? statistic : 0.0f, n);
    if (warp.lane == 0) *scale = finite ? coder.scale : 0.0f;
    if (!finite) {
      for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
        if (!is_finite(elements.v(t, e))) lower(nonfinite, start + e);
        if (!packs_words<Codec>) store_code<Codec>(codes, e, 0);
      });
      if (packs_words<Codec>) {
        for (uint32_t w = warp.lane; w < words_of<Codec>(n); w += kLanes) reinterpret_cast<uint32_t*>(codes)[w] = 0;
      }
      return;
    }
    warp.sync();  // all lanes have read the state that others now write
    if constexpr (packs_words<Codec>) {
      encode_words<Codec, op, Fixed>(warp, coder, elements, reinterpret_cast<uint32_t*>(codes), n);
    } else {
      for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
        const float v = elements.v(t, e);
        const Coded coded = Codec::encode(coder, v);
        store_code<Codec>(codes, e, coded.code);
        elements.finish(t, e, v, coded.decoded);
      });
    }
  }
}

// `padding` bytes behind the codes are set to zero by the warp of the last block.
template <class Codec, Operation op>
__global__ void __launch_bounds__(kThreads)
    encode_blocks(EncodeJob job, uint64_t num_blocks, uint32_t padding, int64_t* nonfinite) {
  const Warp warp;
  for (uint64_t b = Warp::first(); b < num_blocks; b += Warp::stride()) {
    const uint64_t start = b * job.block;
    const uint32_t n = block_size(b, job.block, job.numel);
    const float* x = job.x + start;
    float* state = op == Operation::encode ? nullptr : job.state + start;
    uint8_t* codes = job.codes + codes_offset<Codec>(b, job.block);
    float* scale = has_scales<Codec> ? job.scales + b : nullptr;
    if (n == kFixed) {
      encode_block<Codec, op, kFixed>(warp, x, state, codes, scale, n, start, nonfinite);
    } else {
      encode_block<Codec, op, 0>(warp, x, state, codes, scale, n, start, nonfinite);
    }
    if (b == num_blocks - 1 && warp.lane < padding) job.codes[job.numel * Codec::bits / 8 + warp.lane] = 0;
  }
}

template <class Codec, bool add, uint32_t Fixed>
__device__ __forceinline__ void decode_block(const Warp& warp, const uint8_t* codes, float scale, float weight,
                                             float* out, uint32_t n) {
  const uint32_t num_words = packs_words<Codec> ? static_cast<uint32_t>(words_of<Codec>(Fixed != 0 ? Fixed : n)) : 1;
  if constexpr (Fixed != 0) {
    uint32_t code[held<Fixed>];
    float old[held<Fixed>];
    for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
      code[t] = load_code<Codec>(codes, e, num_words);
      old[t] = add ? out[e] : 0.0f;
    });
    for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
      out[e] = accumulate<add>(old[t], weight, Codec::decode(code[t], scale));
    });
  } else {
    for_elements<Fixed>(warp, n, [&](uint32_t, uint32_t e) {
      const float decoded = Codec::decode(load_code<Codec>(codes, e, num_words), scale);
      out[e] = accumulate<add>(add ? out[e] : 0.0f, weight, decoded);
    });
  }
}

template <class Codec, bool add>
__global__ void __launch_bounds__(kThreads) decode_blocks(DecodeJob job, uint64_t num_blocks) {
  const Warp warp;
  for (uint64_t b = Warp::first(); b < num_blocks; b += Warp::stride()) {
    const uint32_t n = block_size(b, job.block, job.numel);
    const uint8_t* codes = job.codes + codes_offset<Codec>(b, job.block);
    const float scale = has_scales<Codec> ? job.scales[b] : 1.0f;
    float* out = job.out + b * job.block;
    if (n == kFixed) {
      decode_block<Codec, add, kFixed>(warp, codes, scale, job.weight, out, n);
    } else {
      decode_block<Codec, add, 0>(warp, codes, scale, job.weight, out, n);
    }
  }
}

template <uint32_t Fixed>
__device__ __forceinline__ void mix_block(const Warp& warp, float* x, const float* neighbour_sum,
                                          const float* reference, float step_size, uint32_t n) {
  if constexpr (Fixed != 0) {
    float moved[held<Fixed>], sum[held<Fixed>], own[held<Fixed>];
    for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) {
      moved[t] = x[e];
      sum[t] = neighbour_sum[e];
      own[t] = reference[e];
    });
    for_elements<Fixed>(warp, n, [&](uint32_t t, uint32_t e) { x[e] = moved[t] + step_size * (sum[t] - own[t]); });
  } else {
    for_elements<Fixed>(warp, n,
                        [&](uint32_t, uint32_t e) { x[e] = x[e] + step_size * (neighbour_sum[e] - reference[e]); });
  }
}

__global__ void __launch_bounds__(kThreads)
    mix_blocks(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t numel) {
  const Warp warp;
  const uint64_t num_blocks = divide_up(numel, kFixed);
  for (uint64_t b = Warp::first(); b < num_blocks; b += Warp::stride()) {
    const uint64_t start = b * kFixed;
    const uint32_t n = block_size(b, kFixed, numel);
    if (n == kFixed) {
      mix_block<kFixed>(warp, x + start, neighbour_sum + start, reference + start, step_size, n);
    } else {
      mix_block<0>(warp, x + start, neighbour_sum + start, reference + start, step_size, n);
    }
  }
}

cudaStream_t stream_of(Place place) { return reinterpret_cast<cudaStream_t>(place.stream); }

template <class Codec>
void encode_dense(Operation operation, const EncodeJob& job, int64_t* nonfinite, cudaStream_t stream) {
  const uint64_t num_blocks = divide_up(job.numel, job.block);
  const uint32_t padding =
      packs_words<Codec>
          ? 0
          : static_cast<uint32_t>(codes_nbytes<Codec>(job.numel, job.block) - job.numel * (Codec::bits / 8));
  const auto put = [&](const char* name, void (*kernel)(EncodeJob, uint64_t, uint32_t, int64_t*)) {
    launch(name, kernel, divide_up(num_blocks, kWarpsPerGroup), kThreads, stream, job, num_blocks, padding, nonfinite);
  };
  switch (operation) {
    case Operation::encode:
      return put("dance encode", encode_blocks<Codec, Operation::encode>);
    case Operation::feedback:
      return put("dance encode_feedback", encode_blocks<Codec, Operation::feedback>);
    case Operation::difference:
      return put("dance encode_difference", encode_blocks<Codec, Operation::difference>);
  }
}

template <class Codec>
uint32_t driver_block(const CodecSpec& codec) {
  return has_scales<Codec> ? codec.block : kFixed;
}

}  // namespace

bool built() { return true; }

bool available() { return count_devices() > 0; }

std::vector<int> architectures() {
  std::vector<int> list = {__CUDA_ARCH_LIST__};  // nvcc's own: 750,800,900
  for (int& architecture : list) architecture /= 10;
  return list;
}

void encode(Operation operation, const CodecSpec& codec, const float* x, float* state, uint8_t* payload, uint64_t numel,
            uint64_t /*seed*/, Place place, int64_t* nonfinite, void* scratch) {
  if (numel == 0) return;
  const DeviceGuard guard(place.device);
  if (codec.id == TopK::id) {
    auto* indices = reinterpret_cast<uint32_t*>(payload);
    auto* values = reinterpret_cast<float*>(payload + 4 * codec.count);
    return select_largest(operation, {x, state, numel}, codec.count, indices, values, nonfinite, scratch,
                          stream_of(place));
  }
  with_codec(DenseCodecs{}, codec.id, [&](auto c) {
    using Codec = decltype(c);
    const uint32_t block = driver_block<Codec>(codec);
    auto* scales = reinterpret_cast<float*>(payload + codes_nbytes<Codec>(numel, block));
    encode_dense<Codec>(operation, {x, state, payload, scales, numel, block}, nonfinite, stream_of(place));
  });
}

void decode(const CodecSpec& codec, const uint8_t* payload, float* out, uint64_t numel, bool add, float weight,
            Place place) {
  if (numel == 0) return;
  const DeviceGuard guard(place.device);
  if (codec.id == TopK::id) {
    const auto* indices = reinterpret_cast<const uint32_t*>(payload);
    const auto* values = reinterpret_cast<const float*>(payload + 4 * codec.count);
    return scatter(indices, values, codec.count, out, numel, add, weight, stream_of(place));
  }
  with_codec(DenseCodecs{}, codec.id, [&](auto c) {
    using Codec = decltype(c);
    const uint32_t block = driver_block<Codec>(codec);
    const auto* scales = reinterpret_cast<const float*>(payload + codes_nbytes<Codec>(numel, block));
    const DecodeJob job{payload, scales, out, numel, block, weight};
    const uint64_t num_blocks = divide_up(numel, block);
    launch("dance decode", add ? decode_blocks<Codec, true> : decode_blocks<Codec, false>,
           divide_up(num_blocks, kWarpsPerGroup), kThreads, stream_of(place), job, num_blocks);
  });
}

void mix(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t numel, Place place) {
  if (numel == 0) return;
  const DeviceGuard guard(place.device);
  launch("dance mix", mix_blocks, divide_up(numel, uint64_t{kFixed} * kWarpsPerGroup), kThreads, stream_of(place), x,
         neighbour_sum, reference, step_size, numel);
}

uint64_t scratch_nbytes(const CodecSpec& codec, uint64_t numel) {
  return codec.id == TopK::id ? select_scratch_nbytes(numel) : 0;
}

}  // namespace dance::cuda
