// The front door of the core: checks the arguments, picks the CPU or the CUDA table, calls.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "codecs/operation.h"

namespace dance {

// A codec with its parameters, as the header carries them. For a sparse codec mode, block and levels are those of the
// codec of its values.
struct CodecSpec {
  uint8_t id = 0;
  uint8_t mode = 0;       // int*: 0 nearest, 1 stochastic; fp8, mxfp8: 0 e4m3, 1 e5m2; qsgd: 0 max, 1 l2; else 0
  uint8_t values = 0;     // sparse: id of the dense codec of the values
  uint16_t block = 0;     // elements a scale; 0 for codecs without
  uint16_t levels = 0;    // qsgd: an odd number of values, 3 to 255
  uint16_t scope = 0;     // sparse: elements that are selected from together; 0: all
  uint32_t count = 0;     // sparse: values sent, of a full block where there is a scope, else in all
  uint32_t argument = 0;  // float bits. threshold: its value; dgc: its ratio. Receivers do not need it
};

// Where arrays live. device < 0 is the CPU, else a CUDA ordinal with the stream (a cudaStream_t) the work is put on.
struct Place {
  int device = -1;
  uintptr_t stream = 0;
};

// No packet has more elements, whoever made it; dance/packet.py holds receivers without an expectation to fewer.
constexpr uint64_t kMaxNumel = uint64_t{1} << 40;

struct CodecInfo {
  int id;
  std::string name;
  bool sparse, fixed_size, seeded;
};
// Every codec once, in the order of codecs/list.h.
std::vector<CodecInfo> codecs();

// Bytes of the indices that a sparse packet of numel elements holds for `count` values: none where they follow from the
// seed.
uint64_t sent_indices_nbytes(const CodecSpec& codec, uint64_t numel, uint64_t count);

// The exact payload size in bytes of a packet whose array is of `dtype`; for threshold and dgc that of spec.count
// values. Throws ArgumentError for an unknown codec or parameters out of range.
uint64_t payload_nbytes(const CodecSpec& codec, Dtype dtype, uint64_t numel);

// The most bytes encode can write: payload_nbytes where the size is fixed. For dgc spec.count is the least it sends
// (k), threshold ignores it.
uint64_t payload_bound(const CodecSpec& codec, Dtype dtype, uint64_t numel);

// A packet to be made. `x` and `state` (see Operation) are contiguous arrays; state is updated in place. The payload
// lies in neither of them.
struct EncodeRequest {
  Operation operation = Operation::encode;
  CodecSpec codec;
  const void* x = nullptr;
  Dtype dtype = Dtype::float32;
  void* state = nullptr;
  Dtype state_dtype = Dtype::float32;
  uint64_t numel = 0;
  uint64_t seed = 0;
  uint8_t* payload = nullptr;  // aligned to 4
  uint64_t payload_size = 0;   // payload_bound
  Place place;
  int64_t* nonfinite = nullptr;  // CUDA: lowered to the first non-finite index when the work runs (preset: INT64_MAX)
  uint32_t* count = nullptr;     // CUDA, threshold and dgc: device memory that receives the number of values
  void* scratch = nullptr;       // CUDA: device memory of cuda_scratch_nbytes
};

struct EncodeResult {
  int64_t first_nonfinite = -1;  // index of the first non-finite element of v; on CUDA always -1
  uint32_t count = 0;  // values sent by threshold and dgc: the payload ends at payload_nbytes of it; else spec.count
};

EncodeResult encode(const EncodeRequest& request);

// out = weight * decoded, or out += weight * decoded, in memory apart from the payload. A payload on the CPU is
// untrusted: its structure is validated before anything is written, and FrameError leaves `out` untouched.
struct DecodeRequest {
  CodecSpec codec;
  Dtype dtype = Dtype::float32;  // of the packet
  uint64_t seed = 0;             // of the packet
  const uint8_t* payload = nullptr;
  uint64_t payload_size = 0;
  void* out = nullptr;
  Dtype out_dtype = Dtype::float32;
  uint64_t numel = 0;
  bool add = false;
  float weight = 1.0f;
  Place place;
  void* scratch = nullptr;  // CUDA: device memory of cuda_scratch_nbytes
};

void decode(const DecodeRequest& request);

// sum = weight * decoded of the first packet, then += weight * decoded of the others in turn, all float32; written to
// `out`, or encoded again as `encode_into` says, whose x is ignored (v = sum, or sum + state), in one pass over memory.
struct ReduceRequest {
  const DecodeRequest* packets = nullptr;  // codec, dtype, seed, payload, payload_size are read of each
  uint32_t num_packets = 0;                // at least 1
  uint64_t numel = 0;
  float weight = 1.0f;
  void* out = nullptr;  // or null
  Dtype out_dtype = Dtype::float32;
  const EncodeRequest* encode_into = nullptr;  // or null
  Place place;
  void* scratch = nullptr;  // CUDA: device memory of cuda_reduce_scratch_nbytes
};

EncodeResult reduce(const ReduceRequest& request);

// Throws FrameError unless a payload on the CPU that came from a peer is what encode could have made: the checks of
// decode, and no code or value that no encoder makes. Its size must be payload_nbytes and it must be aligned to 4.
void check_received(const CodecSpec& codec, Dtype dtype, const uint8_t* payload, uint64_t payload_size, uint64_t numel);

// The indices of a sparse packet's values, increasing: payload_nbytes' total count of them, on the CPU. Validates.
void indices(const CodecSpec& codec, Dtype dtype, uint64_t seed, const uint8_t* payload, uint64_t payload_size,
             uint64_t numel, int64_t* out);
uint64_t num_values(const CodecSpec& codec, uint64_t numel);

// x += step_size * (neighbour_sum - reference), in place; all of one dtype.
void mix(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel,
         Place place);

uint64_t cuda_scratch_nbytes(const CodecSpec& codec, Dtype dtype, uint64_t numel);
uint64_t cuda_reduce_scratch_nbytes(const ReduceRequest& request);

}  // namespace dance
