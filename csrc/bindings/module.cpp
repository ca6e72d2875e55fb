// The extension module dance._core: its errors and its parts. Only dance/_native.py imports it.
#include <exception>

#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "The compression core of dance; use the package dance instead.";

  // Python owns the error classes (dance/errors.py), so that one hierarchy serves both sides.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): the signature is pybind11's
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    const auto raise = [](const char* name, const std::exception& error) {
      PyErr_SetString(py::module_::import("dance.errors").attr(name).ptr(), error.what());
    };
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const dance::FrameError& error) {
      raise("FrameError", error);
    } catch (const dance::UnavailableError& error) {
      raise("UnavailableError", error);
    } catch (const dance::DeviceError& error) {
      raise("DeviceError", error);
    }
    // ArgumentError is a std::invalid_argument, which pybind11 turns into ValueError.
  });

  dance::bind_codec(module);
  dance::bind_frame(module);
  dance::bind_info(module);
}
