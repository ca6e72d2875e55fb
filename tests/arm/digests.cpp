// Prints a digest of every codec x operation x dtype over awkward sizes and values: one line each. Equal bits on two
// machines, or on two CPU targets of one (DANCE_CPU), are equal lines.
#include <cinttypes>
#include <cstdio>
#include <string>

#include "../fuzz/input.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "frame/crc32c.h"
#include "frame/header.h"

using namespace dance;
using namespace dance::fuzz;

namespace {

// FNV-1a (Fowler, Noll, Vo).
struct Digest {
  uint64_t state = 0xcbf29ce484222325u;
  void add(const void* data, uint64_t size) {
    for (uint64_t i = 0; i < size; ++i) state = (state ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  }
  void add(const Bytes& bytes) { add(bytes.data(), bytes.size()); }
  void add(uint64_t value) { add(&value, sizeof value); }
};

// SplitMix64 (Steele, Lea, Flood 2014): integers alone, so that inputs are the same everywhere.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // A sum of four uniform numbers: about normal, deviation about 1.
  float normal() {
    const uint64_t bits = next();
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int64_t>(bits >> (16 * i) & 0xffffu) - 32768;
    return static_cast<float>(sum) * (1.0f / 32768.0f);
  }
};

enum class Values { normal, ties, scales, tiny, largest, zeros, anything };
constexpr Values kValues[] = {Values::normal,  Values::ties,  Values::scales,  Values::tiny,
                              Values::largest, Values::zeros, Values::anything};
constexpr uint64_t kSizes[] = {0, 1, 2, 31, 32, 33, 63, 255, 256, 257, 1000, 1025, 4099};

Array array_of(Values values, Dtype dtype, uint64_t numel, uint64_t seed) {
  Random random{seed};
  Array out(dtype, numel);
  for (uint64_t i = 0; i < numel; ++i) {
    const uint64_t bits = random.next();
    const auto small = static_cast<float>(static_cast<int64_t>(bits % 33) - 16);
    switch (values) {
      case Values::normal:
        out.set(i, random.normal());
        break;
      case Values::ties:  // halves and equal magnitudes
        out.set(i, small * 0.5f);
        break;
      case Values::scales:  // each element of its own size
        out.set(i, bits_float(static_cast<uint32_t>(bits & 0x807fffffu) | static_cast<uint32_t>(1 + (bits >> 32) % 252)
                                                                              << 23));
        break;
      case Values::tiny:  // subnormals and what is next to them
        out.set(i, bits_float(static_cast<uint32_t>(bits) & 0x81ffffffu));
        break;
      case Values::largest:
        out.set(i, (bits & 1 ? kLargest : -kLargest) * (bits & 2 ? 1.0f : 0.5f));
        break;
      case Values::zeros:
        out.set(i, bits & 1 ? 0.0f : -0.0f);
        break;
      case Values::anything: {  // any bits, NaN and infinity now and then
        const auto raw = static_cast<uint32_t>(bits);
        std::memcpy(out.bytes.data() + i * dtype_nbytes(dtype), &raw, dtype_nbytes(dtype));
        if (bits >> 32 & 15 && !is_finite(out.get(i))) out.set(i, small);
        break;
      }
    }
  }
  return out;
}

// Where two NaNs meet, the one that an addition returns is the machine's choice: outputs hold none before.
Array output_of(Dtype dtype, uint64_t numel) { return array_of(Values::normal, dtype, numel, 77); }

void add_case(Digest& digest, Operation operation, const CodecSpec& codec, const Array& x, Array state, uint64_t seed) {
  const Encoded packet = encode_array(operation, codec, x, operation == Operation::encode ? nullptr : &state, seed);
  digest.add(packet.payload);
  digest.add(packet.result.count);
  digest.add(static_cast<uint64_t>(packet.result.first_nonfinite));
  digest.add(state.bytes);
  frame::Header header{packet.codec, x.dtype, x.numel, packet.payload.size(), seed, 7, 2, 0};
  header.payload_crc = frame::crc32c(packet.payload.data(), packet.payload.size());
  uint8_t bytes[frame::kHeaderSize];
  frame::write(header, bytes);
  digest.add(bytes, sizeof bytes);
  frame::check_payload(frame::parse(bytes, sizeof bytes), packet.payload.data(), packet.payload.size());

  const Array out = output_of(state.dtype, x.numel), sum = output_of(Dtype::float32, x.numel);
  decode(decode_request(packet, out, true, 0.7f));
  digest.add(out.bytes);
  decode(decode_request(packet, out, false, 1.0f));
  digest.add(out.bytes);
  const DecodeRequest packets[] = {decode_request(packet, sum, false, 1.0f), decode_request(packet, sum, false, 1.0f)};
  const Bytes room(payload_bound(codec, x.dtype, x.numel));
  EncodeRequest into;
  into.codec = codec;
  into.dtype = x.dtype;
  into.numel = x.numel;
  into.seed = seed + 1;
  into.payload = room.data();
  into.payload_size = room.size();
  ReduceRequest request;
  request.packets = packets;
  request.num_packets = 2;
  request.numel = x.numel;
  request.weight = 0.3f;
  request.out = sum.bytes.data();
  digest.add(reduce(request).count);
  digest.add(sum.bytes);
  request.out = nullptr;
  request.encode_into = &into;
  CodecSpec again = codec;
  again.count = reduce(request).count;
  digest.add(room.data(), payload_nbytes(again, x.dtype, x.numel));
}

// Some settings of each codec: blocks, levels, scopes.
std::vector<CodecSpec> specs(const Kind& kind) {
  std::vector<CodecSpec> list;
  CodecSpec spec;
  spec.id = kind.id;
  spec.mode = kind.mode;
  if (kind.sparse) {
    for (const Kind& values : dense_kinds()) {
      spec.values = values.id;
      spec.mode = values.mode;
      spec.block = static_cast<uint16_t>(!values.scales ? 0 : values.fixed_block != 0 ? values.fixed_block : 64);
      spec.levels = values.levels ? 31 : 0;
      if (!kind.fixed_size) spec.argument = float_bits(kind.id == Dgc::id ? 0.1f : 0.75f);
      list.push_back(spec);
      spec.scope = 100;
      if (kind.fixed_size) list.push_back(spec);
      spec.scope = 0;
    }
  } else if (kind.levels) {
    for (const uint16_t levels : {3, 5, 15, 17, 63, 127, 255}) {
      spec.block = levels == 15 ? 100 : 256;
      spec.levels = levels;
      list.push_back(spec);
    }
  } else if (kind.scales && kind.fixed_block == 0) {
    for (const uint16_t block : {32, 50, 256, 4096}) {
      spec.block = block;
      list.push_back(spec);
    }
  } else {
    spec.block = kind.fixed_block;
    list.push_back(spec);
  }
  return list;
}

void print_line(const CodecSpec& codec, Operation operation, Dtype dtype, Dtype state_dtype) {
  Digest digest;
  uint64_t seed = 1;
  for (const Values values : kValues) {
    for (const uint64_t numel : kSizes) {
      CodecSpec sized = codec;
      const bool sparse = with_codec(SparseCodecs{}, codec.id, [](auto) {});
      const uint64_t most = codec.scope != 0 ? codec.scope : numel;
      if (sparse) sized.count = static_cast<uint32_t>(divide_up(most, 9));
      ++seed;
      add_case(digest, operation, sized, array_of(values, dtype, numel, seed),
               array_of(values, state_dtype, numel, seed << 32), seed);
    }
  }
  std::printf("codec %u mode %u values %u block %u levels %u scope %u operation %d dtype %d state %d: %016" PRIx64 "\n",
              codec.id, codec.mode, codec.values, codec.block, codec.levels, codec.scope, static_cast<int>(operation),
              static_cast<int>(dtype), static_cast<int>(state_dtype), digest.state);
}

// On three threads, each of which has several grains.
void print_large(const Kind& kind) {
  constexpr uint64_t kNumel = (1 << 16) + 3;
  CodecSpec codec = specs(kind).front();
  if (kind.sparse) codec.count = kNumel / 100;
  cpu::set_grain_shift(12);  // 2^18 elements become 64
  Digest digest;
  add_case(digest, Operation::feedback, codec, array_of(Values::normal, Dtype::float32, kNumel, 5),
           array_of(Values::ties, Dtype::float32, kNumel, 6), 9);
  cpu::set_grain_shift(0);
  std::printf("codec %u mode %u, %" PRIu64 " elements: %016" PRIx64 "\n", codec.id, codec.mode, kNumel, digest.state);
}

void print_mix(Dtype dtype) {
  Digest digest;
  for (const uint64_t numel : kSizes) {
    const Array x = array_of(Values::normal, dtype, numel, 1), sum = array_of(Values::scales, dtype, numel, 2);
    const Array reference = array_of(Values::ties, dtype, numel, 3);
    mix(x.bytes.data(), sum.bytes.data(), reference.bytes.data(), dtype, 0.3f, numel, Place{});
    digest.add(x.bytes);
  }
  std::printf("mix dtype %d: %016" PRIx64 "\n", static_cast<int>(dtype), digest.state);
}

}  // namespace

int main() {
  cpu::set_num_threads(3);
  // Not part of what is compared.
  std::fprintf(stderr, "%s\n", cpu::kernels().target);
  for (const Kind& kind : all_kinds()) {
    for (const CodecSpec& codec : specs(kind)) {
      for (int operation = 0; operation < kNumOperations; ++operation) {
        // Values of sparse codecs are dense arrays, seen with every dtype already.
        for (int dtype = 0; dtype < (kind.sparse && codec.values != 0 ? 1 : kNumDtypes); ++dtype) {
          print_line(codec, static_cast<Operation>(operation), static_cast<Dtype>(dtype), Dtype::float32);
          if (operation == 0 || dtype == 0) continue;
          print_line(codec, static_cast<Operation>(operation), static_cast<Dtype>(dtype), static_cast<Dtype>(dtype));
        }
      }
    }
    print_large(kind);
  }
  for (int dtype = 0; dtype < kNumDtypes; ++dtype) print_mix(static_cast<Dtype>(dtype));
  return 0;
}
