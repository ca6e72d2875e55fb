// The elements that randk and samples take of an array, one of each stratum (stratified_index, codecs/sparse.h), one
// after the other without a division for each.
#pragma once

#include "codecs/sparse.h"

namespace dance::cpu {

// Calls body(i, index) for first <= i < last <= count.
template <class Body>
void for_each_stratum(uint64_t seed, uint64_t count, uint64_t numel, uint64_t first, uint64_t last, Body&& body) {
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

}  // namespace dance::cpu
