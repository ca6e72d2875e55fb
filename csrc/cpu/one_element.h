// Single elements of arrays whose type is known at run time only: for the few that a sparse codec sends.
#pragma once

#include "base/dtype.h"

namespace dance::cpu {

inline float load_element(const void* array, Dtype dtype, uint64_t i) {
  if (dtype == Dtype::float32) return static_cast<const float*>(array)[i];
  const uint16_t element = static_cast<const uint16_t*>(array)[i];
  return dtype == Dtype::float16 ? Element<Dtype::float16>::load(element) : Element<Dtype::bfloat16>::load(element);
}

inline void store_element(void* array, Dtype dtype, uint64_t i, float value) {
  if (dtype == Dtype::float32) {
    static_cast<float*>(array)[i] = value;
  } else {
    static_cast<uint16_t*>(array)[i] =
        dtype == Dtype::float16 ? Element<Dtype::float16>::store(value) : Element<Dtype::bfloat16>::store(value);
  }
}

}  // namespace dance::cpu
