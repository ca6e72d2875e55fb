// The front door of the core: checks the arguments, picks the CPU or the CUDA backend, calls.
#include "codec_api.h"

#include <cstdio>

#include "../cuda/kernels.h"
#include "base/error.h"
#include "codecs/list.h"
#include "cpu/dense.h"
#include "cpu/dispatch.h"
#include "cpu/float_mode.h"
#include "cpu/parallel.h"
#include "cpu/reduce.h"
#include "cpu/select.h"

namespace dance {
namespace {

[[noreturn]] void refuse(const CodecSpec& codec, const std::string& what) {
  throw ArgumentError(name_of(codec.id) + (": " + what));
}

std::string text(uint64_t value) { return std::to_string(value); }

std::string number_text(float value) {
  char written[32];
  std::snprintf(written, sizeof written, "%.9g", static_cast<double>(value));
  return written;
}

void check_unused(const CodecSpec& codec, const char* name, uint32_t value) {
  if (value != 0) refuse(codec, "has no parameter " + std::string(name) + ", which must be 0, got " + text(value));
}

// The dense codec of a spec: itself, or that of a sparse codec's values.
uint8_t dense_id(const CodecSpec& codec) { return is_sparse(codec.id) ? codec.values : codec.id; }

void check_dense(const CodecSpec& codec) {
  const uint8_t id = dense_id(codec);
  const bool found = with_mode(DenseCodecs{}, id, codec.mode, [&](auto c) {
    using Codec = decltype(c);
    if constexpr (!has_scales<Codec>) {
      check_unused(codec, "block", codec.block);
    } else {
      constexpr uint32_t least = Codec::kFixedBlock != 0 ? Codec::kFixedBlock : kMinBlock;
      constexpr uint32_t most = Codec::kFixedBlock != 0 ? Codec::kFixedBlock : kMaxBlock;
      if (codec.block < least || codec.block > most) {
        refuse(codec, "block must be " + text(least) + (least == most ? "" : " to " + text(most)) + ", got " +
                          text(codec.block));
      }
    }
    if constexpr (!Codec::kVariableBits) {
      check_unused(codec, "levels", codec.levels);
    } else if (codec.levels < 3 || codec.levels > 255 || codec.levels % 2 == 0) {
      refuse(codec, "levels must be odd and 3 to 255, got " + text(codec.levels));
    }
  });
  if (found) return;
  if (!has_codec(DenseCodecs{}, id)) {
    refuse(codec, "values must be the number of a dense codec, got " + text(id));
  }
  refuse(codec, "has no mode " + text(codec.mode) + (id == codec.id ? "" : " of values " + std::string(name_of(id))));
}

void check_argument(const CodecSpec& codec) {
  // Compared as integers: the caller's thread may flush subnormal numbers to zero.
  const std::string got = ", got " + number_text(bits_float(codec.argument));
  if (codec.id == Threshold::id) {
    if (codec.argument - 1u >= kInfinityBits - 1u) refuse(codec, "its argument must be positive and finite" + got);
  } else if (codec.id == Dgc::id) {
    if (codec.argument - 1u >= float_bits(1.0f)) refuse(codec, "its argument, the ratio, must be in (0, 1]" + got);
  } else {
    check_unused(codec, "argument", codec.argument);
  }
}

void check_sparse(const CodecSpec& codec, uint64_t numel) {
  if (numel > kMaxSparseNumel) refuse(codec, text(numel) + " elements exceed 2^32 - 1");
  check_argument(codec);
  // What is selected by comparing with one value has no blocks to select from.
  if (!is_fixed_size(codec.id)) {
    check_unused(codec, "scope", codec.scope);
  } else if (codec.scope != 0 && (codec.scope < kMinScope || codec.scope > kMaxScope)) {
    refuse(codec, "scope must be 0 or " + text(kMinScope) + " to " + text(kMaxScope) + ", got " + text(codec.scope));
  }
  const uint64_t most = codec.scope == 0 ? numel : codec.scope;
  if (codec.count > most) {
    refuse(codec, "count " + text(codec.count) + " exceeds the " + text(most) + " elements it is of");
  }
  if (codec.count == 0 && most != 0 && is_fixed_size(codec.id)) refuse(codec, "count must be at least 1");
}

void check_spec(const CodecSpec& codec, uint64_t numel) {
  if (!is_codec(codec.id)) throw ArgumentError("codec id " + text(codec.id) + " is unknown");
  if (is_sparse(codec.id)) {
    check_sparse(codec, numel);
  } else {
    if (numel > kMaxNumel) refuse(codec, text(numel) + " elements exceed 2^40");
    check_unused(codec, "values", codec.values);
    check_unused(codec, "scope", codec.scope);
    check_unused(codec, "count", codec.count);
    check_unused(codec, "argument", codec.argument);
  }
  check_dense(codec);
}

// Bytes of the payload of `count` values of a sparse codec.
uint64_t sparse_payload(const CodecSpec& codec, Dtype dtype, uint64_t numel, uint64_t count) {
  return sent_indices_nbytes(codec, numel, count) + cpu::dense_layout(codec, dtype, count).payload_size;
}

void check_memory(const CodecSpec& codec, const char* name, const void* array, uint64_t numel) {
  if (array == nullptr && numel > 0) refuse(codec, std::string(name) + " has no memory");
}

bool meet(const void* a, uint64_t a_size, const void* b, uint64_t b_size) {
  const auto at = reinterpret_cast<uintptr_t>(a), other = reinterpret_cast<uintptr_t>(b);
  return at < other + b_size && other < at + a_size;
}

void check_size(const CodecSpec& codec, const uint8_t* payload, uint64_t size, uint64_t expected, uint64_t numel) {
  if (size != expected) {
    refuse(codec, "a payload of " + text(numel) + " elements has " + text(expected) + " bytes, got " + text(size));
  }
  check_memory(codec, "the payload", payload, size);
  if (reinterpret_cast<uintptr_t>(payload) % 4 != 0) refuse(codec, "the payload must be aligned to 4 bytes");
}

// Refuses what no encoder makes; `codes`: of each code and value, too. Arguments are checked.
void check_content(const CodecSpec& codec, Dtype dtype, const uint8_t* payload, uint64_t numel, bool codes) {
  if (numel == 0) return;
  uint64_t count = numel;
  if (is_sparse(codec.id)) {
    cpu::check_indices(codec, payload, numel);
    count = num_values(codec, numel);
    payload += sent_indices_nbytes(codec, numel, count);
  }
  if (count == 0) return;
  cpu::check_dense(cpu::dense_layout(codec, dtype, count), name_of(dense_id(codec)), payload, count, codes);
}

void check_decode(const DecodeRequest& request) {
  check_size(request.codec, request.payload, request.payload_size,
             payload_nbytes(request.codec, request.dtype, request.numel), request.numel);
}

void check_encode(const EncodeRequest& request) {
  check_size(request.codec, request.payload, request.payload_size,
             payload_bound(request.codec, request.dtype, request.numel), request.numel);
  if (request.operation == Operation::encode) return;
  if (request.state == nullptr && request.numel > 0) {
    refuse(request.codec, "this operation needs a residual or reference");
  }
  if (meet(request.payload, request.payload_size, request.state, dtype_nbytes(request.state_dtype) * request.numel)) {
    refuse(request.codec, "the packet to write shares memory with the residual or reference; pass another out");
  }
}

}  // namespace

std::vector<CodecInfo> codecs() {
  std::vector<CodecInfo> list;
  const auto add = [&](const char* name, uint8_t id) {
    if (list.empty() || list.back().id != id)
      list.push_back({id, name, is_sparse(id), is_fixed_size(id), is_seeded(id)});
  };
  for_each(DenseCodecs{}, [&](auto codec) { add(decltype(codec)::name, decltype(codec)::id); });
  for_each(SparseCodecs{}, [&](auto codec) { add(decltype(codec)::name, decltype(codec)::id); });
  return list;
}

uint64_t num_values(const CodecSpec& codec, uint64_t numel) {
  if (!is_sparse(codec.id)) return numel;
  return numel == 0 ? 0 : total_count(numel, codec.scope, codec.count);
}

uint64_t sent_indices_nbytes(const CodecSpec& codec, uint64_t numel, uint64_t count) {
  return is_seeded(codec.id) ? 0 : indices_nbytes(numel, codec.scope, count);
}

uint64_t payload_nbytes(const CodecSpec& codec, Dtype dtype, uint64_t numel) {
  check_spec(codec, numel);
  if (numel == 0) return 0;
  if (!is_sparse(codec.id)) return cpu::dense_layout(codec, dtype, numel).payload_size;
  return sparse_payload(codec, dtype, numel, num_values(codec, numel));
}

uint64_t payload_bound(const CodecSpec& codec, Dtype dtype, uint64_t numel) {
  uint64_t most_bytes = payload_nbytes(codec, dtype, numel);
  if (is_fixed_size(codec.id) || numel == 0) return most_bytes;
  const bool bounded = codec.id == Dgc::id && uint64_t{2} * codec.count < numel;
  const uint64_t least = codec.id == Dgc::id ? codec.count : 1;
  // The size grows with the count as long as low_bits stays the same, but may fall by a word where that does not: so
  // the largest count for each low_bits is looked at.
  for (uint64_t count = bounded ? uint64_t{2} * codec.count : numel; count >= least && count > 0;) {
    const uint64_t size = sparse_payload(codec, dtype, numel, count);
    most_bytes = size > most_bytes ? size : most_bytes;
    count = numel >> (EliasFano(numel, count).low_bits + 1);
  }
  return most_bytes;
}

EncodeResult encode(const EncodeRequest& request) {
  check_encode(request);
  if (request.numel == 0) return {-1, request.codec.count};
  check_memory(request.codec, "the input", request.x, request.numel);
  if (meet(request.payload, request.payload_size, request.x, dtype_nbytes(request.dtype) * request.numel)) {
    refuse(request.codec, "the packet to write shares memory with the input; pass another out");
  }
  if (request.place.device >= 0) {
    cuda::encode(request);
    return {-1, request.codec.count};
  }
  const cpu::FloatMode mode;
  if (is_sparse(request.codec.id)) return cpu::encode_sparse(request);
  const int64_t bad = cpu::encode_dense(cpu::dense_layout(request.codec, request.dtype, request.numel),
                                        request.operation, request.x, request.dtype, request.state, request.state_dtype,
                                        request.numel, request.seed, request.payload);
  return {bad, 0};
}

void decode(const DecodeRequest& request) {
  check_decode(request);
  if (request.numel == 0) return;
  check_memory(request.codec, "the output", request.out, request.numel);
  // Indices that were checked are read again while values are written.
  if (meet(request.payload, request.payload_size, request.out, dtype_nbytes(request.out_dtype) * request.numel)) {
    refuse(request.codec, "the output shares memory with the packet; pass another out");
  }
  if (request.place.device >= 0) return cuda::decode(request);
  const cpu::FloatMode mode;
  check_content(request.codec, request.dtype, request.payload, request.numel, false);
  if (is_sparse(request.codec.id)) return cpu::decode_sparse(request);
  cpu::decode_dense(cpu::dense_layout(request.codec, request.dtype, request.numel), request.payload, request.out,
                    request.out_dtype, request.numel, request.add, request.weight);
}

namespace {

// New codes are written while packets are still being read.
void check_apart(const ReduceRequest& request) {
  const EncodeRequest& into = *request.encode_into;
  for (uint32_t i = 0; i < request.num_packets; ++i) {
    if (meet(into.payload, into.payload_size, request.packets[i].payload, request.packets[i].payload_size)) {
      throw ArgumentError("reduce: the new packet shares memory with packet " + text(i) + "; pass another out");
    }
  }
}

}  // namespace

EncodeResult reduce(const ReduceRequest& request) {
  if (request.num_packets == 0) throw ArgumentError("reduce: expected at least one packet");
  if ((request.out == nullptr) == (request.encode_into == nullptr) && request.numel > 0) {
    throw ArgumentError("reduce: expected either an output array or a packet to encode into");
  }
  for (uint32_t i = 0; i < request.num_packets; ++i) {
    if (request.packets[i].numel != request.numel) {
      throw ArgumentError("reduce: packet " + text(i) + " has " + text(request.packets[i].numel) + " elements, not " +
                          text(request.numel));
    }
    check_decode(request.packets[i]);
  }
  if (request.encode_into != nullptr) {
    if (request.encode_into->numel != request.numel) throw ArgumentError("reduce: the new packet has another size");
    check_encode(*request.encode_into);
    check_apart(request);
  }
  const uint32_t count = request.encode_into == nullptr ? 0 : request.encode_into->codec.count;
  if (request.numel == 0) return {-1, count};
  if (request.place.device >= 0) {
    cuda::reduce(request);
    return {-1, count};
  }
  const cpu::FloatMode mode;
  for (uint32_t i = 0; i < request.num_packets; ++i) {
    const DecodeRequest& packet = request.packets[i];
    check_content(packet.codec, packet.dtype, packet.payload, packet.numel, false);
  }
  return cpu::reduce(request);
}

void check_received(const CodecSpec& codec, Dtype dtype, const uint8_t* payload, uint64_t payload_size,
                    uint64_t numel) {
  check_size(codec, payload, payload_size, payload_nbytes(codec, dtype, numel), numel);
  const cpu::FloatMode mode;
  check_content(codec, dtype, payload, numel, true);
}

void indices(const CodecSpec& codec, Dtype dtype, uint64_t seed, const uint8_t* payload, uint64_t payload_size,
             uint64_t numel, int64_t* out) {
  check_size(codec, payload, payload_size, payload_nbytes(codec, dtype, numel), numel);
  if (!is_sparse(codec.id)) refuse(codec, "sends every element; only sparse packets have indices");
  if (num_values(codec, numel) == 0) return;
  cpu::check_indices(codec, payload, numel);
  cpu::read_indices(codec, seed, payload, numel, out);
}

void mix(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel,
         Place place) {
  if (numel == 0) return;
  if (x == nullptr || neighbour_sum == nullptr || reference == nullptr)
    throw ArgumentError("mix: an array has no memory");
  if (place.device >= 0) return cuda::mix(x, neighbour_sum, reference, dtype, step_size, numel, place);
  const cpu::FloatMode mode;
  const auto loop = cpu::kernels().mix;
  cpu::parallel_for(numel, cpu::kGrain, [&](uint32_t, uint64_t first, uint64_t last) {
    loop(x, neighbour_sum, reference, dtype, step_size, first, last);
  });
}

uint64_t cuda_scratch_nbytes(const CodecSpec& codec, Dtype dtype, uint64_t numel) {
  check_spec(codec, numel);
  return numel == 0 ? 0 : cuda::scratch_nbytes(codec, dtype, numel);
}

uint64_t cuda_reduce_scratch_nbytes(const ReduceRequest& request) {
  return request.numel == 0 ? 0 : cuda::reduce_scratch_nbytes(request);
}

}  // namespace dance
