// The element types of arrays that go in and out. The math is float32; others are converted as they are read and
// written.
#pragma once

#include <cstdint>

#include "base/half.h"

namespace dance {

// The numbers are those of the wire header.
enum class Dtype : uint8_t { float32 = 0, float16 = 1, bfloat16 = 2 };
constexpr uint8_t kNumDtypes = 3;

DANCE_HD uint64_t dtype_nbytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// How an element lies in memory, and its way to float32 (exact) and back (docs/format.md, "Operations").
template <Dtype dtype>
struct Element;

template <>
struct Element<Dtype::float32> {
  using Type = float;
  DANCE_HD static float load(Type element) { return element; }
  DANCE_HD static Type store(float value) { return value; }
};

template <>
struct Element<Dtype::float16> {
  using Type = uint16_t;
  DANCE_HD static float load(Type element) { return half_to_float(element); }
  DANCE_HD static Type store(float value) { return static_cast<Type>(store_half(value)); }
};

template <>
struct Element<Dtype::bfloat16> {
  using Type = uint16_t;
  DANCE_HD static float load(Type element) { return bfloat_to_float(element); }
  DANCE_HD static Type store(float value) { return static_cast<Type>(store_bfloat(value)); }
};

}  // namespace dance
