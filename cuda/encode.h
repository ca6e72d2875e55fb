// How a warp encodes the blocks of a dense codec: one span (decode.h) at a time, in up to three passes over its rows:
// the largest magnitude, the sum, the codes. A span of one row stays in registers; more rows are read again, from L1
// and L2.
#pragma once

#include <type_traits>

#include "check.h"
#include "decode.h"

namespace dance::cuda {

// What is encoded is read from an array, unless packets are summed.
struct NoPackets {};

template <class Codec>
constexpr bool sums = Codec::statistic == Statistic::sum_abs || Codec::statistic == Statistic::l2;

// Shared memory of a warp: summands of a row or codes of a span, and 33 blocks of noise of 16 bytes.
constexpr uint32_t kNoiseNbytes = 33 * 16;
template <class Codec>
DANCE_HD uint32_t stage_nbytes(uint32_t block, uint32_t bits) {
  const uint32_t codes = packs_words<Codec> && bits < 8 ? static_cast<uint32_t>(divide_up(block, kRow)) * kRow : 0;
  return sums<Codec> && codes < kRow * 4 ? kRow * 4 : codes;
}
template <class Codec>
DANCE_HD uint32_t shared_nbytes(uint32_t block, uint32_t bits) {
  return stage_nbytes<Codec>(block, bits) + (Codec::kStochastic ? kNoiseNbytes : 0);
}

template <class Codec, Operation op, class Source>
struct Encoder {
  const Warp& warp;
  const EncodeJob& job;
  const Source& source;
  Decoder<Codec> decoder;  // its span, and of a reduce all of it
  uint8_t* stage;
  uint16_t* noise;
  bool wide_x, wide_state, clean;
  int64_t* nonfinite;
  float v[kHeld];
  float state[kHeld];

  static constexpr bool kReduces = !std::is_same<Source, NoPackets>::value;
  using Coder = typename Codec::Coder;

  __device__ __forceinline__ Encoder(const Warp& warp_, const EncodeJob& job_, const Source& source_, bool clean_,
                                     int64_t* nonfinite_)
      : warp(warp_),
        job(job_),
        source(source_),
        decoder(nullptr, nullptr, job_.block, job_.bits),
        stage(dynamic_shared() + threadIdx.x / kLanes * shared_nbytes<Codec>(job_.block, job_.bits)),
        noise(reinterpret_cast<uint16_t*>(stage + stage_nbytes<Codec>(job_.block, job_.bits))),
        wide_x(job_.block % 4 == 0 && is_wide(job_.x, job_.dtype)),
        wide_state(job_.block % 4 == 0 && is_wide(job_.state, job_.state_dtype)),
        clean(clean_),
        nonfinite(nonfinite_) {}

