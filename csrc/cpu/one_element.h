// Single elements of arrays whose type is known at run time only: for the few that a sparse codec sends.
#pragma once

#include "codecs/operation.h"

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

// v of one element.
inline float element(Operation operation, const SelectJob& job, uint64_t i) {
  const float x = load_element(job.x, job.dtype, i);
  if (operation == Operation::encode) return x;
  const float state = load_element(job.state, job.state_dtype, i);
  return operation == Operation::feedback ? combine<Operation::feedback>(x, state)
                                          : combine<Operation::difference>(x, state);
}

}  // namespace dance::cpu
