// Reductions of fixed shape: 32 striped lanes, then halves of 16, 8, 4, 2, 1, the same bits on every machine.
#pragma once

#include "base/host_device.h"

namespace dance {

// One warp on a GPU, two or four vector registers on a CPU.
constexpr uint32_t kLanes = 32;

enum class Statistic {
  none,     // the codec needs no figure of its block
  max_abs,  // the largest magnitude, an exact integer maximum
  sum_abs,  // sum of |x| * kSumScale in the fixed shape above
  l2,       // l2_norm of the largest magnitude and the sum of l2_summand in the fixed shape above
};

// Each summand is scaled by 2^-13 so that a block of up to 4096 finite values never overflows; powers of two are exact.
// Hence a non-finite sum says that the block holds a non-finite value.
constexpr float kSumScale = 0.0001220703125f;
constexpr float kSumUnscale = 8192.0f;

DANCE_HD float summand(float value) { return bits_float(magnitude(value)) * kSumScale; }

// For the Euclidean norm values are brought near 1 by a power of two first, so that no square overflows or vanishes.
// `largest` is the largest magnitude of the block, as bits.
DANCE_HD uint32_t l2_exponent(uint32_t largest) {
  const uint32_t exponent = largest >> 23;
  return exponent < 253u ? exponent : 253u;
}
DANCE_HD float l2_factor(uint32_t largest) { return bits_float((254u - l2_exponent(largest)) << 23); }
DANCE_HD float l2_summand(float value, float factor) {
  const float near_one = value * factor;
  return near_one * near_one;
}
// Exponent 0 stands for 2^-127, which counts as 0: such a block is sent as zeros.
DANCE_HD float l2_norm(float sum, uint32_t largest) {
  const float norm = square_root(sum) * bits_float(l2_exponent(largest) << 23);
  return norm < kLargest ? norm : kLargest;
}

}  // namespace dance
