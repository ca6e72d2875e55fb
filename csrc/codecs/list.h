// The closed list of codecs: drivers, dispatch, bindings and tests iterate over it.
#pragma once

#include "base/dtype.h"
#include "codecs/bf16.h"
#include "codecs/dgc.h"
#include "codecs/fp16.h"
#include "codecs/fp8.h"
#include "codecs/int.h"
#include "codecs/mx.h"
#include "codecs/none.h"
#include "codecs/qsgd.h"
#include "codecs/randk.h"
#include "codecs/sign.h"
#include "codecs/ternary.h"
#include "codecs/threshold.h"
#include "codecs/topk.h"

namespace dance {

template <class... Codecs>
struct CodecList {
  static constexpr uint32_t size = sizeof...(Codecs);
};

using DenseCodecs = CodecList<None, Fp16, Bf16, Fp8E4m3, Fp8E5m2, MxFp8E4m3, MxFp8E5m2, MxFp4, Int8, Int8Stochastic,
                              Int4, Int4Stochastic, Int2, Int2Stochastic, QsgdMax, QsgdL2, Sign, Ternary>;
using SparseCodecs = CodecList<TopK, RandK, Threshold, Dgc>;

// Calls f(Codec{}) for every codec of the list.
template <class F, class... Codecs>
constexpr void for_each(CodecList<Codecs...>, F&& f) {
  (f(Codecs{}), ...);
}

// Calls f(Codec{}) for the first codec with this id (a sparse one, or any mode of a dense one); false when there is
// none.
template <class F, class... Codecs>
constexpr bool with_codec(CodecList<Codecs...>, uint8_t id, F&& f) {
  return ((Codecs::id == id ? (f(Codecs{}), true) : false) || ...);
}

// Calls f(Codec{}) for the dense codec with this id and mode; false when the list has none.
template <class F, class... Codecs>
constexpr bool with_mode(CodecList<Codecs...>, uint8_t id, uint8_t mode, F&& f) {
  return ((Codecs::id == id && Codecs::mode == mode ? (f(Codecs{}), true) : false) || ...);
}

template <class... Codecs>
constexpr bool has_codec(CodecList<Codecs...>, uint8_t id) {
  return ((Codecs::id == id) || ...);
}

constexpr bool is_sparse(uint8_t id) { return has_codec(SparseCodecs{}, id); }
constexpr bool is_codec(uint8_t id) { return is_sparse(id) || has_codec(DenseCodecs{}, id); }

// Whether the size of a packet follows from numel and the parameters alone.
constexpr bool is_fixed_size(uint8_t id) {
  bool fixed = true;
  with_codec(SparseCodecs{}, id, [&](auto codec) { fixed = decltype(codec)::kFixedSize; });
  return fixed;
}

// Whether a sparse codec's indices follow from the seed.
constexpr bool is_seeded(uint8_t id) {
  bool seeded = false;
  with_codec(SparseCodecs{}, id, [&](auto codec) { seeded = decltype(codec)::kSeeded; });
  return seeded;
}

// The dense codec whose bytes are those of codec `id` for an array of dtype: `none` of 16 bits is fp16 or bf16.
constexpr uint8_t stored_as(uint8_t id, Dtype dtype) {
  if (id != None::id || dtype == Dtype::float32) return id;
  return dtype == Dtype::float16 ? Fp16::id : Bf16::id;
}

// nullptr of a codec that is_codec does not know.
constexpr const char* name_of(uint8_t id) {
  const char* name = nullptr;
  const auto take = [&](auto codec) { name = decltype(codec)::name; };
  with_codec(DenseCodecs{}, id, take) || with_codec(SparseCodecs{}, id, take);
  return name;
}

}  // namespace dance
