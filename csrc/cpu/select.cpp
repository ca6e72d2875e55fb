// Sending sparse codecs on the CPU: selects elements, writes their indices and values, finishes the state.
#include "cpu/select.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "cpu/buffer.h"
#include "cpu/candidates.h"
#include "cpu/dispatch.h"
#include "cpu/elias_fano.h"
#include "cpu/one_element.h"
#include "cpu/parallel.h"
#include "cpu/strata.h"
#include "cpu/values.h"

namespace dance::cpu {
namespace {

// The most elements that dgc's sample has (docs/format.md).
constexpr uint64_t kDgcSample = 32768;

struct Room {
  Buffer<uint32_t> indices;
  Buffer<float> values, sent, scratch;

  void trim() {
    indices.trim(kKeptBySelector / 4);
    values.trim(kKeptBySelector / 4);
    sent.trim(kKeptBySelector / 4);
    scratch.trim(kKeptBySelector / 4);
  }
};

Room& room_of_thread() {
  thread_local Room room;
  return room;
}

SelectJob job_of(const EncodeRequest& request) {
  return {request.x, request.state, request.dtype, request.state_dtype, request.numel};
}

Selection select_strata(const EncodeRequest& request, uint64_t total) {
  const CodecSpec& codec = request.codec;
  const SelectJob job = job_of(request);
  Room& room = room_of_thread();
  uint32_t* indices = room.indices.at_least(total);
  float* values = room.values.at_least(total);
  const auto take = [&](uint64_t i, uint64_t index) {
    indices[i] = static_cast<uint32_t>(index);
    values[i] = element(request.operation, job, index);
  };
  if (codec.scope == 0) {
    parallel_for(total, kValueGrain, [&](uint32_t, uint64_t first, uint64_t last) {
      for_each_stratum(request.seed, total, request.numel, first, last, take);
    });
  } else {
    parallel_for(divide_up(request.numel, codec.scope), std::max<uint64_t>(1, kValueGrain / codec.count),
                 [&](uint32_t, uint64_t first, uint64_t last) {
                   for_each_block(codec, request.numel, first, last,
                                  [&](uint64_t b, uint64_t begin, uint64_t n, uint64_t at, uint64_t k) {
                                    for_each_stratum(seed_of_block(request.seed, b), k, n, 0, k,
                                                     [&](uint64_t i, uint64_t index) { take(at + i, begin + index); });
                                  });
                 });
  }
  return {indices, values, total, pass_over(request.operation, job), kInfinityBits};
}

// top-k of each block; the indices within the blocks go to the payload.
Selection select_blocks(const EncodeRequest& request, uint64_t total) {
  const CodecSpec& codec = request.codec;
  const SelectJob job = job_of(request);
  const auto top_of_block = select_kernels().top_of_block[static_cast<int>(request.operation)];
  Room& room = room_of_thread();
  uint32_t* indices = room.indices.at_least(total);
  float* values = room.values.at_least(total);
  const uint64_t num_blocks = divide_up(request.numel, codec.scope);
  const uint64_t num_parts = num_shares(request.numel);
  float* scratch = room.scratch.at_least(num_parts * kBlockScratch);
  int64_t bad[kMaxParts];
  std::fill_n(bad, kMaxParts, int64_t{-1});
  parallel_for(num_parts, kPartsPerGrain, [&](uint32_t run, uint64_t first_part, uint64_t last_part) {
    for (uint64_t part = first_part; part < last_part; ++part) {
      const uint64_t first = num_blocks * part / num_parts, last = num_blocks * (part + 1) / num_parts;
      for_each_block(
          codec, request.numel, first, last, [&](uint64_t, uint64_t begin, uint64_t n, uint64_t at, uint64_t k) {
            const int64_t found = top_of_block(job, begin, static_cast<uint32_t>(n), static_cast<uint32_t>(k),
                                               scratch + part * kBlockScratch, indices + at, values + at);
            if (found >= 0 && bad[run] < 0) bad[run] = found;
            for (uint64_t i = at; i < at + k; ++i) {
              const uint16_t place = static_cast<uint16_t>(indices[i] - begin);
              std::memcpy(request.payload + 2 * i, &place, 2);
            }
          });
    }
  });
  if (total % 2 != 0) std::memset(request.payload + 2 * total, 0, 2);
  int64_t first_bad = -1;
  for (const int64_t index : bad) {
    if (first_bad < 0) first_bad = index;
  }
  return {indices, values, total, first_bad, kInfinityBits};
}

// A key that just those elements reach that reach the `rank`-th largest: dgc's threshold where its sample would be the
// whole array.
uint32_t exact_threshold(const EncodeRequest& request, uint64_t rank) {
  const SelectJob job = job_of(request);
  const SelectKernels& table = select_kernels();
  Room& room = room_of_thread();
  uint32_t* indices = room.indices.at_least(job.numel + kSelectSlack);
  float* values = room.values.at_least(2 * (job.numel + kSelectSlack));
  uint64_t ties;
  // What is not finite counts as 0, and would hide that the bound is too high.
  for (uint32_t lowest = estimate_bounds(request.operation, job, rank).lowest;; lowest = 0) {
    const uint64_t found = table.collect[static_cast<int>(request.operation)](job, 0, job.numel, lowest, false,
                                                                              kInfinityBits, indices, values);
    const bool finite = std::all_of(values, values + found, [](float v) { return is_finite(v); });
    if (lowest > 0 && (found < rank || !finite)) continue;
    return table.nth_key(values, found, rank, 0, lowest, values + job.numel + kSelectSlack, &ties);
  }
}

// The `rank`-th largest key of dgc's sample of `size` elements.
uint32_t sampled_threshold(const EncodeRequest& request, uint64_t size, uint64_t rank) {
  const SelectJob job = job_of(request);
  float* sample = room_of_thread().values.at_least(2 * size);
  for_each_stratum(request.seed, size, job.numel, 0, size,
                   [&](uint64_t i, uint64_t index) { sample[i] = element(request.operation, job, index); });
  uint64_t ties;
  const uint32_t bound = select_kernels().nth_key(sample, size, rank, 0, 0, sample + size, &ties);
  if (ties < size) return bound;
  // Signed, so that compilers vectorise it for any CPU; keys fit.
  constexpr auto infinity = static_cast<int32_t>(kInfinityBits);
  const auto least = static_cast<int32_t>(bound);
  int32_t key = infinity;
  for (uint64_t i = 0; i < size; ++i) {
    const auto whole = static_cast<int32_t>(magnitude(sample[i]));
    const int32_t own = whole < infinity ? whole : 0, other = own >= least ? own : infinity;
    key = other < key ? other : key;
  }
  return static_cast<uint32_t>(key);
}

// Whether receivers decode just v.
bool sends_v(const EncodeRequest& request) {
  return request.codec.values == None::id && request.dtype == Dtype::float32;
}

Selection select_dgc(const EncodeRequest& request) {
  const uint64_t k = request.codec.count, numel = request.numel, size = std::min(numel, kDgcSample);
  const uint64_t rank = std::min(size, divide_up(3 * k * size, 2 * numel));
  const SelectJob job = job_of(request);
  const uint32_t lowest = size == numel ? exact_threshold(request, rank) : sampled_threshold(request, size, rank);
  return select_global(request.operation, job, {lowest, sends_v(request) ? lowest : kInfinityBits}, k,
                       std::min(2 * k, numel));
}

Selection select_topk(const EncodeRequest& request, uint64_t total) {
  if (request.codec.scope > 0) return select_blocks(request, total);
  const SelectJob job = job_of(request);
  Bounds bounds = estimate_bounds(request.operation, job, total);
  if (!sends_v(request)) bounds.sent = kInfinityBits;
  return select_global(request.operation, job, bounds, total, total);
}

Selection select(const EncodeRequest& request, uint64_t total) {
  const SelectJob job = job_of(request);
  switch (request.codec.id) {
    case RandK::id:
      return select_strata(request, total);
    case Threshold::id:
      return select_global(request.operation, job,
                           {request.codec.argument, sends_v(request) ? request.codec.argument : kInfinityBits}, 0,
                           request.numel);
    case Dgc::id:
      return select_dgc(request);
    case TopK::id:
      return select_topk(request, total);
    default:
      throw ArgumentError("codec id " + std::to_string(request.codec.id) + " has no selector in csrc/cpu/select.cpp");
  }
}

// What receivers decode goes into the state of the elements that are sent. Where v is not finite a residual stays, but
// a reference moves as receivers' do, unless it is not finite itself: then theirs do not change either.
void finish_state(const EncodeRequest& request, const Selection& chosen, const DenseLayout& layout,
                  const uint8_t* payload) {
  const bool feedback = request.operation == Operation::feedback;
  parallel_for(chosen.count, kValueGrain, [&](uint32_t, uint64_t first, uint64_t last) {
    ValueReader decoded(layout, payload, chosen.count, 1.0f);
    if (feedback && request.state_dtype == Dtype::float32) {
      float unused;
      for (uint64_t i = first; i < last; ++i) {
        // Which ones are finished can't be predicted: no branch. What is not finite is larger than any key.
        const float v = chosen.values[i];
        float* state = static_cast<float*>(request.state) + chosen.indices[i];
        *(magnitude(v) < chosen.finished ? state : &unused) = next_state<Operation::feedback>(0.0f, v, decoded(i));
      }
      return;
    }
    for (uint64_t i = first; i < last; ++i) {
      const float v = chosen.values[i];
      const uint64_t index = chosen.indices[i];
      const float state = feedback ? 0.0f : load_element(request.state, request.state_dtype, index);
      if (!is_finite(feedback ? v : state)) continue;
      const float next = feedback ? next_state<Operation::feedback>(state, v, decoded(i))
                                  : next_state<Operation::difference>(state, v, decoded(i));
      store_element(request.state, request.state_dtype, index, next);
    }
  });
}

void send_values(const EncodeRequest& request, const Selection& chosen, uint8_t* payload) {
  const DenseLayout layout = dense_layout(request.codec, request.dtype, chosen.count);
  const float* sent = chosen.values;
  if (chosen.first_nonfinite >= 0) {
    float* finite = room_of_thread().sent.data();
    for (uint64_t i = 0; i < chosen.count; ++i) finite[i] = is_finite(sent[i]) ? sent[i] : 0.0f;
    sent = finite;
  }
  encode_dense(layout, Operation::encode, sent, Dtype::float32, nullptr, Dtype::float32, chosen.count, request.seed,
               payload);
  if (request.operation != Operation::encode) finish_state(request, chosen, layout, payload);
}

}  // namespace

EncodeResult encode_sparse(const EncodeRequest& request) {
  const CodecSpec& codec = request.codec;
  const uint64_t total = total_count(request.numel, codec.scope, codec.count);
  // Memory is asked for before the state is touched: an error leaves it as it was.
  room_of_thread().sent.at_least(codec.id == Threshold::id ? request.numel : codec.id == Dgc::id ? 2 * total : total);
  const Selection chosen = select(request, total);
  if (chosen.count > 0) {
    if (codec.scope == 0 && !is_seeded(codec.id)) {
      write_elias_fano(EliasFano(request.numel, chosen.count), chosen.indices, request.payload);
    }
    send_values(request, chosen, request.payload + sent_indices_nbytes(codec, request.numel, chosen.count));
  }
  trim_candidates();
  room_of_thread().trim();
  return {chosen.first_nonfinite, is_fixed_size(codec.id) ? codec.count : static_cast<uint32_t>(chosen.count)};
}

}  // namespace dance::cpu
