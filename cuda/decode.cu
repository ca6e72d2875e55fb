// Decoding dense payloads: one packet or the sum of several, to an array or, for sparse packets, to its elements.
#include "check.h"
#include "decode.h"

namespace dance::cuda {
namespace {

template <class Codec>
__global__ void __launch_bounds__(kThreads)
    decode_blocks(Packets packets, uint64_t numel, uint32_t block, uint32_t bits, void* out, Dtype dtype, bool add) {
  const Warp warp;
  if constexpr (Codec::kFixedBlock != 0) block = Codec::kFixedBlock;
  if constexpr (!Codec::kVariableBits) bits = Codec::bits;
  const bool wide = block % 4 == 0 && is_wide(out, dtype);
  Decoder<Codec> decoder(nullptr, nullptr, block, bits);
  for (uint64_t b = Warp::first(); b < decoder.span.tasks(numel); b += Warp::stride()) {
    const Task task(decoder.span, b, numel);
    for (uint32_t r = 0; r * kRow < task.n; ++r) {
      const uint64_t start = task.start + r * kRow;
      const uint32_t n = least(task.n - r * kRow, kRow);
      float v[kHeld] = {};
      if (add) load_row(warp, out, dtype, start, n, wide, v);
      sum_row<Codec>(warp, packets, decoder, task, r, add, v);
      store_row(warp, out, dtype, start, n, wide, 0xffu, v);
    }
  }
}

template <class Codec>
__global__ void __launch_bounds__(kThreads)
    scatter_blocks(uint8_t* codes, void* scales, uint64_t num_values, uint32_t block, uint32_t bits, float weight,
                   Values values, ScatterJob job) {
  const Warp warp;
  if constexpr (Codec::kFixedBlock != 0) block = Codec::kFixedBlock;
  if constexpr (!Codec::kVariableBits) bits = Codec::bits;
  place_values<Codec>(values, block, bits, codes, scales, num_values);
  const Decoder<Codec> decoder(codes, scales, block, bits);
  for (uint64_t b = Warp::first(); b < decoder.span.tasks(num_values); b += Warp::stride()) {
    const Task task(decoder.span, b, num_values);
    for (uint32_t r = 0; r * kRow < task.n; ++r) {
      float decoded[kHeld];
      decoder.row(warp, task, r, decoded);
#pragma unroll
      for (uint32_t t = 0; t < kHeld; ++t) {
        const uint32_t e = r * kRow + place_of(warp.lane, t);
        if (e >= task.n) continue;
        const uint64_t i = task.start + e;
        const uint32_t at = job.indices[i];
        if (at >= job.numel) continue;
        const float before = job.sink == Sink::write ? 0.0f : load_element(job.out, job.dtype, at);
        float next = accumulate<true>(before, weight, decoded[t]);
        if (job.sink == Sink::write) next = accumulate<false>(0.0f, weight, decoded[t]);
        if (job.sink == Sink::feedback) {
          const float v = job.values[i];
          if (!is_finite(v)) continue;
          next = next_state<Operation::feedback>(0.0f, v, decoded[t]);
        }
        if (job.sink == Sink::difference) {
          // Also where v was not finite and a zero was sent, which need not decode to one; but NaN and infinity stay.
          if (!is_finite(before)) continue;
          next = next_state<Operation::difference>(before, 0.0f, decoded[t]);
        }
        store_element(job.out, job.dtype, at, next);
      }
    }
  }
}

}  // namespace

DenseLayout dense_layout(uint8_t id, uint8_t mode, uint32_t block, uint32_t levels, Dtype dtype, uint64_t numel) {
  id = stored_as(id, dtype);
  DenseLayout layout{id, mode, block, 0, levels, 0};
  with_mode(DenseCodecs{}, id, mode, [&](auto c) {
    using Codec = decltype(c);
    layout.bits = Codec::kVariableBits ? bits_of_levels(levels) : Codec::bits;
    if (!has_scales<Codec>) layout.block = kRow;
    layout.codes_nbytes = codes_nbytes<Codec>(numel, layout.block, layout.bits);
  });
  return layout;
}

void decode_dense(const DenseLayout& layout, const Packets& packets, uint64_t numel, void* out, Dtype dtype, bool add,
                  cudaStream_t stream) {
  with_mode(DenseCodecs{}, layout.id, layout.mode, [&](auto c) {
    launch("dance decode", decode_blocks<decltype(c)>, per_warp(numel, layout.block, true, stream), packets, numel,
           layout.block, layout.bits, out, dtype, add);
  });
}

void scatter_dense(const DenseLayout& layout, const uint8_t* payload, uint64_t num_values, float weight, Values values,
                   const ScatterJob& scatter, cudaStream_t stream) {
  auto* codes = const_cast<uint8_t*>(payload);  // the kernel only reads them
  void* scales = codes + layout.codes_nbytes;
  with_mode(DenseCodecs{}, layout.id, layout.mode, [&](auto c) {
    launch("dance scatter", scatter_blocks<decltype(c)>,
           per_warp(num_values, layout.block, values.count == nullptr, stream), codes, scales, num_values, layout.block,
           layout.bits, weight, values, scatter);
  });
}

}  // namespace dance::cuda
