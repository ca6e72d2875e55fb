// The front door of the core: checks the arguments, picks the CPU or the CUDA table, calls.
#include "codec_api.h"

#include <cstring>

#include "../cuda/kernels.h"
#include "base/error.h"
#include "codecs/list.h"
#include "cpu/dispatch.h"
#include "cpu/float_mode.h"
#include "cpu/parallel.h"
#include "cpu/select.h"

namespace dance {
namespace {

// A thread gets at least so many elements. A first choice: where a wake-up pays off is still to be measured.
constexpr uint64_t kGrain = 65536;

std::string name_of(uint8_t id) {
  std::string name;
  const auto take = [&](auto codec) { name = decltype(codec)::name; };
  if (!with_codec(DenseCodecs{}, id, take) && !with_codec(SparseCodecs{}, id, take)) {
    throw ArgumentError("codec id " + std::to_string(id) + " is unknown");
  }
  return name;
}

void require(bool condition, const CodecSpec& codec, const std::string& what) {
  if (!condition) throw ArgumentError(name_of(codec.id) + ": " + what);
}

void check_sparse(const CodecSpec& codec, uint64_t numel) {
  require(codec.block == 0, codec, "has no block");
  require(codec.count <= numel, codec,
          "count " + std::to_string(codec.count) + " exceeds the " + std::to_string(numel) + " elements");
  require(numel == 0 || codec.count > 0, codec, "count must be at least 1");
  require(numel <= kMaxSparseNumel, codec, std::to_string(numel) + " elements exceed 2^32");
}

template <class Codec>
void check_dense(const CodecSpec& codec, uint64_t numel) {
  require(codec.count == 0, codec, "has no count");
  require(numel <= kMaxNumel, codec, std::to_string(numel) + " elements exceed 2^40");
  if (has_scales<Codec>) {
    require(codec.block >= kMinBlock && codec.block <= kMaxBlock, codec,
            "block must be " + std::to_string(kMinBlock) + " to " + std::to_string(kMaxBlock) + ", got " +
                std::to_string(codec.block));
  } else {
    require(codec.block == 0, codec, "has no block");
  }
}

// Elements a driver handles as one block.
template <class Codec>
uint32_t driver_block(const CodecSpec& codec) {
  return has_scales<Codec> ? codec.block : kChunk;
}

template <class Codec>
int index_of(const cpu::Kernels& table) {
  int i = 0;
  while (table.dense_ids[i] != Codec::id) ++i;
  return i;
}

bool is_sparse(uint8_t id) {
  return with_codec(SparseCodecs{}, id, [](auto) {});
}

int64_t first_of(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : a < b ? a : b; }

template <class Codec>
int64_t encode_dense(Operation operation, const CodecSpec& codec, const float* x, float* state, uint8_t* payload,
                     uint64_t numel) {
  const cpu::Kernels& table = cpu::kernels();
  const auto loop = table.encode[index_of<Codec>(table)][static_cast<int>(operation)];
  const uint32_t block = driver_block<Codec>(codec);
  const uint64_t codes_size = codes_nbytes<Codec>(numel, block);
  auto* scales = reinterpret_cast<float*>(payload + codes_size);
  if (has_scales<Codec> && Codec::bits == 8) std::memset(payload + numel, 0, codes_size - numel);
  const EncodeJob job{x, state, payload, scales, numel, block};
  const uint64_t num_blocks = divide_up(numel, block);
  if (numel < 2 * kGrain) return loop(job, 0, num_blocks);
  int64_t bad[cpu::kMaxThreads];
  for (int64_t& index : bad) index = -1;
  cpu::parallel_for(num_blocks, kGrain / block,
                    [&](uint32_t part, uint64_t first, uint64_t last) { bad[part] = loop(job, first, last); });
  int64_t first = -1;
  for (const int64_t index : bad) first = first_of(first, index);
  return first;
}

template <class Codec>
void validate_dense(const CodecSpec& codec, const uint8_t* payload, uint64_t numel) {
  if (!has_scales<Codec>) return;
  const std::string name = Codec::name;
  const uint64_t codes_size = codes_nbytes<Codec>(numel, codec.block);
  if (Codec::bits == 8) {
    for (uint64_t i = numel; i < codes_size; ++i) {
      if (payload[i] != 0)
        throw FrameError(name + ": padding byte " + std::to_string(i) + " of the payload is not zero");
    }
  }
  if (packs_words<Codec>) {
    // Unused bits occur in the last slots of a block whose size its words do not fill.
    const auto check = [&](uint64_t first_word, uint64_t n) {
      const uint64_t num_words = words_of<Codec>(n);
      for (uint64_t w = 0; w < num_words; ++w) {
        const uint64_t used_bits = divide_up(n - w, num_words) * Codec::bits;
        uint32_t word;
        std::memcpy(&word, payload + 4 * (first_word + w), 4);
        if (used_bits < 32 && word >> used_bits != 0) {
          throw FrameError(name + ": unused bits of word " + std::to_string(first_word + w) + " are not zero");
        }
      }
    };
    const uint64_t full = numel / codec.block, tail = numel % codec.block, each = words_of<Codec>(codec.block);
    if (codec.block * Codec::bits % 32 != 0) {
      for (uint64_t b = 0; b < full; ++b) check(b * each, codec.block);
    }
    if (tail != 0) check(full * each, tail);
  }
  const uint64_t num_scales = divide_up(numel, codec.block);
  for (uint64_t b = 0; b < num_scales; ++b) {
    uint32_t bits;
    std::memcpy(&bits, payload + codes_size + 4 * b, 4);
    if (!valid_scale(bits)) {
      throw FrameError(name + ": the scale of block " + std::to_string(b) + " is negative, infinite or NaN");
    }
  }
}

template <class Codec>
void decode_dense(const CodecSpec& codec, const uint8_t* payload, float* out, uint64_t numel, bool add, float weight) {
  validate_dense<Codec>(codec, payload, numel);
  const cpu::Kernels& table = cpu::kernels();
  const auto loop = table.decode[index_of<Codec>(table)][add ? 1 : 0];
  const uint32_t block = driver_block<Codec>(codec);
  const auto* scales = reinterpret_cast<const float*>(payload + codes_nbytes<Codec>(numel, block));
  const DecodeJob job{payload, scales, out, numel, block, weight};
  cpu::parallel_for(divide_up(numel, block), kGrain / block,
                    [&](uint32_t, uint64_t first, uint64_t last) { loop(job, first, last); });
}

void validate_sparse(const CodecSpec& codec, const uint8_t* payload, uint64_t numel) {
  const auto* indices = reinterpret_cast<const uint32_t*>(payload);
  for (uint64_t i = 0; i < codec.count; ++i) {
    if (indices[i] >= numel || (i > 0 && indices[i] <= indices[i - 1])) {
      throw FrameError("topk: index " + std::to_string(indices[i]) + " at place " + std::to_string(i) +
                       " is out of range or not increasing");
    }
  }
}

// Values that are sent without a scale are finite as encode makes them; one that is not would stay in a receiver's
// state for good.
template <class Codec>
void validate_values(const uint8_t* codes, uint64_t numel) {
  constexpr uint64_t size = Codec::bits / 8;
  const auto finite = [&](uint64_t i) {
    uint32_t code = 0;
    std::memcpy(&code, codes + i * size, size);
    return is_finite(Codec::decode(code, 1.0f));
  };
  for (uint64_t start = 0; start < numel; start += kChunk) {
    const uint64_t end = start + kChunk < numel ? start + kChunk : numel;
    bool all = true;
    for (uint64_t i = start; i < end; ++i) all &= finite(i);
    for (uint64_t i = start; !all && i < end; ++i) {
      if (finite(i)) continue;
      throw FrameError(std::string(Codec::name) + ": value " + std::to_string(i) +
                       " of the payload is NaN or infinite");
    }
  }
}

void decode_sparse(const CodecSpec& codec, const uint8_t* payload, float* out, uint64_t numel, bool add, float weight) {
  validate_sparse(codec, payload, numel);
  const auto* indices = reinterpret_cast<const uint32_t*>(payload);
  const auto* values = reinterpret_cast<const float*>(payload + 4 * codec.count);
  if (!add) std::memset(out, 0, numel * sizeof(float));
  for (uint64_t i = 0; i < codec.count; ++i) {
    const float decoded = weight * values[i];
    out[indices[i]] = add ? out[indices[i]] + decoded : decoded;
  }
}

void check_payload(const CodecSpec& codec, const uint8_t* payload, uint64_t payload_size, uint64_t numel) {
  const uint64_t expected = payload_nbytes(codec, numel);
  require(payload_size == expected, codec,
          "a payload of " + std::to_string(numel) + " elements has " + std::to_string(expected) + " bytes, got " +
              std::to_string(payload_size));
  require(reinterpret_cast<uintptr_t>(payload) % 4 == 0, codec, "the payload must be aligned to 4 bytes");
}

}  // namespace

std::vector<std::pair<int, std::string>> codecs() {
  std::vector<std::pair<int, std::string>> list;
  const auto add = [&](auto codec) { list.emplace_back(decltype(codec)::id, decltype(codec)::name); };
  for_each(DenseCodecs{}, add);
  for_each(SparseCodecs{}, add);
  return list;
}

uint64_t payload_nbytes(const CodecSpec& codec, uint64_t numel) {
  uint64_t size = 0;
  const bool dense = with_codec(DenseCodecs{}, codec.id, [&](auto c) {
    using Codec = decltype(c);
    check_dense<Codec>(codec, numel);
    size = dense_nbytes<Codec>(numel, driver_block<Codec>(codec));
  });
  if (!dense) {
    check_sparse(codec, numel);
    size = topk_nbytes(codec.count);
  }
  return size;
}

int64_t encode(Operation operation, const CodecSpec& codec, const float* x, float* state, uint8_t* payload,
               uint64_t payload_size, uint64_t numel, uint64_t seed, Place place, int64_t* nonfinite, void* scratch) {
  check_payload(codec, payload, payload_size, numel);
  if (numel == 0) return -1;
  require(operation == Operation::encode || state != nullptr, codec, "this operation needs a residual or reference");
  if (place.device >= 0) {
    cuda::encode(operation, codec, x, state, payload, numel, seed, place, nonfinite, scratch);
    return -1;
  }
  const cpu::FloatMode mode;
  int64_t bad = -1;
  if (is_sparse(codec.id)) {
    auto* indices = reinterpret_cast<uint32_t*>(payload);
    auto* values = reinterpret_cast<float*>(payload + 4 * codec.count);
    bad = cpu::select_largest(operation, {x, state, numel}, codec.count, indices, values);
  } else {
    with_codec(DenseCodecs{}, codec.id,
               [&](auto c) { bad = encode_dense<decltype(c)>(operation, codec, x, state, payload, numel); });
  }
  return bad;
}

void decode(const CodecSpec& codec, const uint8_t* payload, uint64_t payload_size, float* out, uint64_t numel, bool add,
            float weight, Place place) {
  check_payload(codec, payload, payload_size, numel);
  if (numel == 0) return;
  if (place.device >= 0) {
    return cuda::decode(codec, payload, out, numel, add, weight, place);
  }
  const cpu::FloatMode mode;
  if (is_sparse(codec.id)) {
    decode_sparse(codec, payload, out, numel, add, weight);
  } else {
    with_codec(DenseCodecs{}, codec.id,
               [&](auto c) { decode_dense<decltype(c)>(codec, payload, out, numel, add, weight); });
  }
}

void check_received(const CodecSpec& codec, const uint8_t* payload, uint64_t payload_size, uint64_t numel) {
  check_payload(codec, payload, payload_size, numel);
  if (is_sparse(codec.id)) {
    validate_sparse(codec, payload, numel);
    validate_values<None>(payload + 4 * codec.count, codec.count);
    return;
  }
  with_codec(DenseCodecs{}, codec.id, [&](auto c) {
    using Codec = decltype(c);
    validate_dense<Codec>(codec, payload, numel);
    if constexpr (!has_scales<Codec>) validate_values<Codec>(payload, numel);
  });
}

void mix(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t numel, Place place) {
  if (place.device >= 0) return cuda::mix(x, neighbour_sum, reference, step_size, numel, place);
  const cpu::FloatMode mode;
  const auto loop = cpu::kernels().mix;
  cpu::parallel_for(numel, kGrain, [&](uint32_t, uint64_t first, uint64_t last) {
    loop(x, neighbour_sum, reference, step_size, first, last);
  });
}

uint64_t cuda_scratch_nbytes(const CodecSpec& codec, uint64_t numel) {
  payload_nbytes(codec, numel);
  return cuda::scratch_nbytes(codec, numel);
}

}  // namespace dance
