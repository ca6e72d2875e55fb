// Binds encode, decode and mix; arrays cross as addresses that dance/arrays.py took from live objects.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "codec_api.h"

namespace py = pybind11;

namespace dance {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

py::list codec_list() {
  py::list list;
  for (const auto& [id, name] : codecs()) {
    py::dict entry;
    entry["id"] = id;
    entry["name"] = name;
    list.append(entry);
  }
  return list;
}

}  // namespace

void bind_codec(py::module_& module) {
  module.def("codecs", codec_list);

  // The address of a contiguous buffer: NumPy's own two ways to it cost 1 us each.
  module.def(
      "address",
      [](py::handle array) {
        Py_buffer view;
        if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
        const auto address = reinterpret_cast<uintptr_t>(view.buf);
        PyBuffer_Release(&view);
        return address;
      },
      py::arg("array"));

  module.def(
      "payload_nbytes",
      [](uint8_t codec, uint32_t block, uint64_t count, uint64_t numel) {
        return payload_nbytes({codec, block, count}, numel);
      },
      py::arg("codec"), py::arg("block"), py::arg("count"), py::arg("numel"));

  module.def(
      "encode",
      [](int operation, uint8_t codec, uint32_t block, uint64_t count, uintptr_t x, uintptr_t state, uintptr_t payload,
         uint64_t payload_nbytes, uint64_t numel, uint64_t seed, int device, uintptr_t stream, uintptr_t nonfinite,
         uintptr_t scratch) {
        py::gil_scoped_release release;
        return encode(static_cast<Operation>(operation), {codec, block, count}, at<const float>(x), at<float>(state),
                      at<uint8_t>(payload), payload_nbytes, numel, seed, {device, stream}, at<int64_t>(nonfinite),
                      at<void>(scratch));
      },
      py::arg("operation"), py::arg("codec"), py::arg("block"), py::arg("count"), py::arg("x"), py::arg("state"),
      py::arg("payload"), py::arg("payload_nbytes"), py::arg("numel"), py::arg("seed"), py::arg("device"),
      py::arg("stream"), py::arg("nonfinite") = 0, py::arg("scratch") = 0);

  module.def(
      "decode",
      [](uint8_t codec, uint32_t block, uint64_t count, uintptr_t payload, uint64_t payload_nbytes, uintptr_t out,
         uint64_t numel, bool add, float weight, int device, uintptr_t stream) {
        py::gil_scoped_release release;
        decode({codec, block, count}, at<const uint8_t>(payload), payload_nbytes, at<float>(out), numel, add, weight,
               {device, stream});
      },
      py::arg("codec"), py::arg("block"), py::arg("count"), py::arg("payload"), py::arg("payload_nbytes"),
      py::arg("out"), py::arg("numel"), py::arg("add"), py::arg("weight"), py::arg("device"), py::arg("stream"));

  module.def(
      "mix",
      [](uintptr_t x, uintptr_t neighbour_sum, uintptr_t reference, float step_size, uint64_t numel, int device,
         uintptr_t stream) {
        py::gil_scoped_release release;
        mix(at<float>(x), at<const float>(neighbour_sum), at<const float>(reference), step_size, numel,
            {device, stream});
      },
      py::arg("x"), py::arg("neighbour_sum"), py::arg("reference"), py::arg("step_size"), py::arg("numel"),
      py::arg("device"), py::arg("stream"));

  module.def(
      "cuda_scratch_nbytes",
      [](uint8_t codec, uint32_t block, uint64_t count, uint64_t numel) {
        return cuda_scratch_nbytes({codec, block, count}, numel);
      },
      py::arg("codec"), py::arg("block"), py::arg("count"), py::arg("numel"));
}

}  // namespace dance
