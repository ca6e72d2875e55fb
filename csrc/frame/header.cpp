// The 64-byte header in front of every packet that leaves a process.
#include "frame/header.h"

#include <cstring>
#include <string>

#include "base/error.h"
#include "codecs/list.h"
#include "frame/crc32c.h"

namespace dance::frame {
namespace {

constexpr char kMagic[4] = {'D', 'N', 'C', 'E'};
constexpr std::size_t kVersionAt = 4, kCodec = 5, kDtype = 6, kFlags = 7, kNumel = 8, kPayloadSize = 16, kBlock = 24,
                      kLevels = 26, kMode = 28, kValues = 29, kScope = 30, kCount = 32, kArgument = 36, kSeed = 40,
                      kRound = 48, kSender = 52, kPayloadCrc = 56, kHeaderCrc = 60;

template <class Integer>
void put(uint8_t* out, std::size_t offset, Integer value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out[offset + i] = static_cast<uint8_t>(value >> (8 * i));
}

template <class Integer>
Integer get(const uint8_t* data, std::size_t offset) {
  Integer value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i) value |= static_cast<Integer>(data[offset + i]) << (8 * i);
  return value;
}

[[noreturn]] void refuse(const std::string& what) { throw FrameError(what); }

}  // namespace

void write(const Header& header, uint8_t out[kHeaderSize]) {
  std::memset(out, 0, kHeaderSize);
  std::memcpy(out, kMagic, sizeof kMagic);
  out[kVersionAt] = kVersion;
  out[kCodec] = header.codec.id;
  out[kDtype] = static_cast<uint8_t>(header.dtype);
  put(out, kNumel, header.numel);
  put(out, kPayloadSize, header.payload_size);
  put(out, kBlock, header.codec.block);
  put(out, kLevels, header.codec.levels);
  put(out, kMode, header.codec.mode);
  put(out, kValues, header.codec.values);
  put(out, kScope, header.codec.scope);
  put(out, kCount, header.codec.count);
  put(out, kArgument, header.codec.argument);
  put(out, kSeed, header.seed);
  put(out, kRound, header.round);
  put(out, kSender, header.sender);
  put(out, kPayloadCrc, header.payload_crc);
  put(out, kHeaderCrc, crc32c(out, kHeaderCrc));
}

Header parse(const uint8_t* data, std::size_t size) {
  if (size < kHeaderSize) refuse("a packet has at least 64 bytes, got " + std::to_string(size));
  if (std::memcmp(data, kMagic, sizeof kMagic) != 0) refuse("this is no dance packet: it does not begin with DNCE");
  if (get<uint32_t>(data, kHeaderCrc) != crc32c(data, kHeaderCrc))
    refuse("the header's checksum does not match its bytes");
  if (data[kVersionAt] != kVersion)
    refuse("packet version " + std::to_string(data[kVersionAt]) + " is unknown; this build reads version " +
           std::to_string(kVersion));
  Header header;
  header.codec.id = data[kCodec];
  if (!is_codec(header.codec.id)) refuse("codec " + std::to_string(header.codec.id) + " is unknown to this build");
  if (data[kDtype] >= kNumDtypes) refuse("dtype " + std::to_string(data[kDtype]) + " is unknown");
  if (data[kFlags] != 0) refuse("flags " + std::to_string(data[kFlags]) + " are unknown to version 1");
  header.dtype = static_cast<Dtype>(data[kDtype]);
  header.numel = get<uint64_t>(data, kNumel);
  header.payload_size = get<uint64_t>(data, kPayloadSize);
  header.codec.block = get<uint16_t>(data, kBlock);
  header.codec.levels = get<uint16_t>(data, kLevels);
  header.codec.mode = data[kMode];
  header.codec.values = data[kValues];
  header.codec.scope = get<uint16_t>(data, kScope);
  header.codec.count = get<uint32_t>(data, kCount);
  header.codec.argument = get<uint32_t>(data, kArgument);
  header.seed = get<uint64_t>(data, kSeed);
  header.round = get<uint32_t>(data, kRound);
  header.sender = get<uint32_t>(data, kSender);
  header.payload_crc = get<uint32_t>(data, kPayloadCrc);
  uint64_t implied = 0;
  try {
    implied = payload_nbytes(header.codec, header.dtype, header.numel);  // checks the parameters, too
  } catch (const ArgumentError& error) {
    throw FrameError(error.what());
  }
  if (header.payload_size != implied)
    refuse("the header announces a payload of " + std::to_string(header.payload_size) +
           " bytes, but its codec and numel imply " + std::to_string(implied));
  return header;
}

void check_payload(const Header& header, const uint8_t* payload, std::size_t size) {
  if (size != header.payload_size)
    refuse("the header announces a payload of " + std::to_string(header.payload_size) + " bytes, got " +
           std::to_string(size));
  if (crc32c(payload, size) != header.payload_crc) refuse("the payload's checksum does not match its bytes");
  check_received(header.codec, header.dtype, payload, size, header.numel);
}

}  // namespace dance::frame
