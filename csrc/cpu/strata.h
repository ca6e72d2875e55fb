// Where sparse codecs look: at the blocks of a scope one after the other, and at the elements that randk and samples
// take, one of each stratum (stratified_index, codecs/sparse.h), without a division for each.
#pragma once

#include "codec_api.h"
#include "codecs/sparse.h"

namespace dance::cpu {

// Calls body(i, index) for first <= i < last <= count.
template <class Body>
void for_each_stratum(uint64_t seed, uint64_t count, uint64_t numel, uint64_t first, uint64_t last, Body&& body) {
  if (first >= last) return;
  const uint64_t step = numel / count, step_rest = numel % count;
  uint64_t begin = stratum_begin(first, count, numel), rest = first * numel % count;
  Random4 random{};
  for (uint64_t i = first; i < last; ++i) {
    if (i == first || i % 4 == 0) random = philox(seed, i / 4);
    uint64_t end = begin + step;
    rest += step_rest;
    if (rest >= count) {
      rest -= count;
      ++end;
    }
    body(i, begin + (uint64_t{random.word[i % 4]} * (end - begin) >> 32));
    begin = end;
  }
}

// Calls body(b, begin, n, first_value, count) for blocks [first, last) of the codec's scope: block b is elements
// [begin, begin + n), and sends `count` values from number first_value on.
template <class Body>
void for_each_block(const CodecSpec& codec, uint64_t numel, uint64_t first, uint64_t last, Body&& body) {
  for (uint64_t b = first; b < last; ++b) {
    const uint64_t begin = b * codec.scope, rest = numel - begin, n = rest < codec.scope ? rest : codec.scope;
    const uint64_t count = n == codec.scope ? codec.count : count_of_block(n, codec.scope, codec.count);
    body(b, begin, n, b * codec.count, count);
  }
}

}  // namespace dance::cpu
