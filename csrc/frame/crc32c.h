// CRC32C, the Castagnoli checksum (RFC 3720, appendix B.4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace dance::frame {

// The checksum of `size` bytes; crc32c("123456789") is 0xe3069283.
uint32_t crc32c(const void* data, std::size_t size);

// The same without the processor's instruction: what crc32c is where there is none.
uint32_t crc32c_by_tables(const void* data, std::size_t size);

}  // namespace dance::frame
