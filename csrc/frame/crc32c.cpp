// CRC32C by the instruction of the processor where it has one, else by eight tables of 256 entries.
//
// The instruction takes three cycles and begins every cycle, so three parts of a long message go at once. Checksums
// are polynomials modulo the generator: the first part's counts for the whole after multiplication by x to the number
// of bits behind it.
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
constexpr std::size_t kPart = 4096;

// a * b modulo the generator; the highest bit is the coefficient of x^0.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = b & 1 ? (b >> 1) ^ 0x82f63b78u : b >> 1;
  }
  return product;
}

// x^(8 * num_bytes) for a power of two.
constexpr uint32_t shift_by(std::size_t num_bytes) {
  uint32_t power = 1u << 23;  // x^8
  for (; num_bytes > 1; num_bytes /= 2) power = multiply(power, power);
  return power;
}

constexpr uint32_t part_behind = shift_by(kPart);

__attribute__((target("sse4.2"))) uint64_t load_crc(uint64_t crc, const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, 8);
  return _mm_crc32_u64(crc, word);
}

__attribute__((target("sse4.2"))) uint32_t update_by_instruction(uint32_t crc, const uint8_t* data, std::size_t size) {
  uint64_t wide = crc;
  for (; size >= 3 * kPart; data += 3 * kPart, size -= 3 * kPart) {
    uint64_t second = 0, third = 0;
    for (std::size_t at = 0; at < kPart; at += 8) {
      wide = load_crc(wide, data + at);
      second = load_crc(second, data + kPart + at);
      third = load_crc(third, data + 2 * kPart + at);
    }
    const uint32_t two = multiply(static_cast<uint32_t>(wide), part_behind) ^ static_cast<uint32_t>(second);
    wide = multiply(two, part_behind) ^ static_cast<uint32_t>(third);
  }
  for (; size >= 8; data += 8, size -= 8) wide = load_crc(wide, data);
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
