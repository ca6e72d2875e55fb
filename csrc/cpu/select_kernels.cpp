// The loops of the sparse codecs' selectors. Compiled once for each target of cmake/cpu_targets.cmake with DANCE_TARGET
// set; plain loops that the compiler vectorises for that target.
#include "cpu/select_kernels.h"

#include "cpu/hits.h"
#include "cpu/noise.h"
#include "cpu/target.h"

namespace dance::cpu {
namespace {

template <Operation op, Dtype dtype, Dtype state_dtype, bool write>
void combine_chunk(const SelectJob& job, uint64_t first, uint32_t n, uint32_t sent, float* __restrict v) {
  using X = Element<dtype>;
  using State = Element<state_dtype>;
  const typename X::Type* __restrict x = static_cast<const typename X::Type*>(job.x) + first;
  typename State::Type* __restrict state = static_cast<typename State::Type*>(job.state) + first;
  for (uint32_t i = 0; i < n; ++i) {
    const float value = combine<op>(X::load(x[i]), State::load(state[i]));
    v[i] = value;
    // The state of an element that is not finite keeps its bits.
    const float rest = magnitude(value) < sent ? value : 0.0f;
    if (write) state[i] = is_finite(value) ? State::store(rest) : state[i];
  }
}

template <Dtype dtype>
void convert_chunk(const SelectJob& job, uint64_t first, uint32_t n, float* __restrict v) {
  using X = Element<dtype>;
  const typename X::Type* x = static_cast<const typename X::Type*>(job.x) + first;
  for (uint32_t i = 0; i < n; ++i) v[i] = X::load(x[i]);
}

template <Operation op, Dtype dtype, Dtype state_dtype>
void combine_chunk(const SelectJob& job, uint64_t first, uint32_t n, bool write, uint32_t sent, float* v) {
  if (op == Operation::feedback && write) {
    combine_chunk<op, dtype, state_dtype, true>(job, first, n, sent, v);
  } else {
    combine_chunk<op, dtype, state_dtype, false>(job, first, n, sent, v);
  }
}

template <Operation op, Dtype dtype>
void combine_chunk(const SelectJob& job, uint64_t first, uint32_t n, bool write, uint32_t sent, float* v) {
  if constexpr (op == Operation::encode) {
    convert_chunk<dtype>(job, first, n, v);
  } else {
    if (job.state_dtype == Dtype::float32) combine_chunk<op, dtype, Dtype::float32>(job, first, n, write, sent, v);
    if (job.state_dtype == Dtype::float16) combine_chunk<op, dtype, Dtype::float16>(job, first, n, write, sent, v);
    if (job.state_dtype == Dtype::bfloat16) combine_chunk<op, dtype, Dtype::bfloat16>(job, first, n, write, sent, v);
  }
}

// Where v of elements [first, first + n) lies: in x itself, or made in `buffer`.
template <Operation op>
const float* load_chunk(const SelectJob& job, uint64_t first, uint32_t n, bool write, uint32_t sent, float* buffer) {
  if (op == Operation::encode && job.dtype == Dtype::float32) return static_cast<const float*>(job.x) + first;
  if (job.dtype == Dtype::float32) combine_chunk<op, Dtype::float32>(job, first, n, write, sent, buffer);
  if (job.dtype == Dtype::float16) combine_chunk<op, Dtype::float16>(job, first, n, write, sent, buffer);
  if (job.dtype == Dtype::bfloat16) combine_chunk<op, Dtype::bfloat16>(job, first, n, write, sent, buffer);
  return buffer;
}

// `Sure` elements of a group are written whether there are as many or not: how many it has can't be predicted, and a
// group seldom has more (two: twice the speed of a loop over the bits alone where one in 80 is taken).
template <uint32_t Sure>
inline uint64_t scan(const float* v, uint64_t n, uint64_t first_index, uint32_t lowest, uint32_t* indices,
                     float* values) {
  static_assert(Sure <= kSelectSlack);
  uint64_t found = 0, i = 0;
  const auto take = [&](uint64_t at) {
    indices[found] = static_cast<uint32_t>(first_index + at);
    // NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign): load_chunk knows all dtypes there are
    values[found] = v[at];
  };
  for (; i + kGroup <= n; i += kGroup) {
    uint64_t mask = hits(v + i, lowest);
    const uint64_t end = found + static_cast<uint32_t>(__builtin_popcountll(mask));
#pragma GCC unroll 8
    for (uint32_t j = 0; j < Sure; ++j, ++found, mask &= mask - 1) {
      take(i + static_cast<uint32_t>(__builtin_ctzll(mask | uint64_t{1} << 63)));
    }
    for (; __builtin_expect(mask != 0, 0); mask &= mask - 1, ++found) {
      take(i + static_cast<uint32_t>(__builtin_ctzll(mask)));
    }
    found = end;
  }
  for (; i < n; ++i) {
    take(i);
    found += order(v[i]) >= static_cast<int32_t>(lowest);
  }
  return found;
}

template <Operation op>
uint64_t collect(const SelectJob& job, uint64_t first, uint64_t last, uint32_t lowest, bool write, uint32_t sent,
                 uint32_t* indices, float* values) {
  alignas(64) float buffer[1024];
  constexpr uint64_t step = sizeof buffer / sizeof *buffer;
  uint64_t found = 0;
  bool many = false;  // the chunk before had more than two a group
  for (uint64_t i = first; i < last; i += step) {
    const uint32_t n = static_cast<uint32_t>(last - i < step ? last - i : step);
    const float* v = load_chunk<op>(job, i, n, write, sent, buffer);
    const uint64_t here = many ? scan<8>(v, n, i, lowest, indices + found, values + found)
                               : scan<2>(v, n, i, lowest, indices + found, values + found);
    many = here * kGroup > 2 * n;
    found += here;
  }
  return found;
}

void stratified(uint64_t seed, uint64_t count, uint64_t numel, uint64_t first, uint64_t last, uint32_t* indices) {
  // Noise is words of Philox cut in halves: two of them are a random_word.
  alignas(64) uint16_t noise[kNoiseSize];
  constexpr uint64_t most = kMaxBlock / 2;
  const uint64_t step = numel / count, step_rest = numel % count;
  uint64_t begin = stratum_begin(first, count, numel), rest = first * numel % count;
  for (uint64_t i = first; i < last; i += most) {
    const uint32_t n = static_cast<uint32_t>(last - i < most ? last - i : most);
    const uint16_t* words = fill_noise(seed, 2 * i, noise, 2 * n);
    for (uint32_t j = 0; j < n; ++j) {
      rest += step_rest;
      const uint64_t longer = rest >= count ? 1 : 0, size = step + longer;
      rest -= longer * count;
      uint32_t word;
      std::memcpy(&word, words + 2 * j, sizeof word);
      *indices++ = static_cast<uint32_t>(begin + (word * size >> 32));
      begin += size;
    }
  }
}

inline uint64_t count_at_least(const float* __restrict values, uint64_t n, uint32_t lowest) {
  uint32_t total = 0;
  for (uint64_t i = 0; i < n; ++i) total += order(values[i]) >= static_cast<int32_t>(lowest);
  return total;
}

// Bisection over the keys: counting is the fastest loop there is. As soon as only few of the values looked at are still
// in question, they are copied out and the others dropped.
uint32_t nth_key(const float* values, uint64_t n, uint64_t rank, uint64_t slack, uint32_t lowest,
                 float* __restrict scratch, uint64_t* ties) {
  const uint64_t given = n;
  int32_t largest = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const float finite = is_finite(values[i]) ? values[i] : 0.0f;
    scratch[i] = finite;
    largest = order(finite) > largest ? order(finite) : largest;
  }
  uint32_t low = lowest, high = static_cast<uint32_t>(largest);  // low <= the answer <= high
  // Of the values at hand `above` were dropped for being larger than high, at_low are >= low, past_high are > high.
  uint64_t above = 0, at_low = n, past_high = 0;
  while (low < high && above + at_low > rank + slack) {
    const uint32_t middle = low + (high - low + 1) / 2;
    const uint64_t at_middle = count_at_least(scratch, n, middle);
    if (above + at_middle >= rank) {
      low = middle;
      at_low = at_middle;
    } else {
      high = middle - 1;
      past_high = at_middle;
    }
    if ((at_low - past_high) * 4 < n && n > 1024) {
      uint64_t kept = 0, i = 0;
      for (; i + kGroup <= n; i += kGroup) {
        for (uint64_t mask = hits(scratch + i, low) & ~hits(scratch + i, high + 1); mask != 0; mask &= mask - 1) {
          scratch[kept++] = scratch[i + static_cast<uint32_t>(__builtin_ctzll(mask))];
        }
      }
      for (; i < n; ++i) {
        const uint32_t own = magnitude(scratch[i]);
        if (own >= low && own <= high) scratch[kept++] = scratch[i];
      }
      above += past_high;
      past_high = 0;
      n = at_low = kept;
    }
  }
  *ties = above + at_low > rank + slack ? rank - above - past_high : given;
  return low;
}

// Keeps elements with selection keys >= least.
inline uint64_t compact(const uint32_t* from_indices, const float* from_values, uint64_t n, uint32_t least,
                        uint32_t* indices, float* values) {
  uint64_t kept = 0, i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    uint64_t mask = hits(from_values + i, least) & ~hits(from_values + i, kInfinityBits);
    if (least == 0) mask = ~uint64_t{0};
    for (; mask != 0; mask &= mask - 1, ++kept) {
      const uint64_t at = i + static_cast<uint32_t>(__builtin_ctzll(mask));
      indices[kept] = from_indices[at];
      values[kept] = from_values[at];
    }
  }
  for (; i < n; ++i) {
    const bool stays = selection_key(from_values[i]) >= least;
    indices[kept] = from_indices[i];
    values[kept] = from_values[i];
    kept += stays;
  }
  return kept;
}

