// topk: the k elements of largest magnitude, exactly, ties to the lower index (Aji & Heafield 2017; Stich et al. 2018).
#pragma once

#include "codecs/sparse.h"

namespace dance {

struct TopK {
  static constexpr uint8_t id = 5;
  static constexpr const char* name = "topk";
  static constexpr bool kFixedSize = true;
  static constexpr bool kSeeded = false;
};

}  // namespace dance
