// What the drivers of all backends are asked to do: the operations, their arrays, and what happens to one element.
#pragma once

#include "base/host_device.h"

namespace dance {

enum class Operation : int {
  encode = 0,      // v = x
  feedback = 1,    // v = x + state; state = v - decoded
  difference = 2,  // v = x - state; state += decoded
};
constexpr int kNumOperations = 3;

// `state` is the residual of feedback or the reference of difference, and unused by encode.
struct EncodeJob {
  const float* x;
  float* state;
  uint8_t* codes;
  float* scales;
  uint64_t numel;
  uint32_t block;
};

struct DecodeJob {
  const uint8_t* codes;
  const float* scales;
  float* out;
  uint64_t numel;
  uint32_t block;
  float weight;
};

// What a selector reads.
struct SelectJob {
  const float* x;
  float* state;
  uint64_t numel;
};

template <Operation op>
DANCE_HD float combine(float x, float state) {
  if (op == Operation::feedback) return x + state;
  if (op == Operation::difference) return x - state;
  return x;
}

template <Operation op>
DANCE_HD float next_state(float state, float v, float decoded) {
  return op == Operation::feedback ? v - decoded : saturate(state + decoded);
}

template <bool add>
DANCE_HD float accumulate(float out, float weight, float decoded) {
  return add ? out + weight * decoded : weight * decoded;
}

}  // namespace dance