uint64_t keep(uint32_t* indices, float* values, uint64_t n, uint32_t key, uint64_t ties) {
  // Up to the last tie that stays all ties stay, behind it none.
  uint64_t cut = ties < n ? 0 : n;
  while (ties > 0 && cut < n) {
    const uint64_t step = n - cut < 512 ? n - cut : 512;
    uint64_t here = 0;
    for (uint64_t i = 0; i < step; ++i) here += selection_key(values[cut + i]) == key;
    if (here >= ties) {
      for (; ties > 0; ++cut) ties -= selection_key(values[cut]) == key;
    } else {
      ties -= here;
      cut += step;
    }
  }
  const uint64_t kept = compact(indices, values, cut, key, indices, values);
  return kept + compact(indices + cut, values + cut, n - cut, key + 1, indices + kept, values + kept);
}

// (A loop over a constant number of lanes inside this one is unrolled into scalar code by gcc 12, 4 times as slow.)
inline __attribute__((noinline)) void take_maxima(const float* __restrict v, uint32_t n, int32_t* __restrict largest) {
  for (uint32_t i = 0; i < n; ++i) {
    const int32_t own = static_cast<int32_t>(selection_key(v[i]));
    largest[i] = own > largest[i] ? own : largest[i];
  }
}

// A lower bound of the rank-th largest key with few elements above it: the rank-th largest of the maxima of groups
// that share no element. 0 where groups would be too small to help.
inline uint32_t lower_bound(const float* v, uint32_t n, uint32_t rank, int32_t* largest, float* maxima) {
  uint32_t num_groups = 256;
  while (num_groups < 4 * rank) num_groups *= 2;
  if (n < 4 * num_groups) return 0;
  for (uint32_t g = 0; g < num_groups; ++g) largest[g] = 0;
  for (uint32_t i = 0; i + num_groups <= n; i += num_groups) take_maxima(v + i, num_groups, largest);
  for (uint32_t g = 0; g < num_groups; ++g) maxima[g] = bits_float(static_cast<uint32_t>(largest[g]));
  uint64_t ties;
  return nth_key(maxima, num_groups, rank, rank / 8, 0, maxima + num_groups, &ties);
}

