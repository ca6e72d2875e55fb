// Indices in the code of Elias and Fano: writing, checking and reading them (codecs/sparse.h says how they lie).
#pragma once

#include <cstring>

#include "codecs/sparse.h"

namespace dance::cpu {

inline uint32_t load_word(const uint8_t* words, uint64_t w) {
  uint32_t word;
  std::memcpy(&word, words + 4 * w, 4);
  return word;
}

// Writes all of the code; `payload` has room for code.num_bytes() and code.count > 0.
void write_elias_fano(const EliasFano& code, const uint32_t* indices, uint8_t* payload);

// What is wrong with num_bytes() arbitrary bytes, or nullptr: then they are the code of `count` indices that increase
// and are less than `numel`.
const char* check_elias_fano(const EliasFano& code, const uint8_t* payload);

// Part `part` of `num_parts` of the words of the bit vector, and the number of the first index they hold.
struct EliasFanoPart {
  uint64_t first_word, last_word, first_value;
};
EliasFanoPart elias_fano_part(const EliasFano& code, const uint8_t* payload, uint64_t part, uint64_t num_parts);

// Calls body(i, index) for all indices of a part, in order; the code has been checked.
template <class Body>
void read_elias_fano(const EliasFano& code, const uint8_t* payload, EliasFanoPart part, Body&& body) {
  const uint8_t* high = payload + 4 * code.low_words;
  const uint64_t mask = (uint64_t{1} << code.low_bits) - 1;
  uint64_t i = part.first_value;
  for (uint64_t w = part.first_word; w < part.last_word; ++w) {
    for (uint32_t word = load_word(high, w); word != 0; word &= word - 1, ++i) {
      const uint64_t bucket = 32 * w + static_cast<uint32_t>(__builtin_ctz(word)) - i;
      uint64_t low = 0;
      if (code.low_bits > 0) {
        // The second word is there: low words are followed by at least one high word.
        const uint64_t bit = i * code.low_bits;
        std::memcpy(&low, payload + 4 * (bit / 32), 8);
        low = low >> bit % 32 & mask;
      }
      body(i, bucket << code.low_bits | low);
    }
  }
}

}  // namespace dance::cpu
