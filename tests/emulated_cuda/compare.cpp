// Runs the CUDA backend on the emulated device beside the CPU driver, both through the front door, and compares
// payloads, counts, states and decoded values bit for bit: every codec, block and operation, over sizes, values, dtypes
// and alignments drawn at random. Prints the number of comparisons; fails at the first difference.
//   compare [rounds]   draws so many times as many cases (1)
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "arrays.h"
#include "base/error.h"
#include "codec_api.h"
#include "codecs/list.h"
#include "kernels.h"
#include "warp.h"

#include <cuda_runtime.h>

namespace {

using dance::CodecSpec;
using dance::DecodeRequest;
using dance::Dtype;
using dance::EncodeRequest;
using dance::Operation;
using dance::Place;

constexpr Place kCpu{};
constexpr Place kEmulated{0, 0};
constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float32, Dtype::float16, Dtype::bfloat16};
constexpr float kWeights[] = {1.0f, -0.37f, 0.125f};

uint64_t num_comparisons = 0;

std::string text(uint64_t value) { return std::to_string(value); }

std::string describe(const CodecSpec& codec) {
  return "codec " + text(codec.id) + " mode " + text(codec.mode) + " block " + text(codec.block) + " levels " +
         text(codec.levels) + " values " + text(codec.values) + " scope " + text(codec.scope) + " count " +
         text(codec.count) + " argument " + text(codec.argument);
}

void expect(bool condition, const char* what, const std::string& where) {
  ++num_comparisons;
  if (condition) return;
  std::printf("differs: %s: %s\n", what, where.c_str());
  std::exit(1);
}

struct Case {
  CodecSpec codec;
  Operation operation;
  uint64_t numel;
  Kind kind;
  Dtype dtype, state_dtype;
  bool aligned;
  uint64_t seed;

  std::string where() const {
    return describe(codec) + " operation " + text(static_cast<int>(operation)) + " numel " + text(numel) + " values '" +
           name_of(kind) + "' dtypes " + text(static_cast<int>(dtype)) + " " + text(static_cast<int>(state_dtype)) +
           (aligned ? " aligned" : "");
  }
};

// One encode on both, and what came of it.
struct Encoded {
  Guarded payload, state;
  uint32_t count = 0;
  int64_t bad = -1;
};

Encoded encode_on(Place place, EncodeRequest request, Guarded state, const std::string& where) {
  Encoded result{Guarded(dance::payload_bound(request.codec, request.dtype, request.numel), 4), std::move(state)};
  int64_t lowest = INT64_MAX;
  uint32_t count = 0xdeadbeef;
  request.place = place;
  request.payload = result.payload.data();
  request.payload_size = result.payload.num_bytes();
  request.state = result.state.data();
  if (place.device < 0) {
    const dance::EncodeResult found = dance::encode(request);
    result.count = found.count;
    result.bad = found.first_nonfinite;
  } else {
    Guarded scratch(dance::cuda_scratch_nbytes(request.codec, request.dtype, request.numel));
    request.nonfinite = &lowest;
    request.count = &count;
    request.scratch = scratch.data();
    result.count = dance::encode(request).count;
    if (request.codec.id == dance::Threshold::id || request.codec.id == dance::Dgc::id) result.count = count;
    result.bad = lowest == INT64_MAX ? -1 : lowest;
    expect(scratch.intact(), "scratch", where);
  }
  expect(result.payload.intact() && result.state.intact(), "guards", where);
  return result;
}

// The spec that receivers of a sparse packet have.
CodecSpec received(CodecSpec codec, uint32_t count) {
  codec.count = count;
  return codec;
}

void compare_decode(const Case& c, const CodecSpec& codec, Guarded& payload, Random& random) {
  for (const bool add : {false, true}) {
    DecodeRequest request;
    request.codec = codec;
    request.dtype = c.dtype;
    request.seed = c.seed;
    request.payload = payload.data();
    request.payload_size = dance::payload_nbytes(codec, c.dtype, c.numel);
    request.numel = c.numel;
    request.out_dtype = random.of(kDtypes);
    request.add = add;
    request.weight = random.of(kWeights);
    Guarded cpu = draw_array(request.out_dtype, c.numel, random.of(kKinds), c.aligned, random), gpu = cpu;
    request.out = cpu.data();
    dance::decode(request);
    Guarded scratch(dance::cuda_scratch_nbytes(codec, c.dtype, c.numel));
    request.out = gpu.data();
    request.place = kEmulated;
    request.scratch = scratch.data();
    dance::decode(request);
    expect(cpu.same(gpu), add ? "decode, adding" : "decode", c.where());
    expect(gpu.intact() && scratch.intact(), "guards of decode", c.where());
  }
}

