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
};

// Each summand is scaled by 2^-13 so that a block of up to 4096 finite values never overflows; powers of two are exact.
// Hence a non-finite sum says that the block holds a non-finite value.
constexpr float kSumScale = 0.0001220703125f;
constexpr float kSumUnscale = 8192.0f;

DANCE_HD float summand(float value) { return bits_float(magnitude(value)) * kSumScale; }

}  // namespace dance