  // v and state of row r.
  __device__ __forceinline__ void load(const Task& task, uint32_t r) {
    const uint64_t start = task.start + r * kRow;
    const uint32_t n = least(task.n - r * kRow, kRow);
    Raw raw_x{}, raw_state{};
    if constexpr (!kReduces) raw_x = load_raw(warp, job.x, job.dtype, start, n, wide_x);
    if constexpr (op != Operation::encode) {
      raw_state = load_raw(warp, job.state, job.state_dtype, start, n, wide_state);
    }
    if constexpr (kReduces) {
      sum_row<Codec>(warp, source, decoder, task, r, false, v);
    } else {
      convert(raw_x, job.dtype, v);
    }
    if constexpr (op != Operation::encode) convert(raw_state, job.state_dtype, state);
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) v[t] = combine<op>(v[t], state[t]);
    if (op == Operation::encode && !kReduces && clean) {
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) v[t] = is_finite(v[t]) ? v[t] : 0.0f;
    }
  }

  // The largest magnitude of the block of each of the two runs of this lane.
  __device__ __forceinline__ void largest_of(const Task& task, uint32_t rows, uint32_t (&largest)[2]) {
    largest[0] = largest[1] = 0;
    for (uint32_t r = 0; r < rows; ++r) {
      if (rows > 1) load(task, r);
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) {
        const uint32_t size = magnitude(v[t]);
        largest[t / 4] = size > largest[t / 4] ? size : largest[t / 4];
      }
    }
    if (decoder.span.several) {
      largest[0] = warp.max_of(largest[0], job.block / 4);
      largest[1] = warp.max_of(largest[1], job.block / 4);
    } else {
      largest[0] = largest[1] = warp.max(largest[0] > largest[1] ? largest[0] : largest[1]);
    }
  }

  // The sum of the block of each run, in the shape of base/reduce.h: rows go through shared memory, where lane l finds
  // its elements l, l + 32, ...
  __device__ __forceinline__ void sum_of(const Task& task, uint32_t rows, const uint32_t (&largest)[2],
                                         float (&sum)[2]) {
    float* staged = reinterpret_cast<float*>(stage);
    float mine = 0.0f;
    for (uint32_t r = 0; r < rows; ++r) {
      if (rows > 1) load(task, r);
      warp.sync();  // all have read what is overwritten
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) {
        staged[place_of(warp.lane, t)] =
            Codec::statistic == Statistic::l2 ? l2_summand(v[t], l2_factor(largest[t / 4])) : summand(v[t]);
      }
      warp.sync();
      if (!decoder.span.several) {
#pragma unroll
        for (uint32_t t = 0; t < kHeld; ++t) mine += staged[warp.lane + t * kLanes];
        continue;
      }
      for (uint32_t b = 0; b < kRow / job.block; ++b) {
        float part = 0.0f;
        for (uint32_t e = warp.lane; e < job.block; e += kLanes) part += staged[b * job.block + e];
        part = warp.sum(part);
        if (decoder.span.block_of(place_of(warp.lane, 0)) == b) sum[0] = part;
        if (decoder.span.block_of(place_of(warp.lane, 4)) == b) sum[1] = part;
      }
    }
    if (!decoder.span.several) sum[0] = sum[1] = warp.sum(mine);
  }

  // Noise of the row that starts at element `start`: each lane draws one block of eight elements and finds those of its
  // own elements in shared memory, wherever rows start.
  __device__ __forceinline__ void draw(uint64_t start, uint32_t (&drawn)[kHeld]) {
    const uint32_t shift = static_cast<uint32_t>(start % 8);
    warp.sync();  // all have read what is overwritten
    for (uint32_t k = warp.lane; k < (shift == 0 ? kLanes : kLanes + 1); k += kLanes) {
      const Random4 random = philox(job.seed, start / 8 + k);
      reinterpret_cast<uint4*>(noise)[k] = make_uint4(random.word[0], random.word[1], random.word[2], random.word[3]);
    }
    warp.sync();
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) drawn[t] = noise[shift + place_of(warp.lane, t)];
  }

  __device__ __forceinline__ void store_codes(const Task& task, uint32_t r, const uint32_t (&code)[kHeld]) {
    const uint64_t start = task.start + r * kRow;
    const uint32_t n = least(task.n - r * kRow, kRow);
    constexpr uint32_t code_nbytes = Codec::bits < 8 ? 1 : Codec::bits / 8;
    uint32_t four[2];
#pragma unroll
    for (uint32_t t = 0; t < kHeld; t += 4) {
      four[t / 4] = (code[t] & 0xffu) | (code[t + 1] & 0xffu) << 8 | (code[t + 2] & 0xffu) << 16 | code[t + 3] << 24;
    }
    if (decoder.packed()) {  // later, by pack_words
      reinterpret_cast<uint32_t*>(stage + r * kRow)[warp.lane] = four[0];
      reinterpret_cast<uint32_t*>(stage + r * kRow)[warp.lane + kLanes] = four[1];
      return;
    }
    uint8_t* to = job.codes + start * code_nbytes;
    const bool whole = n == kRow && reinterpret_cast<uintptr_t>(to) % (4 * code_nbytes) == 0;
#pragma unroll
    for (uint32_t t = 0; t < kHeld; t += 4) {
      const uint32_t at = warp.lane + t / 4 * kLanes;
      if (whole) {
        if (code_nbytes == 1) reinterpret_cast<uint32_t*>(to)[at] = four[t / 4];
        if (code_nbytes == 2) {
          reinterpret_cast<uint2*>(to)[at] =
              make_uint2((code[t] & 0xffffu) | code[t + 1] << 16, (code[t + 2] & 0xffffu) | code[t + 3] << 16);
        }
        if (code_nbytes == 4)
          reinterpret_cast<uint4*>(to)[at] = make_uint4(code[t], code[t + 1], code[t + 2], code[t + 3]);
        continue;
      }
#pragma unroll
      for (uint32_t c = t; c < t + 4; ++c) {
        const uint32_t e = place_of(warp.lane, c);
        if (e >= n) continue;
        if (code_nbytes == 1) to[e] = static_cast<uint8_t>(code[c]);
        if (code_nbytes == 2) reinterpret_cast<uint16_t*>(to)[e] = static_cast<uint16_t>(code[c]);
        if (code_nbytes == 4) reinterpret_cast<uint32_t*>(to)[e] = code[c];
      }
    }
  }

  // Codes and states of row r. A bad block of a codec with scales is sent as zeros and its state kept; a codec without
  // scales does so with just the bad elements.
  __device__ __forceinline__ void encode_row(const Task& task, uint32_t r, const Coder (&coder)[2],
                                             const bool (&sound)[2]) {
    const uint64_t start = task.start + r * kRow;
    uint32_t drawn[kHeld] = {};
    if constexpr (Codec::kStochastic) draw(job.begin + start, drawn);
    uint32_t code[kHeld];
    uint32_t chosen = 0;
#pragma unroll
    for (uint32_t t = 0; t < kHeld; ++t) {
      const bool finite = is_finite(v[t]);
      const bool sent = has_scales<Codec> ? sound[t / 4] : finite;
      const float value = has_scales<Codec> || finite ? v[t] : 0.0f;
      const Coded coded = Codec::encode(coder[t / 4], value, drawn[t]);
      code[t] = has_scales<Codec> && !sent ? 0u : coded.code;
      const bool moves = sent || (op == Operation::difference && is_finite(state[t]));
      chosen |= moves ? 1u << t : 0u;
      state[t] = sent ? next_state<op>(state[t], v[t], coded.decoded) : kept_state<op>(state[t]);
      if (!finite) lower(nonfinite, job.begin + start + place_of(warp.lane, t));
    }
    store_codes(task, r, code);
    if constexpr (op != Operation::encode) {
      store_row(warp, job.state, job.state_dtype, start, least(task.n - r * kRow, kRow), wide_state, chosen, state);
    }
  }

  __device__ __forceinline__ void encode(const Task& task) {
    const Span& span = decoder.span;
    const uint32_t rows = (task.n + kRow - 1) / kRow;
    if (rows == 1) load(task, 0);
    Coder coder[2];
    bool sound[2] = {true, true};
    if constexpr (has_scales<Codec>) {
      uint32_t largest[2];
      float statistic[2] = {};
      if (Codec::statistic != Statistic::sum_abs) largest_of(task, rows, largest);
      if constexpr (sums<Codec>) sum_of(task, rows, largest, statistic);
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        const uint32_t e = place_of(warp.lane, 4 * j);
        const uint32_t block = span.block_of(e), left = task.n - block * span.block;
        if (j == 1 && !span.several) {
          coder[1] = coder[0];
          sound[1] = sound[0];
          continue;
        }
        if (Codec::statistic == Statistic::sum_abs) {
          sound[j] = is_finite(statistic[j]);
        } else {
          sound[j] = largest[j] < kInfinityBits;
          statistic[j] = Codec::statistic == Statistic::l2 ? l2_norm(statistic[j], largest[j]) : bits_float(largest[j]);
        }
        coder[j] = Codec::coder(sound[j] ? statistic[j] : 0.0f, left < span.block ? left : span.block, job.levels);
        if (span.several ? e < task.n && (e & (span.block - 1)) == 0 : warp.lane == 0) {
          auto* scales = static_cast<typename Codec::Scale*>(job.scales) + task.first_block;
          scales[block] = sound[j] ? coder[j].scale : typename Codec::Scale{};
        }
      }
    } else {
      coder[0] = coder[1] = Codec::coder(0.0f, task.n, job.levels);
    }
    if (decoder.packed()) warp.sync();  // all have read the summands, and the codes of the span before
    for (uint32_t r = 0; r < rows; ++r) {
      if (rows > 1) load(task, r);
      encode_row(task, r, coder, sound);
    }
    if (decoder.packed()) {
      warp.sync();
      const uint32_t words_of_block = static_cast<uint32_t>(words_of(span.block, job.bits));
      uint32_t* words = reinterpret_cast<uint32_t*>(job.codes) + task.first_block * words_of_block;
      const uint32_t in_tail = task.n - task.num_full * span.block;
      if (task.num_full > 0) pack_words(warp, stage, task.num_full, span.block, job.bits, words);
      if (in_tail > 0) {
        pack_words(warp, stage + task.num_full * span.block, 1, in_tail, job.bits,
                   words + task.num_full * words_of_block);
      }
    }
  }
};

