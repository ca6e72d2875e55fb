// Binds the packet header and its checksum; buffers are any contiguous object with the buffer protocol.
#include "bindings/bindings.h"
#include "frame/crc32c.h"
#include "frame/header.h"

namespace py = pybind11;

namespace dance {
namespace {

struct Bytes {
  py::buffer_info info;
  explicit Bytes(const py::buffer& buffer) : info(buffer.request()) {
    if (PyBuffer_IsContiguous(info.view(), 'C') == 0) throw py::value_error("expected a contiguous buffer");
  }
  const uint8_t* data() const { return static_cast<const uint8_t*>(info.ptr); }
  std::size_t size() const { return static_cast<std::size_t>(info.size * info.itemsize); }
};

py::bytes header_write(const CodecSpec& codec, uint8_t dtype, uint64_t numel, uint64_t seed, uint32_t round,
                       uint32_t sender, uintptr_t payload, uint64_t size) {
  frame::Header header{codec, dtype_of(dtype), numel, size, seed, round, sender, 0};
  uint8_t out[frame::kHeaderSize];
  {
    py::gil_scoped_release release;
    header.payload_crc = frame::crc32c(reinterpret_cast<const void*>(payload), size);
    frame::write(header, out);
  }
  return py::bytes(reinterpret_cast<const char*>(out), sizeof out);
}

frame::Header parse(const py::buffer& buffer) {
  const Bytes bytes(buffer);
  return frame::parse(bytes.data(), bytes.size());
}

py::dict header_parse(const py::buffer& buffer) {
  const frame::Header header = parse(buffer);
  py::dict fields;
  fields["spec"] = header.codec;
  fields["dtype"] = static_cast<uint8_t>(header.dtype);
  fields["numel"] = header.numel;
  fields["payload_nbytes"] = header.payload_size;
  fields["seed"] = header.seed;
  fields["round"] = header.round;
  fields["sender"] = header.sender;
  fields["payload_crc"] = header.payload_crc;
  return fields;
}

void payload_check(const py::buffer& header_bytes, uintptr_t payload, uint64_t size) {
  const frame::Header header = parse(header_bytes);
  py::gil_scoped_release release;
  frame::check_payload(header, reinterpret_cast<const uint8_t*>(payload), size);
}

uint32_t checksum(const py::buffer& buffer) {
  const Bytes bytes(buffer);
  py::gil_scoped_release release;
  return frame::crc32c(bytes.data(), bytes.size());
}

}  // namespace

void bind_frame(py::module_& module) {
  module.def("header_write", header_write, py::arg("codec"), py::arg("dtype"), py::arg("numel"), py::arg("seed"),
             py::arg("round"), py::arg("sender"), py::arg("payload"), py::arg("payload_nbytes"));
  module.def("header_parse", header_parse, py::arg("buffer"));
  module.def("payload_check", payload_check, py::arg("header"), py::arg("payload"), py::arg("payload_nbytes"));
  module.def("crc32c", checksum, py::arg("buffer"));
}

}  // namespace dance
