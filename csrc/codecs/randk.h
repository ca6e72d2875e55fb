// randk: one element of each of k strata, drawn by the seed, so that no indices are sent (Stich et al. 2018).
#pragma once

#include "codecs/sparse.h"

namespace dance {

struct RandK {
  static constexpr uint8_t id = 13;
  static constexpr const char* name = "randk";
  static constexpr bool kFixedSize = true;
  static constexpr bool kSeeded = true;
};

}  // namespace dance