void compare(const Case& c, Random& random) {
  const std::string where = c.where();
  Guarded x = draw_array(c.dtype, c.numel, c.kind, c.aligned, random);
  // 'some bad' has a finite state, so that a block is bad by x alone; the others mix.
  const Kind state_kind = c.kind == Kind::some_bad || random.below(3) == 0 ? Kind::normal
                          : c.kind >= Kind::sample_high                    ? Kind::zeros
                                                                           : c.kind;
  const Guarded state =
      c.operation == Operation::encode ? Guarded() : draw_array(c.state_dtype, c.numel, state_kind, c.aligned, random);
  EncodeRequest request;
  request.operation = c.operation;
  request.codec = c.codec;
  request.x = x.data();
  request.dtype = c.dtype;
  request.state_dtype = c.state_dtype;
  request.numel = c.numel;
  request.seed = c.seed;
  Encoded cpu = encode_on(kCpu, request, state, where), gpu = encode_on(kEmulated, request, state, where);
  if (dance::is_sparse(c.codec.id)) expect(cpu.count == gpu.count, "count", where);
  const CodecSpec codec = dance::is_sparse(c.codec.id) ? received(c.codec, cpu.count) : c.codec;
  expect(cpu.payload.same(gpu.payload, dance::payload_nbytes(codec, c.dtype, c.numel)), "payload", where);
  expect(cpu.state.same(gpu.state), "state", where);
  expect(cpu.bad == gpu.bad, "first non-finite index", where);
  if (c.operation == Operation::encode || random.below(8) == 0) compare_decode(c, codec, cpu.payload, random);
}

// All specs of the dense codecs; `list` gets each once.
std::vector<CodecSpec> dense_specs() {
  std::vector<CodecSpec> list;
  dance::for_each(dance::DenseCodecs{}, [&](auto c) {
    using Codec = decltype(c);
    CodecSpec spec;
    spec.id = Codec::id;
    spec.mode = Codec::mode;
    if (!dance::has_scales<Codec>) return list.push_back(spec);
    for (const uint16_t block : {32, 33, 64, 100, 128, 256, 300, 512, 1024, 4096}) {
      if (Codec::kFixedBlock != 0 && block != Codec::kFixedBlock) continue;
      spec.block = block;
      if (!Codec::kVariableBits) {
        list.push_back(spec);
        continue;
      }
      for (const uint16_t levels : {3, 5, 9, 17, 33, 65, 127, 129, 255}) {
        if (block != 256 && block != 64 && levels % 5 == 2) continue;
        spec.levels = levels;
        list.push_back(spec);
      }
    }
  });
  return list;
}

CodecSpec sparse_spec(uint8_t id, uint64_t numel, const std::vector<CodecSpec>& dense, Random& random) {
  CodecSpec spec = dense[random.below(static_cast<uint32_t>(dense.size()))];
  if (random.below(3) == 0) spec = CodecSpec{};
  spec.values = spec.id;
  spec.id = id;
  const auto n = static_cast<uint32_t>(numel);
  if (id == dance::Threshold::id) {
    spec.argument = dance::float_bits(random.pick({1.1f, 0.25f, 1e-30f, 1e30f}));
    return spec;
  }
  if (id == dance::Dgc::id) {
    const float ratio = random.pick({0.001f, 0.01f, 0.3f, 1.0f});
    spec.argument = dance::float_bits(ratio);
    spec.count = static_cast<uint32_t>(std::ceil(ratio * static_cast<double>(n)));
    spec.count = spec.count < 1 ? 1 : spec.count > n ? n : spec.count;
    return spec;
  }
  if (random.below(2) == 0) spec.scope = static_cast<uint16_t>(random.pick({64, 100, 513, 4096, 20000, 32768}));
  const uint32_t most = spec.scope != 0 ? spec.scope : n;
  const uint32_t counts[] = {1, most / 100 + 1, most / 2 + 1, most, 1 + random.below(most)};
  spec.count = random.of(counts);
  spec.count = spec.count > most ? most : spec.count;
  return spec;
}

Operation operation_of(uint32_t i) { return static_cast<Operation>(i % dance::kNumOperations); }

