// The errors of the core; bindings/module.cpp maps each to its Python class. Not for code compiled per CPU target.
#pragma once

#include <stdexcept>
#include <string>

namespace dance {

// A wrong argument: the caller's mistake (Python: ValueError).
struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Bytes that are not a valid packet (Python: dance.FrameError).
struct FrameError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Something this build or this machine lacks (Python: dance.UnavailableError).
struct UnavailableError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device reported a failure (Python: dance.DeviceError).
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace dance
