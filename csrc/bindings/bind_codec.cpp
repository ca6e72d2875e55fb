// Binds codecs, encode, decode, reduce and mix; arrays cross as addresses that dance/arrays took from live objects.
#include <pybind11/stl.h>

#include "base/host_device.h"
#include "bindings/bindings.h"
#include "codec_api.h"

namespace py = pybind11;

namespace dance {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Operation operation_of(int number) {
  if (number < 0 || number >= kNumOperations) {
    throw ArgumentError("operation " + std::to_string(number) + " is unknown; choose 0 to 2");
  }
  return static_cast<Operation>(number);
}

py::list codec_list() {
  py::list list;
  for (const CodecInfo& info : codecs()) {
    py::dict entry;
    entry["id"] = info.id;
    entry["name"] = info.name;
    entry["sparse"] = info.sparse;
    entry["fixed_size"] = info.fixed_size;
    entry["seeded"] = info.seeded;
    list.append(entry);
  }
  return list;
}

// The address of a contiguous buffer: NumPy's own two ways to it cost 1 us each.
uintptr_t address(py::handle array) {
  Py_buffer view;
  if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  const auto found = reinterpret_cast<uintptr_t>(view.buf);
  PyBuffer_Release(&view);
  return found;
}

// What receives the results of CUDA work that nobody waits for: an int64 for the first non-finite index, then an int64
// whose low half takes the number of values.
int64_t* nonfinite_of(uintptr_t flags) { return at<int64_t>(flags); }
uint32_t* count_of(uintptr_t flags) { return flags == 0 ? nullptr : at<uint32_t>(flags + sizeof(int64_t)); }

py::tuple encode_array(const CodecSpec& codec, int operation, uintptr_t x, uint8_t dtype, uintptr_t state,
                       uint8_t state_dtype, uint64_t numel, uint64_t seed, uintptr_t payload, uint64_t payload_nbytes,
                       int device, uintptr_t stream, uintptr_t flags, uintptr_t scratch) {
  EncodeRequest request;
  request.operation = operation_of(operation);
  request.codec = codec;
  request.x = at<const void>(x);
  request.dtype = dtype_of(dtype);
  request.state = at<void>(state);
  request.state_dtype = dtype_of(state_dtype);
  request.numel = numel;
  request.seed = seed;
  request.payload = at<uint8_t>(payload);
  request.payload_size = payload_nbytes;
  request.place = {device, stream};
  request.nonfinite = nonfinite_of(flags);
  request.count = count_of(flags);
  request.scratch = at<void>(scratch);
  EncodeResult result;
  {
    py::gil_scoped_release release;
    result = encode(request);
  }
  return py::make_tuple(result.first_nonfinite, result.count);
}

void decode_array(const CodecSpec& codec, uint8_t dtype, uint64_t seed, uintptr_t payload, uint64_t payload_nbytes,
                  uintptr_t out, uint8_t out_dtype, uint64_t numel, bool add, float weight, int device,
                  uintptr_t stream, uintptr_t scratch) {
  DecodeRequest request;
  request.codec = codec;
  request.dtype = dtype_of(dtype);
  request.seed = seed;
  request.payload = at<const uint8_t>(payload);
  request.payload_size = payload_nbytes;
  request.out = at<void>(out);
  request.out_dtype = dtype_of(out_dtype);
  request.numel = numel;
  request.add = add;
  request.weight = weight;
  request.place = {device, stream};
  request.scratch = at<void>(scratch);
  py::gil_scoped_release release;
  decode(request);
}

// A reduce as Python puts it together step by step; the structs it points at live here.
struct Reduction {
  std::vector<DecodeRequest> packets;
  EncodeRequest again;
  ReduceRequest request;

  Reduction(uint64_t numel, float weight, int device, uintptr_t stream) {
    request.numel = numel;
    request.weight = weight;
    request.place = {device, stream};
  }

  void add(const CodecSpec& codec, uint8_t dtype, uint64_t seed, uintptr_t payload, uint64_t payload_nbytes,
           uint64_t numel) {
    DecodeRequest packet;
    packet.codec = codec;
    packet.dtype = dtype_of(dtype);
    packet.seed = seed;
    packet.payload = at<const uint8_t>(payload);
    packet.payload_size = payload_nbytes;
    packet.numel = numel;
    packet.place = request.place;
    packets.push_back(packet);
  }

  void store(uintptr_t out, uint8_t out_dtype) {
    request.out = at<void>(out);
    request.out_dtype = dtype_of(out_dtype);
  }

  void encode(const CodecSpec& codec, uint8_t dtype, uintptr_t residual, uint8_t residual_dtype, uint64_t seed,
              uintptr_t payload, uint64_t payload_nbytes, uintptr_t flags) {
    again.operation = residual == 0 ? Operation::encode : Operation::feedback;
    again.codec = codec;
    again.dtype = dtype_of(dtype);
    again.state = at<void>(residual);
    again.state_dtype = dtype_of(residual_dtype);
    again.numel = request.numel;
    again.seed = seed;
    again.payload = at<uint8_t>(payload);
    again.payload_size = payload_nbytes;
    again.place = request.place;
    again.nonfinite = nonfinite_of(flags);
    again.count = count_of(flags);
    request.encode_into = &again;
  }

  const ReduceRequest& linked() {
    request.packets = packets.data();
    request.num_packets = static_cast<uint32_t>(packets.size());
    return request;
  }

  uint64_t scratch_nbytes() { return cuda_reduce_scratch_nbytes(linked()); }

