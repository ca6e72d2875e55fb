// Fuzz target: baseline, AVX2 and AVX-512 (or NEON) give the same payloads, states, decoded values and refusals.
#include "cpu/parallel.h"
#include "input.h"
#include "switched_dispatch.h"

using namespace dance;
using namespace dance::fuzz;

namespace {

// All that one CPU target makes of one input.
struct Outcome {
  Encoded packet;
  Array state, decoded, mixed, reduced;
  bool trusted = false, accepted = false;
};

struct Case {
  Operation operation;
  CodecSpec codec;
  uint64_t seed;
  float weight;
  Array x, state, start;
  Bytes edits;
};

Outcome run(const Case& c) {
  Array state = c.state;
  Encoded packet = encode_array(c.operation, c.codec, c.x, c.operation == Operation::encode ? nullptr : &state, c.seed);
  // Payloads no encoder makes have to be read alike, too.
  for (uint64_t i = 0; i + 3 <= c.edits.size() && packet.payload.size() > 0; i += 3) {
    uint16_t at;
    std::memcpy(&at, c.edits.data() + i, 2);
    packet.payload.data()[at % packet.payload.size()] ^= c.edits.data()[i + 2];
  }
  Outcome out{std::move(packet), std::move(state), c.start, c.x, c.start};
  const Encoded& sent = out.packet;
  try {
    check_received(sent.codec, sent.dtype, sent.payload.data(), sent.payload.size(), sent.numel);
    out.trusted = true;
  } catch (const FrameError&) {
  }
  try {
    decode(decode_request(sent, out.decoded, false, c.weight));
    decode(decode_request(sent, out.decoded, true, c.weight));
    out.accepted = true;
    const DecodeRequest one = decode_request(sent, out.reduced, false, 1.0f);
    ReduceRequest request;
    request.packets = &one;
    request.num_packets = 1;
    request.numel = sent.numel;
    request.weight = c.weight;
    request.out = out.reduced.bytes.data();
    request.out_dtype = out.reduced.dtype;
    reduce(request);
  } catch (const FrameError&) {
  }
  const Array sum = c.x;
  mix(out.mixed.bytes.data(), sum.bytes.data(), sum.bytes.data(), sum.dtype, c.weight, sum.numel, Place{});
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  cpu::set_num_threads(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto operation = static_cast<Operation>(input.below<uint8_t>(kNumOperations));
  const uint64_t numel = input.numel();
  const CodecSpec codec = input.codec(numel);
  const auto seed = input.take<uint64_t>();
  const float weight = input.weight();
  Array x = input.array(input.dtype(), numel), state = input.array(input.dtype(), numel);
  Array start(input.dtype(), numel);
  Bytes edits(input.left());
  input.fill(edits);
  const Case c{operation, codec, seed, weight, std::move(x), std::move(state), std::move(start), std::move(edits)};

  cpu::use_target(0);
  const Outcome first = run(c);
  for (uint32_t target = 1; target < cpu::num_usable_targets(); ++target) {
    cpu::use_target(target);
    const Outcome other = run(c);
    FUZZ_CHECK(other.packet.result.count == first.packet.result.count);
    FUZZ_CHECK(other.packet.result.first_nonfinite == first.packet.result.first_nonfinite);
    FUZZ_CHECK(other.packet.payload == first.packet.payload);
    FUZZ_CHECK(other.state.bytes == first.state.bytes);
    FUZZ_CHECK(other.trusted == first.trusted && other.accepted == first.accepted);
    FUZZ_CHECK(same_values(other.decoded, first.decoded));
    FUZZ_CHECK(same_values(other.reduced, first.reduced));
    FUZZ_CHECK(same_values(other.mixed, first.mixed));
  }
  return 0;
}
