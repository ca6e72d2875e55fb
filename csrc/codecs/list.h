// The closed list of codecs: drivers, dispatch, bindings and tests iterate over it.
#pragma once

#include "codecs/bf16.h"
#include "codecs/fp16.h"
#include "codecs/int8.h"
#include "codecs/none.h"
#include "codecs/sign.h"
#include "codecs/topk.h"

namespace dance {

template <class... Codecs>
struct CodecList {
  static constexpr uint32_t size = sizeof...(Codecs);
};

using DenseCodecs = CodecList<None, Fp16, Bf16, Int8, Sign>;
using SparseCodecs = CodecList<TopK>;

// Calls f(Codec{}) for every codec of the list.
template <class F, class... Codecs>
constexpr void for_each(CodecList<Codecs...>, F&& f) {
  (f(Codecs{}), ...);
}

// Calls f(Codec{}) for the codec with this id; false when the list has none.
template <class F, class... Codecs>
constexpr bool with_codec(CodecList<Codecs...>, uint8_t id, F&& f) {
  return ((Codecs::id == id ? (f(Codecs{}), true) : false) || ...);
}

}  // namespace dance