Case draw_case(const CodecSpec& codec, uint64_t numel, uint32_t i, Random& random) {
  return {codec,
          operation_of(i),
          numel,
          random.of(kKinds),
          random.of(kDtypes),
          random.of(kDtypes),
          random.below(3) > 0,
          random.next()};
}

void compare_dense(const std::vector<CodecSpec>& specs, uint32_t rounds, Random& random) {
  constexpr uint64_t sizes[] = {1, 31, 33, 255, 256, 257, 511, 1000, 2304, 4100};
  for (const CodecSpec& spec : specs) {
    // A block that is unlike the default is compared less often.
    const uint32_t draws = rounds * (spec.block == 0 ? 60 : spec.levels != 0 ? 6 : spec.block == 256 ? 24 : 9);
    for (uint32_t i = 0; i < draws; ++i) compare(draw_case(spec, random.of(sizes), i, random), random);
  }
}

void compare_sparse(const std::vector<CodecSpec>& dense, uint32_t rounds, Random& random) {
  constexpr uint64_t sizes[] = {1, 2, 33, 100, 257, 2048, 2049, 6007, 33000, 40961};
  dance::for_each(dance::SparseCodecs{}, [&](auto c) {
    for (uint32_t i = 0; i < 120 * rounds; ++i) {
      const uint64_t numel = i % 8 == 0 ? random.of(sizes) : sizes[random.below(8)];
      compare(draw_case(sparse_spec(decltype(c)::id, numel, dense, random), numel, i, random), random);
    }
  });
  // The guess of topk fails in both ways, and dgc's sample finds too little and too much; with states of either kind.
  for (uint32_t i = 0; i < 12 * rounds; ++i) {
    const uint64_t numel = 50000 + random.below(3000);
    CodecSpec spec;
    spec.id = i % 2 ? dance::TopK::id : dance::Dgc::id;
    spec.count = i % 4 < 2 ? 1500 : 9000;
    if (spec.id == dance::Dgc::id) spec.argument = dance::float_bits(0.01f);
    Case c = draw_case(spec, numel, i / 4, random);
    c.kind = i % 3 == 0 ? Kind::sample_low : Kind::sample_high;
    c.seed = 0;
    compare(c, random);
  }
}

struct Packet {
  CodecSpec codec;
  Dtype dtype;
  uint64_t seed;
  Guarded payload;
};

Packet draw_packet(const CodecSpec& spec, Dtype dtype, uint64_t numel, Random& random) {
  Guarded x = draw_array(dtype, numel, random.below(4) ? Kind::normal : random.of(kKinds), true, random);
  EncodeRequest request;
  request.codec = spec;
  request.x = x.data();
  request.dtype = dtype;
  request.numel = numel;
  request.seed = random.next();
  Encoded encoded = encode_on(kCpu, request, Guarded(), "a packet to reduce");
  return {dance::is_sparse(spec.id) ? received(spec, encoded.count) : spec, dtype, request.seed,
          std::move(encoded.payload)};
}