// What one launch encodes; `values`: see place_values.
struct EncodeLaunch {
  EncodeJob job;
  Values values;
  bool clean;
  int64_t* nonfinite;
};

template <class Codec, Operation op, class Source>
__global__ void __launch_bounds__(kThreads) encode_blocks(EncodeLaunch launch, Source source) {
  const Warp warp;
  EncodeJob job = launch.job;
  if constexpr (Codec::kFixedBlock != 0) job.block = Codec::kFixedBlock;
  if constexpr (!Codec::kVariableBits) job.bits = Codec::bits;
  place_values<Codec>(launch.values, job.block, job.bits, job.codes, job.scales, job.numel);
  Encoder<Codec, op, Source> encoder(warp, job, source, launch.clean, launch.nonfinite);
  const uint64_t num_tasks = encoder.decoder.span.tasks(job.numel);
  for (uint64_t b = Warp::first(); b < num_tasks; b += Warp::stride()) {
    encoder.encode(Task(encoder.decoder.span, b, job.numel));
    if (b == num_tasks - 1 && has_scales<Codec> && !encoder.decoder.packed()) {
      const uint64_t at = job.numel + warp.lane;
      if (at < divide_up(job.numel, 4) * 4) job.codes[at] = 0;
    }
  }
}

// Puts the kernel on the stream; `payload` is where codes start, or with `values` where the sparse payload does.
template <Operation op, class Source>
void launch_encode(const DenseLayout& layout, EncodeLaunch what, const Source& source, uint8_t* payload,
                   cudaStream_t stream) {
  what.job.codes = payload;
  what.job.scales = payload + layout.codes_nbytes;
  what.job.block = layout.block;
  what.job.bits = layout.bits;
  what.job.levels = layout.levels;
  with_mode(DenseCodecs{}, layout.id, layout.mode, [&](auto c) {
    using Codec = decltype(c);
    Launch how = per_warp(what.job.numel, layout.block, what.values.count == nullptr, stream);
    how.shared_nbytes = how.threads / kLanes * shared_nbytes<Codec>(layout.block, layout.bits);
    launch("dance encode", encode_blocks<Codec, op, Source>, how, what, source);
  });
}

}  // namespace dance::cuda
