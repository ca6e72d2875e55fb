// Fuzz target: encode with every operation, then what a receiver does; the sender's state follows from what is decoded.
#include "cpu/parallel.h"
#include "frame/crc32c.h"
#include "frame/header.h"
#include "input.h"

using namespace dance;
using namespace dance::fuzz;

namespace {

std::vector<bool> sent_elements(const Encoded& packet) {
  std::vector<bool> sent(packet.numel, !is_sparse(packet.codec.id));
  if (!is_sparse(packet.codec.id)) return sent;
  const uint64_t count = num_values(packet.codec, packet.numel);
  const std::unique_ptr<int64_t[]> found(new int64_t[count]);
  indices(packet.codec, packet.dtype, packet.seed, packet.payload.data(), packet.payload.size(), packet.numel,
          found.get());
  for (uint64_t i = 0; i < count; ++i) sent[static_cast<uint64_t>(found[i])] = true;
  return sent;
}

float combined(Operation operation, float x, float state) {
  return operation == Operation::feedback     ? combine<Operation::feedback>(x, state)
         : operation == Operation::difference ? combine<Operation::difference>(x, state)
                                              : x;
}

// docs/format.md, "Operations", one element after the other.
void check_state(Operation operation, const Encoded& packet, const Array& x, const Array& before, const Array& after,
                 const Array& decoded) {
  const uint64_t numel = x.numel;
  const bool sparse = is_sparse(packet.codec.id);
  const std::vector<bool> sent = sent_elements(packet);
  std::vector<float> v(numel);
  std::vector<bool> kept(numel, false);
  int64_t first_nonfinite = -1;
  for (uint64_t i = 0; i < numel; ++i) {
    v[i] = combined(operation, x.get(i), operation == Operation::encode ? 0.0f : before.get(i));
    kept[i] = !is_finite(v[i]);
    if (kept[i] && first_nonfinite < 0) first_nonfinite = static_cast<int64_t>(i);
    FUZZ_CHECK(is_finite(decoded.get(i)));
    FUZZ_CHECK(sent[i] || decoded.get(i) == 0.0f);
  }
  FUZZ_CHECK(packet.result.first_nonfinite == first_nonfinite);
  if (!sparse && packet.codec.block != 0) {
    for (uint64_t start = 0; start < numel; start += packet.codec.block) {
      const uint64_t end = start + packet.codec.block < numel ? start + packet.codec.block : numel;
      bool any = false;
      for (uint64_t i = start; i < end; ++i) any = any || kept[i];
      for (uint64_t i = start; i < end; ++i) kept[i] = any;
    }
  }
  if (operation == Operation::encode) return;
  for (uint64_t i = 0; i < numel; ++i) {
    uint32_t expected = before.bits(i);
    if (operation == Operation::feedback) {
      if (!kept[i]) {
        expected = after.stored(sent[i] ? next_state<Operation::feedback>(0.0f, v[i], decoded.get(i)) : v[i]);
      }
    } else if ((!sparse || sent[i]) && is_finite(before.get(i))) {
      // Receivers add what they decode wherever something is sent, be it a zero in the place of an x that is NaN.
      expected = after.stored(next_state<Operation::difference>(before.get(i), v[i], decoded.get(i)));
    }
    FUZZ_CHECK(after.bits(i) == expected);
  }
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
  const Array x = input.array(input.dtype(), numel);
  const Array before = input.array(input.dtype(), numel);
  Array after = before;
  const Encoded packet = encode_array(operation, codec, x, operation == Operation::encode ? nullptr : &after, seed);

  frame::Header header{packet.codec, x.dtype, numel, packet.payload.size(), seed, 7, 2, 0};
  header.payload_crc = frame::crc32c(packet.payload.data(), packet.payload.size());
  FUZZ_CHECK(frame::crc32c_by_tables(packet.payload.data(), packet.payload.size()) == header.payload_crc);
  uint8_t bytes[frame::kHeaderSize];
  frame::write(header, bytes);
  const frame::Header parsed = frame::parse(bytes, sizeof bytes);
  frame::check_payload(parsed, packet.payload.data(), packet.payload.size());

  const Encoded received{parsed.codec, parsed.dtype, parsed.numel, parsed.seed, packet.payload, packet.result};
  const Array decoded(Dtype::float32, numel);
  decode(decode_request(received, decoded, false, 1.0f));
  check_state(operation, received, x, before, after, decoded);
  return 0;
}
