// The CPU driver of all dense codecs, and mix. Compiled once for each target of cmake/cpu_targets.cmake with
// DANCE_TARGET set; plain loops that the compiler vectorises for that target.
#include "cpu/kernels.h"

#include "codecs/list.h"
#include "cpu/decode.h"
#include "cpu/encode.h"
#include "cpu/target.h"

namespace dance::cpu {
namespace {

template <Dtype dtype>
void mix_as(void* x, const void* neighbour_sum, const void* reference, float step_size, uint64_t first, uint64_t last) {
  using Format = Element<dtype>;
  auto* __restrict moved = static_cast<typename Format::Type*>(x);
  const auto* __restrict sum = static_cast<const typename Format::Type*>(neighbour_sum);
  const auto* __restrict own = static_cast<const typename Format::Type*>(reference);
  for (uint64_t i = first; i < last; ++i) {
    moved[i] = Format::store(Format::load(moved[i]) + step_size * (Format::load(sum[i]) - Format::load(own[i])));
  }
}

void mix(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t first,
         uint64_t last) {
  switch (dtype) {
    case Dtype::float32:
      return mix_as<Dtype::float32>(x, neighbour_sum, reference, step_size, first, last);
    case Dtype::float16:
      return mix_as<Dtype::float16>(x, neighbour_sum, reference, step_size, first, last);
    case Dtype::bfloat16:
      return mix_as<Dtype::bfloat16>(x, neighbour_sum, reference, step_size, first, last);
  }
}

template <class Codec>
constexpr DenseKernels kernels_of() {
  return {Codec::id,
          Codec::mode,
          {encode_blocks<Codec, Operation::encode>, encode_blocks<Codec, Operation::feedback>,
           encode_blocks<Codec, Operation::difference>},
          {decode_blocks<Codec, false>, decode_blocks<Codec, true>},
          check_blocks<Codec>};
}

template <class... Codecs>
constexpr Kernels make_table(CodecList<Codecs...>) {
  return {DANCE_TARGET_NAME, {kernels_of<Codecs>()...}, mix};
}

constexpr Kernels table = make_table(DenseCodecs{});

}  // namespace

const Kernels& DANCE_TARGET_FUNCTION(kernels_)() { return table; }

}  // namespace dance::cpu
