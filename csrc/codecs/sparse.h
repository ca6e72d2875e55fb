// What a sparse codec is, and where its indices and values lie in a payload (docs/format.md).
//
// A sparse codec sends some elements: their indices, coded compactly or not at all, and then their values as the
// payload of a dense codec. It is a struct with
//   id, name
//   kFixedSize    whether the number of values follows from numel and the parameters alone
//   kSeeded       whether the indices follow from the seed, so that none are sent
#pragma once

#include "base/random.h"
#include "codecs/dense.h"

namespace dance {

// Indices are 32 bits wide inside the core.
constexpr uint64_t kMaxSparseNumel = 0xffffffffu;
constexpr uint32_t kMinScope = 64;
constexpr uint32_t kMaxScope = 32768;

// Order of selection: by magnitude; a non-finite value counts as zero.
DANCE_HD uint32_t selection_key(float value) {
  const uint32_t size = magnitude(value);
  return size < kInfinityBits ? size : 0u;
}

// Elias-Fano coding of k strictly increasing indices below n (Elias 1974, Fano 1971): the low `low_bits` bits of each
// as they are, the rest h[i] as ones at positions h[i] + i of a bit vector. Its size follows from n and k alone.
struct EliasFano {
  uint64_t numel, count;
  uint32_t low_bits;
  uint64_t low_words, high_words;

  DANCE_HD EliasFano(uint64_t n, uint64_t k) : numel(n), count(k), low_bits(0), low_words(0), high_words(0) {
    if (k == 0) return;
    while (k << (low_bits + 1) <= n) ++low_bits;
    low_words = divide_up(k * low_bits, 32);
    high_words = divide_up(((n - 1) >> low_bits) + k, 32);
  }
  DANCE_HD uint64_t num_bytes() const { return 4 * (low_words + high_words); }
};

// How many values are sent of a block of n elements, where a full block of `scope` elements sends `count`.
DANCE_HD uint64_t count_of_block(uint64_t n, uint64_t scope, uint64_t count) {
  return n == 0 ? 0 : divide_up(count * n, scope);
}

// How many values are sent in all; `scope` 0: global.
DANCE_HD uint64_t total_count(uint64_t numel, uint64_t scope, uint64_t count) {
  return scope == 0 ? count : numel / scope * count + count_of_block(numel % scope, scope, count);
}

// Bytes of the indices of `total` values: Elias-Fano, or where there is a scope 16 bits each, padded so that values are
// aligned to 4. Codecs with kSeeded send none.
DANCE_HD uint64_t indices_nbytes(uint64_t numel, uint64_t scope, uint64_t total) {
  return scope == 0 ? EliasFano(numel, total).num_bytes() : 4 * divide_up(total, 2);
}

// randk and samples: the i-th of `count` strata [i n / k, (i + 1) n / k) of n elements, and the element taken of it.
DANCE_HD uint64_t stratum_begin(uint64_t i, uint64_t count, uint64_t numel) { return i * numel / count; }
DANCE_HD uint64_t stratified_index(uint64_t seed, uint64_t i, uint64_t count, uint64_t numel) {
  const uint64_t begin = stratum_begin(i, count, numel), end = stratum_begin(i + 1, count, numel);
  return begin + ((random_word(seed, i) * (end - begin)) >> 32);
}

// randk: the seed of block b of a scope.
DANCE_HD uint64_t seed_of_block(uint64_t seed, uint64_t b) { return seed + b * 0x9E3779B97F4A7C15u; }

}  // namespace dance
