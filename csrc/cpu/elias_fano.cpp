// Indices in the code of Elias and Fano: writing, checking and reading them.
#include "cpu/elias_fano.h"

#include "cpu/parallel.h"

namespace dance::cpu {
namespace {

// Indices a thread gets at least.
constexpr uint64_t kIndexGrain = 16384;

// Appends numbers of up to 32 bits to words.
struct WordWriter {
  uint8_t* out;
  uint64_t held = 0;
  uint32_t num_held = 0;

  // The word at hand is written every time, and the place moves on when it is full: no branch to predict. `out` must
  // not be at the end.
  void put(uint64_t number, uint32_t bits) {
    held |= number << num_held;
    const uint32_t word = static_cast<uint32_t>(held);
    std::memcpy(out, &word, 4);
    num_held += bits;
    out += num_held / 32 * 4;
    held >>= num_held & 32;
    num_held %= 32;
  }
  void finish() {
    const uint32_t word = static_cast<uint32_t>(held);
    if (num_held > 0) std::memcpy(out, &word, 4);
  }
};

// Low bits of indices [first, last), first a multiple of 32: they start on a word. `Together` of them, at most 32 bits,
// are put at once: each put waits for the one before.
template <uint32_t Together>
void write_low(const EliasFano& code, const uint32_t* indices, uint64_t first, uint64_t last, uint8_t* payload) {
  const uint32_t bits = code.low_bits;
  const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << bits) - 1);
  WordWriter writer{payload + 4 * (first / 32 * bits)};
  uint64_t i = first;
  for (; i + Together <= last; i += Together) {
    uint64_t number = 0;
    for (uint32_t j = 0; j < Together; ++j) number |= static_cast<uint64_t>(indices[i + j] & mask) << j * bits;
    writer.put(number, Together * bits);
  }
  for (; i < last; ++i) writer.put(indices[i] & mask, bits);
  writer.finish();
}

// The words of the bit vector from the one after that of index first - 1 to that of index last - 1, or to the end.
void write_high(const EliasFano& code, const uint32_t* indices, uint64_t first, uint64_t last, uint8_t* high) {
  const auto position = [&](uint64_t i) { return (uint64_t{indices[i]} >> code.low_bits) + i; };
  const uint64_t begin = first == 0 ? 0 : position(first - 1) / 32 + 1;
  const uint64_t end = last == code.count ? code.high_words : position(last - 1) / 32 + 1;
  if (begin >= end) return;
  std::memset(high + 4 * begin, 0, 4 * (end - begin));
  uint64_t i = first;
  while (i < code.count && position(i) / 32 < begin) ++i;
  uint64_t w = begin;
  uint32_t word = 0;
  const auto put = [&] {
    const uint64_t at = position(i);
    word = (at / 32 == w ? word : 0) | 1u << at % 32;
    w = at / 32;
    std::memcpy(high + 4 * w, &word, 4);
  };
  for (; i < last; ++i) put();
  // Later indices whose bit lies in the last word.
  for (; i < code.count && position(i) / 32 < end; ++i) put();
}

}  // namespace

void write_elias_fano(const EliasFano& code, const uint32_t* indices, uint8_t* payload) {
  parallel_for(divide_up(code.count, 32), kIndexGrain / 32, [&](uint32_t, uint64_t first, uint64_t last) {
    first *= 32;
    last = last * 32 < code.count ? last * 32 : code.count;
    if (code.low_bits > 16) {
      write_low<1>(code, indices, first, last, payload);
    } else if (code.low_bits > 8) {
      write_low<2>(code, indices, first, last, payload);
    } else if (code.low_bits > 0) {
      write_low<4>(code, indices, first, last, payload);
    }
    write_high(code, indices, first, last, payload + 4 * code.low_words);
  });
}

const char* check_elias_fano(const EliasFano& code, const uint8_t* payload) {
  const uint8_t* high = payload + 4 * code.low_words;
  const uint64_t low_tail = code.count * code.low_bits % 32;
  if (low_tail != 0 && load_word(payload, code.low_words - 1) >> low_tail != 0) return "unused low bits are not zero";
  const uint64_t high_tail = (((code.numel - 1) >> code.low_bits) + code.count) % 32;
  if (high_tail != 0 && load_word(high, code.high_words - 1) >> high_tail != 0) return "unused high bits are not zero";
  uint64_t ones = 0;
  for (uint64_t w = 0; w < code.high_words; ++w) ones += __builtin_popcount(load_word(high, w));
  if (ones != code.count) return "the number of indices is not that of the values";
  // With just `count` ones the i-th lies at place i or later, and reading stays within the low bits.
  bool increase = true;
  uint64_t next = 0;
  read_elias_fano(code, payload, {0, code.high_words, 0}, [&](uint64_t, uint64_t index) {
    increase &= index >= next;
    next = index + 1;
  });
  return increase && next <= code.numel ? nullptr : "indices do not increase or are out of range";
}

EliasFanoPart elias_fano_part(const EliasFano& code, const uint8_t* payload, uint64_t part, uint64_t num_parts) {
  const uint8_t* high = payload + 4 * code.low_words;
  const uint64_t first = code.high_words * part / num_parts, last = code.high_words * (part + 1) / num_parts;
  uint64_t ones = 0;
  for (uint64_t w = 0; w < first; ++w) ones += __builtin_popcount(load_word(high, w));
  return {first, last, ones};
}

}  // namespace dance::cpu
