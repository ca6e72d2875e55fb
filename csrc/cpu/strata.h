// Where sparse codecs look: at the blocks of a scope one after the other, and at the elements that randk and samples
// take, one of each stratum (stratified_index, codecs/sparse.h).
#pragma once

#include "codec_api.h"
#include "codecs/sparse.h"
#include "cpu/dispatch.h"

namespace dance::cpu {

// Calls body(i, index) for first <= i < last <= count.
template <class Body>
void for_each_stratum(uint64_t seed, uint64_t count, uint64_t numel, uint64_t first, uint64_t last, Body&& body) {
  uint32_t indices[512];
  constexpr uint64_t most = sizeof indices / sizeof *indices;
  for (uint64_t i = first; i < last; i += most) {
    const uint64_t n = last - i < most ? last - i : most;
    select_kernels().stratified(seed, count, numel, i, i + n, indices);
    for (uint64_t j = 0; j < n; ++j) body(i + j, uint64_t{indices[j]});
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
