// The CUDA backend of a build without nvcc: the same symbols, each saying what is missing.
#include "base/error.h"
#include "kernels.h"

namespace dance::cuda {
namespace {

[[noreturn]] void absent() {
  throw UnavailableError(
      "this build of dance has no CUDA code; install nvcc and build with --config-settings cmake.define.DANCE_CUDA=ON, "
      "or move the array to the CPU");
}

}  // namespace

bool built() { return false; }
bool available() { return false; }
std::vector<int> architectures() { return {}; }
void encode(const EncodeRequest&) { absent(); }
void decode(const DecodeRequest&) { absent(); }
void reduce(const ReduceRequest&) { absent(); }
void mix(void*, const void*, const void*, Dtype, float, uint64_t, Place) { absent(); }
uint64_t scratch_nbytes(const CodecSpec&, Dtype, uint64_t) { absent(); }
uint64_t reduce_scratch_nbytes(const ReduceRequest&) { absent(); }

}  // namespace dance::cuda
