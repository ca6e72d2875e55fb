// The parts of the extension module dance._core, each defined in bind_<noun>.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "base/dtype.h"
#include "base/error.h"

namespace dance {

inline Dtype dtype_of(uint8_t number) {
  if (number >= kNumDtypes) throw ArgumentError("dtype " + std::to_string(number) + " is unknown; choose 0 to 2");
  return static_cast<Dtype>(number);
}

void bind_codec(pybind11::module_& module);
void bind_frame(pybind11::module_& module);
void bind_info(pybind11::module_& module);

}  // namespace dance