template <Operation op>
int64_t top_of_block(const SelectJob& job, uint64_t first, uint32_t n, uint32_t count, float* scratch,
                     uint32_t* indices, float* values) {
  constexpr uint32_t room = kMaxScope + kSelectSlack;
  float* candidates = scratch + room;
  uint32_t* places = reinterpret_cast<uint32_t*>(scratch + 2 * room);
  float* rest = scratch + 3 * room;
  const float* v = load_chunk<op>(job, first, n, true, kInfinityBits, scratch);
  const uint32_t lowest = lower_bound(v, n, count, reinterpret_cast<int32_t*>(places), rest);
  uint64_t found = scan<2>(v, n, first, lowest, places, candidates);
  int64_t bad = -1;
  for (uint64_t i = 0; i < found; ++i) {
    if (__builtin_expect(is_finite(candidates[i]), 1)) continue;
    bad = places[i];
    // Below, these count as zeros; here they must make room for elements that are larger.
    if (lowest > 0) found = keep(places, candidates, found, lowest - 1, 0);
    break;
  }
  uint64_t ties;
  const uint32_t least = nth_key(candidates, found, count, 0, lowest, rest, &ties);
  keep(places, candidates, found, least, ties);
  std::memcpy(indices, places, count * sizeof *indices);
  std::memcpy(values, candidates, count * sizeof *values);
  return bad;
}

constexpr SelectKernels table = {
    DANCE_TARGET_NAME,
    {collect<Operation::encode>, collect<Operation::feedback>, collect<Operation::difference>},
    stratified,
    nth_key,
    keep,
    {top_of_block<Operation::encode>, top_of_block<Operation::feedback>, top_of_block<Operation::difference>}};

}  // namespace

const SelectKernels& DANCE_TARGET_FUNCTION(select_kernels_)() { return table; }

}  // namespace dance::cpu
