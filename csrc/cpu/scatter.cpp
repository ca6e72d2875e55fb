// Receiving sparse codecs on the CPU: checking and reading indices, and adding values to an array or filling it.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "cpu/elias_fano.h"
#include "cpu/one_element.h"
#include "cpu/parallel.h"
#include "cpu/select.h"
#include "cpu/strata.h"
#include "cpu/values.h"

namespace dance::cpu {
namespace {

// Bytes of output that a thread gets at least.
constexpr uint64_t kFillGrain = 1 << 18;

uint32_t load_u16(const uint8_t* payload, uint64_t i) {
  uint16_t value;
  std::memcpy(&value, payload + 2 * i, 2);
  return value;
}

// Calls body(i, index) for all values, in order within each of several parts; `make_body` makes one for each.
template <class MakeBody>
void for_each_index(const CodecSpec& codec, uint64_t seed, const uint8_t* payload, uint64_t numel,
                    MakeBody&& make_body) {
  const uint64_t total = total_count(numel, codec.scope, codec.count);
  if (total == 0) return;
  const bool seeded = is_seeded(codec.id);
  if (codec.scope > 0) {
    const uint64_t grain = std::max<uint64_t>(1, kValueGrain / codec.count);
    parallel_for(divide_up(numel, codec.scope), grain, [&](uint32_t, uint64_t first, uint64_t last) {
      auto body = make_body();
      for_each_block(codec, numel, first, last, [&](uint64_t b, uint64_t begin, uint64_t n, uint64_t at, uint64_t k) {
        if (seeded) {
          for_each_stratum(seed_of_block(seed, b), k, n, 0, k,
                           [&](uint64_t i, uint64_t index) { body(at + i, begin + index); });
        } else {
          for (uint64_t i = at; i < at + k; ++i) body(i, begin + load_u16(payload, i));
        }
      });
    });
  } else if (seeded) {
    parallel_for(total, kValueGrain, [&](uint32_t, uint64_t first, uint64_t last) {
      auto body = make_body();
      for_each_stratum(seed, total, numel, first, last, body);
    });
  } else {
    const EliasFano code(numel, total);
    const uint64_t num_parts = num_threads_for(total, kValueGrain);
    parallel_for(num_parts, 1, [&](uint32_t, uint64_t first, uint64_t last) {
      auto body = make_body();
      for (uint64_t part = first; part < last; ++part) {
        read_elias_fano(code, payload, elias_fano_part(code, payload, part, num_parts), body);
      }
    });
  }
}

}  // namespace

void check_indices(const CodecSpec& codec, const uint8_t* payload, uint64_t numel) {
  const uint64_t total = total_count(numel, codec.scope, codec.count);
  if (total == 0 || is_seeded(codec.id)) return;
  if (codec.scope == 0) {
    if (const char* problem = check_elias_fano(EliasFano(numel, total), payload)) {
      throw FrameError(name_of(codec.id) + std::string(": ") + problem);
    }
    return;
  }
  for_each_block(codec, numel, 0, divide_up(numel, codec.scope),
                 [&](uint64_t b, uint64_t, uint64_t n, uint64_t at, uint64_t k) {
                   bool increase = true;
                   uint32_t next = 0;
                   for (uint64_t i = at; i < at + k; ++i) {
                     const uint32_t index = load_u16(payload, i);
                     increase &= index >= next;
                     next = index + 1;
                   }
                   if (increase && next <= n) return;
                   throw FrameError(name_of(codec.id) + std::string(": indices of block ") + std::to_string(b) +
                                    " do not increase or are out of range");
                 });
  if (total % 2 != 0 && load_u16(payload, total) != 0) {
    throw FrameError(name_of(codec.id) + std::string(": padding of the indices is not zero"));
  }
}

void decode_sparse(const DecodeRequest& request) {
  const CodecSpec& codec = request.codec;
  const uint64_t total = total_count(request.numel, codec.scope, codec.count);
  if (!request.add) {
    auto* bytes = static_cast<uint8_t*>(request.out);
    parallel_for(request.numel * dtype_nbytes(request.out_dtype), kFillGrain,
                 [&](uint32_t, uint64_t first, uint64_t last) { std::memset(bytes + first, 0, last - first); });
  }
  if (total == 0) return;
  const DenseLayout layout = dense_layout(codec, request.dtype, total);
  const uint8_t* values = request.payload + sent_indices_nbytes(codec, request.numel, total);
  for_each_index(codec, request.seed, request.payload, request.numel, [&] {
    return [&, read = ValueReader(layout, values, total, request.weight)](uint64_t i, uint64_t index) mutable {
      float value = read(i);
      if (request.add) value = add_finite(load_element(request.out, request.out_dtype, index), value);
      store_element(request.out, request.out_dtype, index, value);
    };
  });
}

void read_indices(const CodecSpec& codec, uint64_t seed, const uint8_t* payload, uint64_t numel, int64_t* out) {
  for_each_index(codec, seed, payload, numel,
                 [&] { return [out](uint64_t i, uint64_t index) { out[i] = static_cast<int64_t>(index); }; });
}

}  // namespace dance::cpu
