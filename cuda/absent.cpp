// The CUDA backend of a build without nvcc: the same symbols, each saying what is missing.
#include "base/error.h"
#include "kernels.h"

namespace dance::cuda {
namespace {

[[noreturn]] void absent() {
  throw UnavailableError(
      "this build of dance has no CUDA code; install nvcc and build with --config-settings cmake.define.DANCE_CUDA=ON, "
      "or move the "
      "array to the CPU");
}

}  // namespace

bool built() { return false; }
bool available() { return false; }
std::vector<int> architectures() { return {}; }
void encode(Operation, const CodecSpec&, const float*, float*, uint8_t*, uint64_t, uint64_t, Place, int64_t*, void*) {
  absent();
}
void decode(const CodecSpec&, const uint8_t*, float*, uint64_t, bool, float, Place) { absent(); }
void mix(float*, const float*, const float*, float, uint64_t, Place) { absent(); }
uint64_t scratch_nbytes(const CodecSpec&, uint64_t) { absent(); }

}  // namespace dance::cuda
