// The parts of the extension module dance._core, each defined in bind_<noun>.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace dance {

void bind_codec(pybind11::module_& module);
void bind_frame(pybind11::module_& module);
void bind_info(pybind11::module_& module);

}  // namespace dance
