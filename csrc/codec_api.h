// The front door of the core: checks the arguments, picks the CPU or the CUDA table, calls.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "codecs/operation.h"

namespace dance {

// A codec with its parameters. `block` counts elements and is 0 for codecs without blocks; `count` is the number of
// values a sparse codec sends and 0 for dense codecs.
struct CodecSpec {
  uint8_t id = 0;
  uint32_t block = 0;
  uint64_t count = 0;
};

// Where arrays live. device < 0 is the CPU, else a CUDA ordinal with the stream (a cudaStream_t) the work is put on.
struct Place {
  int device = -1;
  uintptr_t stream = 0;
};

// No packet has more elements, whoever made it; dance/packet.py holds receivers without an expectation to fewer.
constexpr uint64_t kMaxNumel = uint64_t{1} << 40;
// topk sends 32-bit indices.
constexpr uint64_t kMaxSparseNumel = uint64_t{1} << 32;

// (id, name) of every codec, in the order of codecs/list.h.
std::vector<std::pair<int, std::string>> codecs();

// The exact payload size in bytes. Throws ArgumentError for an unknown codec or parameters out of range.
uint64_t payload_nbytes(const CodecSpec& codec, uint64_t numel);

// Encodes v (see Operation) into `payload`, whose size must be payload_nbytes; updates `state` in place. Returns the
// index of the first non-finite element, or -1. On CUDA it returns -1 at once and lowers *nonfinite (device memory,
// preset to INT64_MAX) when the work runs; `scratch` is device memory of cuda_scratch_nbytes.
int64_t encode(Operation operation, const CodecSpec& codec, const float* x, float* state, uint8_t* payload,
               uint64_t payload_size, uint64_t numel, uint64_t seed, Place place, int64_t* nonfinite, void* scratch);

// out = weight * decoded, or out += weight * decoded. A payload on the CPU is untrusted: it is validated before
// anything is written, and FrameError leaves `out` untouched.
void decode(const CodecSpec& codec, const uint8_t* payload, uint64_t payload_size, float* out, uint64_t numel, bool add,
            float weight, Place place);

// Throws FrameError unless a payload on the CPU that came from a peer is what encode could have made: the checks of
// decode, and no value that is not finite. Its size must be payload_nbytes and it must be aligned to 4 bytes.
void check_received(const CodecSpec& codec, const uint8_t* payload, uint64_t payload_size, uint64_t numel);

// x += step_size * (neighbour_sum - reference), in place.
void mix(float* x, const float* neighbour_sum, const float* reference, float step_size, uint64_t numel, Place place);

uint64_t cuda_scratch_nbytes(const CodecSpec& codec, uint64_t numel);

}  // namespace dance
