// The 64-byte header in front of every packet that leaves a process (docs/format.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec_api.h"

namespace dance::frame {

constexpr std::size_t kHeaderSize = 64;
constexpr uint8_t kVersion = 1;

struct Header {
  CodecSpec codec;
  Dtype dtype = Dtype::float32;
  uint64_t numel = 0;
  uint64_t payload_size = 0;
  uint64_t seed = 0;
  uint32_t round = 0;
  uint32_t sender = 0;
  uint32_t payload_crc = 0;
};

// Writes all 64 bytes, the header's own checksum included.
void write(const Header& header, uint8_t out[kHeaderSize]);

// Reads an untrusted header: every field is checked, and the payload size must be exactly what codec, parameters and
// numel imply. Throws FrameError naming the field. Nothing is allocated on the header's word: compare the result with
// what you expect, or with a limit, before making room for the payload.
Header parse(const uint8_t* data, std::size_t size);

// Throws FrameError unless `payload`, aligned to 4 bytes, is what the header announced and encode could have made.
void check_payload(const Header& header, const uint8_t* payload, std::size_t size);

}  // namespace dance::frame