// A reduce on both; `into`: null, or the codec it is encoded again with.
void compare_reduce(std::vector<Packet>& packets, uint64_t numel, const CodecSpec* into, Random& random) {
  std::vector<DecodeRequest> requests;
  for (Packet& packet : packets) {
    DecodeRequest request;
    request.codec = packet.codec;
    request.dtype = packet.dtype;
    request.seed = packet.seed;
    request.payload = packet.payload.data();
    request.payload_size = dance::payload_nbytes(packet.codec, packet.dtype, numel);
    request.numel = numel;
    requests.push_back(request);
  }
  const Dtype dtype = random.of(kDtypes), state_dtype = random.of(kDtypes);
  const Operation operation = random.below(2) ? Operation::feedback : Operation::encode;
  const std::string where = text(packets.size()) + " packets of " + describe(packets[0].codec) + " numel " +
                            text(numel) + (into == nullptr ? " to an array" : " to " + describe(*into)) +
                            " operation " + text(static_cast<int>(operation));
  const float weight = random.of(kWeights);
  const Guarded state = draw_array(state_dtype, numel, Kind::normal, random.below(2) == 0, random);
  Guarded out[2], states[2], payloads[2];
  uint32_t counts[2] = {0, 0};
  int64_t bad[2] = {-1, INT64_MAX};
  for (int side = 0; side < 2; ++side) {
    dance::ReduceRequest request;
    request.packets = requests.data();
    request.num_packets = static_cast<uint32_t>(requests.size());
    request.numel = numel;
    request.weight = weight;
    request.place = side == 0 ? kCpu : kEmulated;
    EncodeRequest again;
    if (into == nullptr) {
      out[side] = Guarded(numel * dance::dtype_nbytes(dtype), 4);
      request.out = out[side].data();
      request.out_dtype = dtype;
    } else {
      states[side] = state;
      payloads[side] = Guarded(dance::payload_bound(*into, dtype, numel), 4);
      again.operation = operation;
      again.codec = *into;
      again.dtype = dtype;
      again.state = states[side].data();
      again.state_dtype = state_dtype;
      again.numel = numel;
      again.seed = 77;
      again.payload = payloads[side].data();
      again.payload_size = payloads[side].num_bytes();
      again.place = request.place;
      again.nonfinite = side == 0 ? nullptr : &bad[1];
      again.count = side == 0 ? nullptr : &counts[1];
      request.encode_into = &again;
    }
    Guarded scratch(side == 0 ? 0 : dance::cuda_reduce_scratch_nbytes(request));
    request.scratch = scratch.data();
    const dance::EncodeResult result = dance::reduce(request);
    if (side == 0) {
      counts[0] = result.count;
      bad[0] = result.first_nonfinite;
    } else if (into != nullptr &&
               dance::payload_bound(*into, dtype, numel) == dance::payload_nbytes(*into, dtype, numel)) {
      counts[1] = result.count;
    }
    expect(scratch.intact() && out[side].intact() && states[side].intact() && payloads[side].intact(),
           "guards of reduce", where);
  }
  expect(out[0].same(out[1]) && states[0].same(states[1]), "reduce", where);
  if (into == nullptr) return;
  expect(counts[0] == counts[1], "count of reduce", where);
  expect(bad[0] == (bad[1] == INT64_MAX ? -1 : bad[1]), "first non-finite index of reduce", where);
  const CodecSpec codec = dance::is_sparse(into->id) ? received(*into, counts[0]) : *into;
  expect(payloads[0].same(payloads[1], dance::payload_nbytes(codec, dtype, numel)), "payload of reduce", where);
}

void compare_reduces(const std::vector<CodecSpec>& dense, uint32_t rounds, Random& random) {
  constexpr uint64_t sizes[] = {1, 256, 1000, 2304, 4100};
  std::vector<CodecSpec> specs;
  for (const CodecSpec& spec : dense) {
    if (spec.block == 0 || spec.block == 256 || spec.block == 32 || random.below(3) == 0) specs.push_back(spec);
  }
  for (uint32_t i = 0; i < rounds * specs.size(); ++i) {
    const CodecSpec& spec = specs[i % specs.size()];
    const uint64_t numel = random.of(sizes);
    const Dtype dtype = random.of(kDtypes);
    std::vector<Packet> packets;
    for (uint32_t p = 0; p < 1 + random.below(4); ++p) packets.push_back(draw_packet(spec, dtype, numel, random));
    compare_reduce(packets, numel, nullptr, random);
    compare_reduce(packets, numel, &spec, random);
    // Others mixed in, and encoded with another codec.
    if (i % 4 != 0) continue;
    const CodecSpec sparse = sparse_spec(
        random.pick({dance::TopK::id, dance::RandK::id, dance::Threshold::id, dance::Dgc::id}), numel, dense, random);
    packets.insert(packets.begin() + random.below(2), draw_packet(sparse, random.of(kDtypes), numel, random));
    compare_reduce(packets, numel, nullptr, random);
    compare_reduce(packets, numel, &dense[random.below(static_cast<uint32_t>(dense.size()))], random);
    const CodecSpec other =
        sparse_spec(random.pick({dance::TopK::id, dance::RandK::id, dance::Threshold::id}), numel, dense, random);
    compare_reduce(packets, numel, &other, random);
  }
  std::vector<Packet> many;  // more than one launch takes
  CodecSpec int8;
  int8.id = dance::Int8::id;
  int8.block = 64;
  for (uint32_t p = 0; p < 131; ++p) many.push_back(draw_packet(int8, Dtype::float32, 100, random));
  compare_reduce(many, 100, nullptr, random);
  compare_reduce(many, 100, &int8, random);
}

