// CRC32C by the instruction of the processor where it has one, else by eight tables of 256 entries.
#include "frame/crc32c.h"

#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace dance::frame {
namespace {

struct Tables {
  uint32_t entry[8][256];

  constexpr Tables() : entry() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
      entry[0][i] = crc;
    }
    for (int t = 1; t < 8; ++t) {
      for (uint32_t i = 0; i < 256; ++i) entry[t][i] = (entry[t - 1][i] >> 8) ^ entry[0][entry[t - 1][i] & 0xff];
    }
  }
};

constexpr Tables tables;

uint32_t update_by_tables(uint32_t crc, const uint8_t* data, std::size_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);  // little-endian, as every machine we build for
    word ^= crc;
    crc = 0;
    for (int t = 0; t < 8; ++t) crc ^= tables.entry[7 - t][(word >> (8 * t)) & 0xff];
  }
  for (; size > 0; ++data, --size) crc = (crc >> 8) ^ tables.entry[0][(crc ^ *data) & 0xff];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t update_by_instruction(uint32_t crc, const uint8_t* data, std::size_t size) {
  uint64_t wide = crc;
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, *data);
  return crc;
}
#endif

}  // namespace

uint32_t crc32c_by_tables(const void* data, std::size_t size) {
  return ~update_by_tables(~0u, static_cast<const uint8_t*>(data), size);
}

uint32_t crc32c(const void* data, std::size_t size) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return ~update_by_instruction(~0u, static_cast<const uint8_t*>(data), size);
#endif
  return crc32c_by_tables(data, size);
}

}  // namespace dance::frame
