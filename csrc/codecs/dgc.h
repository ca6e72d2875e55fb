// dgc: about the k largest elements: those above a threshold found from a sample, k to 2k of them (Lin et al. 2018).
#pragma once

#include "codecs/sparse.h"

namespace dance {

struct Dgc {
  static constexpr uint8_t id = 15;
  static constexpr const char* name = "dgc";
  static constexpr bool kFixedSize = false;
  static constexpr bool kSeeded = false;
};

}  // namespace dance
