// Fuzz target: a packet as it comes from a peer, header and payload. What is accepted is canonical and decodes.
#include "frame/header.h"

#include "cpu/parallel.h"
#include "frame/crc32c.h"
#include "input.h"

using namespace dance;
using namespace dance::fuzz;

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  cpu::set_num_threads(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto flags = input.take<uint8_t>();
  Bytes packet(input.left());
  input.fill(packet);
  constexpr std::size_t kHeaderSize = frame::kHeaderSize;
  // Checksums that fit, or no mutation would pass them.
  if (packet.size() >= kHeaderSize && (flags & 1) == 0) {
    const uint32_t payload = frame::crc32c(packet.data() + kHeaderSize, packet.size() - kHeaderSize);
    std::memcpy(packet.data() + 56, &payload, 4);
    FUZZ_CHECK(frame::crc32c_by_tables(packet.data() + kHeaderSize, packet.size() - kHeaderSize) == payload);
    const uint32_t header = frame::crc32c(packet.data(), 60);
    std::memcpy(packet.data() + 60, &header, 4);
    FUZZ_CHECK(frame::crc32c_by_tables(packet.data(), 60) == header);
  }
  frame::Header header;
  try {
    header = frame::parse(packet.data(), packet.size());
  } catch (const FrameError&) {
    return 0;
  }
  uint8_t again[kHeaderSize];
  frame::write(header, again);
  FUZZ_CHECK(std::memcmp(again, packet.data(), kHeaderSize) == 0);

  Bytes payload(packet.size() - kHeaderSize);
  if (payload.size() > 0) std::memcpy(payload.data(), packet.data() + kHeaderSize, payload.size());
  try {
    frame::check_payload(header, payload.data(), payload.size());
  } catch (const FrameError&) {
    return 0;
  }
  if (header.numel > 1 << 16) return 0;
  const Encoded received{header.codec, header.dtype, header.numel, header.seed, payload, {}};
  const Array out(header.dtype, header.numel);
  decode(decode_request(received, out, false, 1.0f));
  for (uint64_t i = 0; i < out.numel; ++i) FUZZ_CHECK(is_finite(out.get(i)));
  return 0;
}
