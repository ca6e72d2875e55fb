// Arrays for the comparison of the backends: awkward values, any dtype, any alignment, guards around them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <vector>

#include "base/dtype.h"
#include "codecs/sparse.h"

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 32);
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(uint64_t{next()} * bound >> 32); }
  float uniform() { return static_cast<float>(next()) * 0x1p-31f - 1.0f; }
  template <class T, std::size_t n>
  const T& of(const T (&list)[n]) {
    return list[below(n)];
  }
  template <class T>
  T pick(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<uint32_t>(list.size()))];
  }
};

// Memory between two guards that nobody may write. `offset` moves its start off the alignment of the allocation.
class Guarded {
 public:
  explicit Guarded(std::size_t num_bytes = 0, std::size_t offset = 0)
      : begin_(kGuard + offset), num_bytes_(num_bytes), bytes_(begin_ + num_bytes_ + kGuard, kByte) {}
  uint8_t* data() { return bytes_.data() + begin_; }
  std::size_t num_bytes() const { return num_bytes_; }
  bool intact() const {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < begin_ || i >= begin_ + num_bytes_) && bytes_[i] != kByte) return false;
    }
    return true;
  }
  bool same(Guarded& other, std::size_t num_bytes) {
    return num_bytes == 0 || std::memcmp(data(), other.data(), num_bytes) == 0;
  }
  bool same(Guarded& other) { return same(other, num_bytes_); }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr uint8_t kByte = 0xa5;
  std::size_t begin_, num_bytes_;
  std::vector<uint8_t> bytes_;
};

enum class Kind {
  normal,
  equal,
  few,
  zeros,
  tiny,
  huge,
  some_bad,
  all_bad,
  any_bits,
  mostly_zero,
  sample_high,
  sample_low
};
constexpr Kind kKinds[] = {Kind::normal, Kind::equal,    Kind::few,     Kind::zeros,    Kind::tiny,
                           Kind::huge,   Kind::some_bad, Kind::all_bad, Kind::any_bits, Kind::mostly_zero};
inline const char* name_of(Kind kind) {
  constexpr const char* names[] = {"normal",   "equal",   "few values", "zeros",       "tiny",        "huge",
                                   "some bad", "all bad", "any bits",   "mostly zero", "sample high", "sample low"};
  return names[static_cast<int>(kind)];
}

inline float draw(Kind kind, Random& random, uint64_t i) {
  const float inf = std::numeric_limits<float>::infinity();
  switch (kind) {
    case Kind::equal:
      return i % 2 ? 1.5f : -1.5f;
    case Kind::few:
      return static_cast<float>(static_cast<int>(random.below(5)) - 2) * 0.25f;
    case Kind::zeros:
      return i % 3 ? 0.0f : -0.0f;
    case Kind::tiny:
      return random.uniform() * 0x1p-126f;
    case Kind::huge:
      return random.uniform() < 0.0f ? 3.4028235e38f : random.uniform() * 3.4e38f;
    case Kind::some_bad:
      return random.below(701) == 0 ? (random.below(2) ? -inf : std::nanf("")) : random.uniform();
    case Kind::all_bad:
      return i % 2 ? inf : std::nanf("");
    case Kind::any_bits:
      return dance::bits_float(random.next());
    case Kind::mostly_zero:
      return random.below(200) == 0 ? random.uniform() : 0.0f;
    default:
      return random.uniform() + random.uniform() + random.uniform();
  }
}

inline void store(dance::Dtype dtype, uint8_t* to, uint64_t i, float value) {
  if (dtype == dance::Dtype::float32) {
    std::memcpy(to + 4 * i, &value, 4);
  } else {
    const auto half =
        static_cast<uint16_t>(dtype == dance::Dtype::float16 ? dance::store_half(value) : dance::store_bfloat(value));
    std::memcpy(to + 2 * i, &half, 2);
  }
}

inline float load(dance::Dtype dtype, const uint8_t* from, uint64_t i) {
  float value;
  uint16_t half;
  std::memcpy(&value, from + 4 * i * (dtype == dance::Dtype::float32), 4);
  std::memcpy(&half, from + 2 * i * (dtype != dance::Dtype::float32), 2);
  if (dtype == dance::Dtype::float32) return value;
  return dtype == dance::Dtype::float16 ? dance::half_to_float(half) : dance::bfloat_to_float(half);
}

inline void forget_nan(dance::Dtype dtype, Guarded& array, uint64_t numel) {
  for (uint64_t i = 0; i < numel; ++i) {
    if (std::isnan(load(dtype, array.data(), i))) store(dtype, array.data(), i, std::nanf(""));
  }
}

// An array of a dtype; `aligned`: to 16 bytes, else to its elements only, as a slice of a tensor has it.
inline Guarded draw_array(dance::Dtype dtype, uint64_t numel, Kind kind, bool aligned, Random& random) {
  const uint64_t size = dance::dtype_nbytes(dtype);
  Guarded array(numel * size, aligned ? 0 : size);
  for (uint64_t i = 0; i < numel; ++i) store(dtype, array.data(), i, draw(kind, random, i));
  if (kind == Kind::sample_high || kind == Kind::sample_low) {
    // Every element that topk's guess looks at is larger than all others, or smaller: the guess is as wrong as can be.
    for (uint64_t i = 0; i < numel; ++i) {
      store(dtype, array.data(), i, random.uniform() * 0.5f + (kind == Kind::sample_high ? 0.0f : 1.0f));
    }
    for (uint64_t i = 0; i < 32768 && numel > 32768; ++i) {
      store(dtype, array.data(), dance::stratified_index(0, i, 32768, numel),
            random.uniform() * 0.5f + (kind == Kind::sample_high ? 2.0f : 0.0f));
    }
  }
  return array;
}