void compare_mix(uint32_t rounds, Random& random) {
  for (uint32_t i = 0; i < 40 * rounds; ++i) {
    const uint64_t numel = random.pick({1, 255, 256, 1000, 2500});
    const Dtype dtype = random.of(kDtypes);
    const Kind kind = random.of(kKinds);
    Guarded cpu = draw_array(dtype, numel, kind, i % 2 == 0, random), gpu = cpu;
    Guarded sum = draw_array(dtype, numel, kind, i % 3 != 0, random);
    Guarded reference = draw_array(dtype, numel, Kind::normal, true, random);
    dance::mix(cpu.data(), sum.data(), reference.data(), dtype, 0.3f, numel, kCpu);
    dance::mix(gpu.data(), sum.data(), reference.data(), dtype, 0.3f, numel, kEmulated);
    // Which NaN comes of two is the processor's choice.
    forget_nan(dtype, cpu, numel);
    forget_nan(dtype, gpu, numel);
    expect(cpu.same(gpu) && gpu.intact(), "mix", text(numel) + " elements '" + name_of(kind) + "'");
  }
}

// Payloads from a peer that were never validated: nothing is written, or read to be written, outside.
void check_wild_payloads(const std::vector<CodecSpec>& dense, uint32_t rounds, Random& random) {
  for (uint32_t i = 0; i < 200 * rounds; ++i) {
    const uint64_t numel = random.pick({1, 7, 300, 5000});
    CodecSpec spec =
        sparse_spec(random.pick({dance::TopK::id, dance::Threshold::id, dance::RandK::id}), numel, dense, random);
    if (spec.id == dance::Threshold::id) spec.count = 1 + random.below(static_cast<uint32_t>(numel));
    const Dtype dtype = random.of(kDtypes);
    Guarded payload(dance::payload_nbytes(spec, dtype, numel), 4);
    const uint32_t density = random.pick({0xffffffffu, 0u, 0x10u});
    for (std::size_t b = 0; b < payload.num_bytes(); ++b) {
      payload.data()[b] = density == 0x10u ? static_cast<uint8_t>(random.next() >> 24) : static_cast<uint8_t>(density);
    }
    DecodeRequest request;
    request.codec = spec;
    request.dtype = dtype;
    request.payload = payload.data();
    request.payload_size = payload.num_bytes();
    request.numel = numel;
    request.out_dtype = random.of(kDtypes);
    request.add = random.below(2) == 0;
    request.place = kEmulated;
    Guarded out = draw_array(request.out_dtype, numel, Kind::normal, random.below(2) == 0, random);
    Guarded scratch(dance::cuda_scratch_nbytes(spec, dtype, numel));
    request.out = out.data();
    request.scratch = scratch.data();
    dance::decode(request);
    expect(out.intact() && scratch.intact(), "wild payload", describe(spec));
  }
}

// The instruction that newer devices have, and the shuffles that stand for it on older ones.
void check_maxima(uint32_t rounds, Random& random) {
  for (uint32_t i = 0; i < 100 * rounds; ++i) {
    uint32_t given[64], expected[2] = {0, 0}, fast[64], slow[64];
    for (uint32_t t = 0; t < 64; ++t) {
      given[t] = random.next() >> random.below(32);
      if (given[t] > expected[t / 32]) expected[t / 32] = given[t];
    }
    emulated::run_grid(1, 64, 0, [&] {
      const dance::cuda::Warp warp;
      fast[threadIdx.x] = warp.max(given[threadIdx.x]);
      slow[threadIdx.x] = warp.max_of(given[threadIdx.x], 32);
    });
    for (uint32_t t = 0; t < 64; ++t) {
      expect(fast[t] == expected[t / 32] && slow[t] == expected[t / 32], "maximum of a warp", text(t));
    }
  }
}

void check_missing_device() {
  float x[1] = {1.0f};
  bool refused = false;
  try {
    dance::mix(x, x, x, Dtype::float32, 1.0f, 1, Place{1, 0});
  } catch (const dance::UnavailableError& error) {
    refused = std::string(error.what()).rfind("no CUDA device: ", 0) == 0;
  }
  expect(refused, "UnavailableError", "mix on device 1 of 1");
}

}  // namespace

int main(int argc, char** argv) {
  const auto rounds = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 1);
  Random random{argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) : 1};
  const std::vector<CodecSpec> dense = dense_specs();
  compare_mix(rounds, random);
  compare_dense(dense, rounds, random);
  compare_sparse(dense, rounds, random);
  compare_reduces(dense, rounds, random);
  check_wild_payloads(dense, rounds, random);
  check_maxima(rounds, random);
  check_missing_device();
  std::printf("%llu comparisons, no difference\n", static_cast<unsigned long long>(num_comparisons));
  return 0;
}
