// threshold: every element whose magnitude reaches a value (Strom 2015).
#pragma once

#include "codecs/sparse.h"

namespace dance {

struct Threshold {
  static constexpr uint8_t id = 14;
  static constexpr const char* name = "threshold";
  static constexpr bool kFixedSize = false;
  static constexpr bool kSeeded = false;
};

}  // namespace dance
