// What the drivers of all backends are asked to do: the operations, their arrays, and what happens to one element.
#pragma once

#include "base/dtype.h"
#include "base/host_device.h"

namespace dance {

enum class Operation : int {
  encode = 0,      // v = x
  feedback = 1,    // v = x + state; state = v - decoded
  difference = 2,  // v = x - state; state += decoded
};
constexpr int kNumOperations = 3;

// `state` is the residual of feedback or the reference of difference, and unused by encode. x and state point at
// element `begin` of the array whose `numel` elements the codes and scales describe; begin is a multiple of block. The
// noise of element i is that of (seed, i), whatever `begin` is.
struct EncodeJob {
  const void* x;
  void* state;
  Dtype dtype, state_dtype;
  uint8_t* codes;
  void* scales;
  uint64_t numel, begin;
  uint32_t block, bits, levels;
  uint64_t seed;
};

// `out` points at element `begin`.
struct DecodeJob {
  const uint8_t* codes;
  const void* scales;
  void* out;
  Dtype dtype;
  uint64_t numel, begin;
  uint32_t block, bits;
  float weight;
};

// What a selector reads.
struct SelectJob {
  const void* x;
  void* state;
  Dtype dtype, state_dtype;
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

// The state of what is sent as zero because it is not finite: a residual stays, and to a reference the sender adds +0.0
// as receivers do, which makes a difference to -0.0.
template <Operation op>
DANCE_HD float kept_state(float state) {
  return op == Operation::difference && is_finite(state) ? state + 0.0f : state;
}

// A sum of finite numbers stays finite, as a sender's own reference does; what was infinite or NaN before stays so.
// Selects between floats so that a NaN of the sum is what remains, as one vector instruction each.
DANCE_HD float add_finite(float out, float value) {
  const int32_t size = static_cast<int32_t>(magnitude(out)), most = static_cast<int32_t>(kInfinityBits) - 1;
  const float high = bits_float(static_cast<uint32_t>(size > most ? size : most)), low = -high;
  float sum = out + value;
  sum = high < sum ? high : sum;
  return low > sum ? low : sum;
}

template <bool add>
DANCE_HD float accumulate(float out, float weight, float decoded) {
  return add ? add_finite(out, weight * decoded) : weight * decoded;
}

}  // namespace dance
