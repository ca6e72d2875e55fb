// Codes of less than a byte in 32-bit words: word w of a block holds elements w, w + W, w + 2W, ... (docs/format.md).
// Included by kernels.cpp alone, once for each CPU target.
#pragma once

#include "codecs/dense.h"

namespace dance::cpu {
namespace {

// Bits [shift, shift + field) of every code; returns the words behind.
template <uint32_t field>
inline uint32_t* pack_field(const uint8_t* __restrict codes, uint32_t shift, uint32_t* __restrict words, uint32_t n) {
  constexpr uint32_t mask = (1u << field) - 1;
  const uint32_t num_words = static_cast<uint32_t>(divide_up(n * field, 32));
  for (uint32_t w = 0; w < num_words; ++w) words[w] = 0;
  for (uint32_t base = 0, at = 0; base < n; base += num_words, at += field) {
    const uint32_t here = n - base < num_words ? n - base : num_words;
    for (uint32_t w = 0; w < here; ++w) words[w] |= (codes[base + w] >> shift & mask) << at;
  }
  return words + num_words;
}

template <uint32_t field>
inline const uint32_t* unpack_field(const uint32_t* __restrict words, uint32_t shift, uint8_t* __restrict codes,
                                    uint32_t n) {
  constexpr uint32_t mask = (1u << field) - 1;
  const uint32_t num_words = static_cast<uint32_t>(divide_up(n * field, 32));
  for (uint32_t base = 0, at = 0; base < n; base += num_words, at += field) {
    const uint32_t here = n - base < num_words ? n - base : num_words;
    for (uint32_t w = 0; w < here; ++w) codes[base + w] |= static_cast<uint8_t>((words[w] >> at & mask) << shift);
  }
  return words + num_words;
}

// Codes of `bits` < 8 bits, one a byte, into the words of a block of n.
inline void pack(const uint8_t* codes, uint32_t bits, uint32_t* words, uint32_t n) {
  if (bits & 4) words = pack_field<4>(codes, bits & 3, words, n);
  if (bits & 2) words = pack_field<2>(codes, bits & 1, words, n);
  if (bits & 1) pack_field<1>(codes, 0, words, n);
}

inline void unpack(const uint32_t* words, uint32_t bits, uint8_t* codes, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) codes[i] = 0;
  if (bits & 4) words = unpack_field<4>(words, bits & 3, codes, n);
  if (bits & 2) words = unpack_field<2>(words, bits & 1, codes, n);
  if (bits & 1) unpack_field<1>(words, 0, codes, n);
}

// The sign of a code of `bits` bits over the whole byte.
inline void extend_sign(uint8_t* codes, uint32_t bits, uint32_t n) {
  const uint32_t sign = 1u << (bits - 1);
  for (uint32_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>((codes[i] ^ sign) - sign);
}

// Where the codes of block b begin.
template <class Codec>
inline uint64_t codes_offset(uint64_t b, uint32_t block, uint32_t bits) {
  if (packs_words<Codec> && bits < 8) return 4 * b * words_of(block, bits);
  return b * block * (bits / 8);
}

}  // namespace
}  // namespace dance::cpu