  py::tuple run(uintptr_t scratch) {
    linked();
    request.scratch = at<void>(scratch);
    again.scratch = request.scratch;
    EncodeResult result;
    {
      py::gil_scoped_release release;
      result = reduce(request);
    }
    return py::make_tuple(result.first_nonfinite, result.count);
  }
};

void bind_spec(py::module_& module) {
  py::class_<CodecSpec>(module, "Spec")
      .def(py::init([](uint8_t id, uint8_t mode, uint8_t values, uint16_t block, uint16_t levels, uint16_t scope,
                       uint32_t count, float argument) {
             return CodecSpec{id, mode, values, block, levels, scope, count, float_bits(argument)};
           }),
           py::kw_only(), py::arg("id"), py::arg("mode") = 0, py::arg("values") = 0, py::arg("block") = 0,
           py::arg("levels") = 0, py::arg("scope") = 0, py::arg("count") = 0, py::arg("argument") = 0.0f)
      .def_readonly("id", &CodecSpec::id)
      .def_readonly("mode", &CodecSpec::mode)
      .def_readonly("values", &CodecSpec::values)
      .def_readonly("block", &CodecSpec::block)
      .def_readonly("levels", &CodecSpec::levels)
      .def_readonly("scope", &CodecSpec::scope)
      .def_readonly("count", &CodecSpec::count)
      .def_property_readonly("argument", [](const CodecSpec& spec) { return bits_float(spec.argument); })
      .def("with_count",
           [](const CodecSpec& spec, uint32_t count) {
             CodecSpec other = spec;
             other.count = count;
             return other;
           })
      // As receivers look at it: what a sender selected by is not theirs.
      .def("decodes_like", [](const CodecSpec& a, const CodecSpec& b) {
        return a.id == b.id && a.mode == b.mode && a.values == b.values && a.block == b.block && a.levels == b.levels &&
               a.scope == b.scope && a.count == b.count;
      });
}

void bind_reduction(py::module_& module) {
  py::class_<Reduction>(module, "Reduction")
      .def(py::init<uint64_t, float, int, uintptr_t>(), py::arg("numel"), py::arg("weight"), py::arg("device"),
           py::arg("stream"))
      .def("add", &Reduction::add, py::arg("codec"), py::arg("dtype"), py::arg("seed"), py::arg("payload"),
           py::arg("payload_nbytes"), py::arg("numel"))
      .def("store", &Reduction::store, py::arg("out"), py::arg("out_dtype"))
      .def("encode", &Reduction::encode, py::arg("codec"), py::arg("dtype"), py::arg("residual"),
           py::arg("residual_dtype"), py::arg("seed"), py::arg("payload"), py::arg("payload_nbytes"), py::arg("flags"))
      .def("scratch_nbytes", &Reduction::scratch_nbytes)
      .def("run", &Reduction::run, py::arg("scratch"));
}

}  // namespace

void bind_codec(py::module_& module) {
  bind_spec(module);
  bind_reduction(module);
  module.def("codecs", codec_list);
  module.def("address", address, py::arg("array"));
  module.def(
      "payload_nbytes",
      [](const CodecSpec& codec, uint8_t dtype, uint64_t numel) {
        return payload_nbytes(codec, dtype_of(dtype), numel);
      },
      py::arg("codec"), py::arg("dtype"), py::arg("numel"));
  module.def(
      "payload_bound",
      [](const CodecSpec& codec, uint8_t dtype, uint64_t numel) {
        return payload_bound(codec, dtype_of(dtype), numel);
      },
      py::arg("codec"), py::arg("dtype"), py::arg("numel"));
  module.def("num_values", num_values, py::arg("codec"), py::arg("numel"));
  module.def("encode", encode_array, py::arg("codec"), py::arg("operation"), py::arg("x"), py::arg("dtype"),
             py::arg("state"), py::arg("state_dtype"), py::arg("numel"), py::arg("seed"), py::arg("payload"),
             py::arg("payload_nbytes"), py::arg("device"), py::arg("stream"), py::arg("flags"), py::arg("scratch"));
  module.def("decode", decode_array, py::arg("codec"), py::arg("dtype"), py::arg("seed"), py::arg("payload"),
             py::arg("payload_nbytes"), py::arg("out"), py::arg("out_dtype"), py::arg("numel"), py::arg("add"),
             py::arg("weight"), py::arg("device"), py::arg("stream"), py::arg("scratch"));
  module.def(
      "indices",
      [](const CodecSpec& codec, uint8_t dtype, uint64_t seed, uintptr_t payload, uint64_t payload_nbytes,
         uint64_t numel, uintptr_t out) {
        py::gil_scoped_release release;
        indices(codec, dtype_of(dtype), seed, at<const uint8_t>(payload), payload_nbytes, numel, at<int64_t>(out));
      },
      py::arg("codec"), py::arg("dtype"), py::arg("seed"), py::arg("payload"), py::arg("payload_nbytes"),
      py::arg("numel"), py::arg("out"));
  module.def(
      "mix",
      [](uintptr_t x, uintptr_t neighbour_sum, uintptr_t reference, uint8_t dtype, float step_size, uint64_t numel,
         int device, uintptr_t stream) {
        py::gil_scoped_release release;
        mix(at<void>(x), at<const void>(neighbour_sum), at<const void>(reference), dtype_of(dtype), step_size, numel,
            {device, stream});
      },
      py::arg("x"), py::arg("neighbour_sum"), py::arg("reference"), py::arg("dtype"), py::arg("step_size"),
      py::arg("numel"), py::arg("device"), py::arg("stream"));
  module.def(
      "cuda_scratch_nbytes",
      [](const CodecSpec& codec, uint8_t dtype, uint64_t numel) {
        return cuda_scratch_nbytes(codec, dtype_of(dtype), numel);
      },
      py::arg("codec"), py::arg("dtype"), py::arg("numel"));
}

}  // namespace dance
