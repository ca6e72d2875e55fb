// Codes of less than a byte: word w of a field of f bits holds elements w, w + W, w + 2 W, ... of its block, and codes
// of 3, 5, 6 or 7 bits are cut into fields of 4, 2 and 1 bits (docs/format.md).
#pragma once

#include "codecs/dense.h"
#include "warp.h"

namespace dance::cuda {

// Quotients by a divisor that is known only at run time, for dividends up to kMaxBlock: two instructions each.
struct Divider {
  uint32_t divisor, magic;

  __device__ __forceinline__ explicit Divider(uint32_t d) : divisor(d), magic(d > 1 ? 0xffffffffu / d + 1u : 0u) {}
  __device__ __forceinline__ uint32_t quotient(uint32_t e) const { return magic == 0 ? e : __umulhi(e, magic); }
};

// Packs the codes of `num_blocks` blocks of n elements, one byte each in shared memory, into their words.
__device__ __forceinline__ void pack_words(const Warp& warp, const uint8_t* codes, uint32_t num_blocks, uint32_t n,
                                           uint32_t bits, uint32_t* words) {
  const uint32_t words_of_block = static_cast<uint32_t>(words_of(n, bits));
  uint32_t first_word = 0;  // of the field
#pragma unroll
  for (uint32_t field = 4; field > 0; field /= 2) {
    if (!(bits & field)) continue;
    const uint32_t num_words = (n * field + 31) / 32, all_words = num_blocks * num_words;
    const uint32_t shift = bits & (field - 1), mask = (1u << field) - 1u;
    // A lane builds word lane, lane + 32, ...; where words are fewer than lanes, groups of lanes take the slots of a
    // word in turns, and their parts are joined.
    const uint32_t span = all_words < kLanes ? all_words : kLanes;
    const uint32_t groups = kLanes / span, group = warp.lane / span, member = warp.lane - group * span;
    const Divider by_words(num_words);
    for (uint32_t base = 0; base < all_words; base += kLanes) {
      const uint32_t q = base + member;
      const uint32_t block = by_words.quotient(q), w = q - block * num_words;
      uint32_t word = 0;
      if (group < groups && q < all_words) {
        const uint8_t* from = codes + block * n;
#pragma unroll 4
        for (uint32_t slot = group, e = group * num_words + w; e < n; slot += groups, e += groups * num_words) {
          word |= (from[e] >> shift & mask) << (slot * field);
        }
      }
      uint32_t joined = word;
      for (uint32_t g = 1; g < groups; ++g) joined |= warp.shuffle(word, (warp.lane + g * span) % kLanes);
      if (warp.lane < span && q < all_words) words[block * words_of_block + first_word + w] = joined;
    }
    first_word += num_words;
  }
}

// Where the codes of a block of n elements lie among its words.
struct WordLayout {
  uint32_t bits;
  Divider by_words[3];  // of the fields of 4, 2 and 1 bits

  __device__ __forceinline__ WordLayout(uint32_t n, uint32_t bits_)
      : bits(bits_), by_words{Divider((4 * n + 31) / 32), Divider((2 * n + 31) / 32), Divider((n + 31) / 32)} {}

  // The code of element e.
  __device__ __forceinline__ uint32_t code(const uint32_t* words, uint32_t e) const {
    uint32_t code = 0;
#pragma unroll
    for (uint32_t f = 0; f < 3; ++f) {
      const uint32_t field = 4 >> f;
      if (!(bits & field)) continue;
      const uint32_t slot = by_words[f].quotient(e), w = e - slot * by_words[f].divisor;
      code = code << field | (words[w] >> (slot * field) & ((1u << field) - 1u));
      words += by_words[f].divisor;
    }
    return code;
  }
};

}  // namespace dance::cuda
