// Dense codecs on the CPU over several threads.
#include "cpu/dense.h"

#include <cstring>
#include <string>

#include "base/error.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace dance::cpu {
namespace {

const DenseKernels& find_kernels(uint8_t id, uint8_t mode) {
  for (const DenseKernels& kernels : kernels().dense) {
    if (kernels.id == id && kernels.mode == mode) return kernels;
  }
  throw ArgumentError("codec " + std::to_string(id) + ", mode " + std::to_string(mode) + ": not a dense codec");
}

// Blocks a thread takes at least.
uint64_t grain_of(const DenseLayout& layout) { return divide_up(kGrain, layout.block); }

// Unused bits occur in the last slots of a field whose codes do not fill its words.
void check_unused_bits(const char* name, const uint8_t* words, uint64_t first_word, uint64_t n, uint32_t bits) {
  for (uint32_t field = 4; field > 0; field /= 2) {
    if ((bits & field) == 0) continue;
    const uint64_t num_words = divide_up(n * field, 32);
    for (uint64_t w = 0; n * field % 32 != 0 && w < num_words; ++w) {
      const uint64_t used_bits = divide_up(n - w, num_words) * field;
      uint32_t word;
      std::memcpy(&word, words + 4 * (first_word + w), 4);
      if (used_bits < 32 && word >> used_bits != 0) {
        throw FrameError(std::string(name) + ": unused bits of word " + std::to_string(first_word + w) +
                         " are not zero");
      }
    }
    first_word += num_words;
  }
}

void check_padding(const DenseLayout& layout, const char* name, const uint8_t* payload, uint64_t numel) {
  if (layout.bits >= 8) {
    for (uint64_t i = numel * (layout.bits / 8); i < layout.codes_size; ++i) {
      if (payload[i] != 0) {
        throw FrameError(std::string(name) + ": padding byte " + std::to_string(i) + " of the payload is not zero");
      }
    }
    return;
  }
  const uint64_t full = numel / layout.block, tail = numel % layout.block, each = words_of(layout.block, layout.bits);
  if (layout.block % 32 != 0) {
    for (uint64_t b = 0; b < full; ++b) check_unused_bits(name, payload, b * each, layout.block, layout.bits);
  }
  if (tail != 0) check_unused_bits(name, payload, full * each, tail, layout.bits);
}

// Zero, or from `smallest` to `largest`, as unsigned integers (so no sign).
template <class Bits>
void check_scales(const char* name, const uint8_t* scales, uint64_t num_scales, uint32_t smallest, uint32_t largest) {
  const auto wrong = [&](uint64_t b) -> uint32_t {
    Bits bits;
    std::memcpy(&bits, scales + b * sizeof bits, sizeof bits);
    return bits != 0 && bits - smallest > largest - smallest ? 1 : 0;
  };
  uint32_t any = 0;
  for (uint64_t b = 0; b < num_scales; ++b) any |= wrong(b);
  for (uint64_t b = 0; any != 0 && b < num_scales; ++b) {
    if (wrong(b) == 0) continue;
    throw FrameError(std::string(name) + ": the scale of block " + std::to_string(b) +
                     " is negative, NaN or otherwise not one that an encoder makes");
  }
}

}  // namespace

DenseLayout dense_layout(uint8_t id, uint8_t mode, uint32_t block, uint32_t levels, Dtype dtype, uint64_t numel) {
  id = stored_as(id, dtype);
  DenseLayout layout{};
  layout.kernels = &find_kernels(id, mode);
  with_mode(DenseCodecs{}, id, mode, [&](auto codec) {
    using Codec = decltype(codec);
    layout.block = has_scales<Codec> ? block : kChunk;
    layout.bits = Codec::kVariableBits ? bits_of_levels(levels) : Codec::bits;
    layout.levels = levels;
    layout.codes_size = codes_nbytes<Codec>(numel, layout.block, layout.bits);
    layout.payload_size = dense_nbytes<Codec>(numel, layout.block, layout.bits);
    layout.has_scales = has_scales<Codec>;
    layout.is_float_scale = has_scales<Codec> && sizeof(typename Codec::Scale) == sizeof(float);
    layout.largest_scale = Codec::largest_scale(levels);
  });
  return layout;
}

int64_t encode_dense(const DenseLayout& layout, Operation operation, const void* x, Dtype dtype, void* state,
                     Dtype state_dtype, uint64_t numel, uint64_t seed, uint8_t* payload) {
  const EncodeBlocks encode = layout.kernels->encode[static_cast<int>(operation)];
  if (layout.bits == 8) std::memset(payload + numel, 0, layout.codes_size - numel);
  const EncodeJob job{x,     state, dtype,        state_dtype, payload,       payload + layout.codes_size,
                      numel, 0,     layout.block, layout.bits, layout.levels, seed};
  const uint64_t num_blocks = divide_up(numel, layout.block);
  if (num_threads_for(num_blocks, grain_of(layout)) == 1) return encode(job, 0, num_blocks);
  int64_t bad[kMaxParts];
  for (int64_t& index : bad) index = -1;
  parallel_for(num_blocks, grain_of(layout),
               [&](uint32_t part, uint64_t first, uint64_t last) { bad[part] = encode(job, first, last); });
  for (const int64_t index : bad) {
    if (index >= 0) return index;
  }
  return -1;
}

void decode_dense(const DenseLayout& layout, const uint8_t* payload, void* out, Dtype out_dtype, uint64_t numel,
                  bool add, float weight) {
  const DecodeBlocks decode = layout.kernels->decode[add ? 1 : 0];
  const DecodeJob job{payload, payload + layout.codes_size, out, out_dtype, numel, 0, layout.block, layout.bits,
                      weight};
  parallel_for(divide_up(numel, layout.block), grain_of(layout),
               [&](uint32_t, uint64_t first, uint64_t last) { decode(job, first, last); });
}

void check_dense(const DenseLayout& layout, const char* name, const uint8_t* payload, uint64_t numel, bool codes) {
  const uint64_t num_blocks = divide_up(numel, layout.block);
  const uint8_t* scales = payload + layout.codes_size;
  check_padding(layout, name, payload, numel);
  if (layout.is_float_scale) {
    check_scales<uint32_t>(name, scales, num_blocks, float_bits(kSmallestNormal), layout.largest_scale);
  } else if (layout.has_scales) {
    check_scales<uint8_t>(name, scales, num_blocks, 1, layout.largest_scale);
  }
  if (!codes) return;
  const DecodeJob job{payload, scales, nullptr, Dtype::float32, numel, 0, layout.block, layout.bits, 1.0f};
  const auto valid = [&](uint64_t first, uint64_t last) {
    return layout.kernels->check(job, layout.levels, first, last);
  };
  bool good[kMaxParts];
  for (bool& part : good) part = true;
  parallel_for(num_blocks, grain_of(layout),
               [&](uint32_t part, uint64_t first, uint64_t last) { good[part] = valid(first, last); });
  bool all = true;
  for (const bool part : good) all &= part;
  for (uint64_t b = 0; !all && b < num_blocks; ++b) {
    if (valid(b, b + 1)) continue;
    throw FrameError(std::string(name) + ": elements " + std::to_string(b * layout.block) + " and up hold a " +
                     (layout.has_scales ? "code that no encoder makes" : "value that is NaN or infinite"));
  }
}

}  // namespace dance::cpu
