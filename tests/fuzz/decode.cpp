// Fuzz target: every decoder on untrusted payloads, arbitrary or encoded ones with bytes changed.
#include "cpu/parallel.h"
#include "input.h"

using namespace dance;
using namespace dance::fuzz;

namespace {

constexpr uint64_t kMostBytes = 1 << 17;

// Whether the call was accepted; a refusal is a FrameError.
template <class F>
bool accepted(F&& call) {
  try {
    call();
  } catch (const FrameError&) {
    return false;
  }
  return true;
}

// A valid payload with some bytes changed, or the input's bytes.
Encoded packet_of(Input& input, const CodecSpec& codec, Dtype dtype, uint64_t numel, bool encoded) {
  const auto seed = input.take<uint16_t>();
  if (!encoded) {
    Encoded packet{codec, dtype, numel, seed, Bytes(payload_nbytes(codec, dtype, numel)), {}};
    input.fill(packet.payload);
    return packet;
  }
  Encoded packet = encode_array(Operation::encode, codec, input.array(dtype, numel), nullptr, seed);
  while (input.left() >= 3 && packet.payload.size() > 0) {
    const auto at = input.take<uint16_t>() % packet.payload.size();
    packet.payload.data()[at] ^= input.take<uint8_t>();
  }
  return packet;
}

void check_indices(const Encoded& packet) {
  const uint64_t count = num_values(packet.codec, packet.numel);
  const std::unique_ptr<int64_t[]> found(new int64_t[count]);
  indices(packet.codec, packet.dtype, packet.seed, packet.payload.data(), packet.payload.size(), packet.numel,
          found.get());
  for (uint64_t i = 0; i < count; ++i) {
    FUZZ_CHECK(found[i] >= 0 && static_cast<uint64_t>(found[i]) < packet.numel);
    FUZZ_CHECK(i == 0 || found[i] > found[i - 1]);
  }
}

// Decoding with weight, adding twice, and reduce, alone and encoded again, say the same.
void check_reduce(const Encoded& packet, const CodecSpec& again, float weight) {
  const DecodeRequest one[] = {decode_request(packet, Array(Dtype::float32, 0), false, 1.0f),
                               decode_request(packet, Array(Dtype::float32, 0), false, 1.0f)};
  Array sum(Dtype::float32, packet.numel), reduced(Dtype::float32, packet.numel);
  decode(decode_request(packet, sum, false, weight));
  decode(decode_request(packet, sum, true, weight));
  ReduceRequest request;
  request.packets = one;
  request.num_packets = 2;
  request.numel = packet.numel;
  request.weight = weight;
  request.out = reduced.bytes.data();
  reduce(request);
  FUZZ_CHECK(same_values(sum, reduced));

  if (payload_bound(again, Dtype::float32, packet.numel) > kMostBytes) return;
  const Encoded expected = encode_array(Operation::encode, again, sum, nullptr, packet.seed);
  const Bytes room(payload_bound(again, Dtype::float32, packet.numel));
  EncodeRequest into;
  into.codec = again;
  into.numel = packet.numel;
  into.seed = packet.seed;
  into.payload = room.data();
  into.payload_size = room.size();
  request.out = nullptr;
  request.encode_into = &into;
  const EncodeResult result = reduce(request);
  FUZZ_CHECK(result.first_nonfinite == expected.result.first_nonfinite);
  FUZZ_CHECK(result.count == expected.result.count);
  FUZZ_CHECK(std::memcmp(room.data(), expected.payload.data(), expected.payload.size()) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  cpu::set_num_threads(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto flags = input.take<uint8_t>();
  const Dtype dtype = input.dtype(), out_dtype = input.dtype();
  const float weight = input.weight();
  const uint64_t numel = (flags & 3) == 3 ? input.take<uint64_t>() : input.numel();
  const CodecSpec codec = (flags & 3) == 3 ? input.raw_codec() : input.codec(numel);
  uint64_t expected;
  try {
    expected = payload_nbytes(codec, dtype, numel);
  } catch (const ArgumentError&) {
    return 0;
  }
  if (expected > kMostBytes || num_values(codec, numel) > kMostBytes) return 0;
  // Arguments in range encode; others, which only a hostile header has, are filled.
  const bool encoded = (flags & 3) == 1 && payload_bound(codec, dtype, numel) <= kMostBytes;
  const Encoded packet = packet_of(input, codec, dtype, numel, encoded);

  const bool trusted = accepted(
      [&] { check_received(packet.codec, dtype, packet.payload.data(), packet.payload.size(), packet.numel); });
  if (trusted && is_sparse(codec.id)) check_indices(packet);
  if (numel > 1 << 16) return 0;

  Array out(out_dtype, numel), added(out_dtype, numel);
  for (uint64_t i = 0; i < numel; ++i) out.set(i, 3.0f);
  const Array before = out;
  const bool decodes = accepted([&] { decode(decode_request(packet, out, false, (flags & 4) != 0 ? weight : 1.0f)); });
  FUZZ_CHECK(decodes || out.bytes == before.bytes);
  FUZZ_CHECK(decodes || !trusted);
  FUZZ_CHECK(accepted([&] { decode(decode_request(packet, added, true, (flags & 4) != 0 ? weight : 1.0f)); }) ==
             decodes);
  if (!decodes) return 0;
  for (uint64_t i = 0; i < numel; ++i) {
    // Added to zero: equal but for the sign of zero, and for a weighted value that overflows: the sum saturates.
    FUZZ_CHECK(out.get(i) == added.get(i) || !is_finite(out.get(i)));
    FUZZ_CHECK(!trusted || (flags & 4) != 0 || is_finite(out.get(i)));
  }
  if ((flags & 8) != 0) {
    check_reduce(packet, input.codec(numel), weight);
  }
  return 0;
}
