// How the fuzz targets read their bytes: codecs with parameters, arrays and payloads in buffers of exactly their size,
// so that AddressSanitizer sees every byte too many. Iterates over codecs/list.h: a new codec joins by itself.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "codec_api.h"
#include "codecs/list.h"

// Ends the process, which is how a fuzz target reports a finding.
#define FUZZ_CHECK(condition)                                                        \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)

namespace dance::fuzz {

// Bytes in a heap buffer of exactly this size, zero at first.
class Bytes {
 public:
  explicit Bytes(uint64_t size) : size_(size), data_(new uint8_t[size]()) {}
  Bytes(const Bytes& other) : Bytes(other.size_) { std::memcpy(data_.get(), other.data_.get(), size_); }
  Bytes(Bytes&&) = default;
  Bytes& operator=(Bytes&&) = default;

  uint8_t* data() const { return data_.get(); }
  uint64_t size() const { return size_; }
  bool operator==(const Bytes& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), size_) == 0;
  }

 private:
  uint64_t size_;
  std::unique_ptr<uint8_t[]> data_;
};

// An array of a dtype; `get` and `set` convert.
struct Array {
  Dtype dtype;
  uint64_t numel;
  Bytes bytes;

  Array(Dtype type, uint64_t n) : dtype(type), numel(n), bytes(n * dtype_nbytes(type)) {}

  uint32_t bits(uint64_t i) const {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * dtype_nbytes(dtype), dtype_nbytes(dtype));
    return bits;
  }
  float get(uint64_t i) const {
    return dtype == Dtype::float32   ? bits_float(bits(i))
           : dtype == Dtype::float16 ? half_to_float(bits(i))
                                     : bfloat_to_float(bits(i));
  }
  // What is stored of a finite value.
  uint32_t stored(float value) const {
    return dtype == Dtype::float32   ? float_bits(value)
           : dtype == Dtype::float16 ? float_to_half(value)
                                     : float_to_bfloat(value);
  }
  void set(uint64_t i, float value) {
    const uint32_t bits = stored(value);
    std::memcpy(bytes.data() + i * dtype_nbytes(dtype), &bits, dtype_nbytes(dtype));
  }
};

// One dense codec and mode, or one sparse codec.
struct Kind {
  uint8_t id, mode;
  uint16_t fixed_block;
  bool scales, levels, sparse, fixed_size;
};

inline const std::vector<Kind>& dense_kinds() {
  static const std::vector<Kind> list = [] {
    std::vector<Kind> kinds;
    for_each(DenseCodecs{}, [&](auto codec) {
      using Codec = decltype(codec);
      kinds.push_back({Codec::id, Codec::mode, static_cast<uint16_t>(Codec::kFixedBlock), has_scales<Codec>,
                       Codec::kVariableBits, false, true});
    });
    return kinds;
  }();
  return list;
}

inline const std::vector<Kind>& all_kinds() {
  static const std::vector<Kind> list = [] {
    std::vector<Kind> kinds = dense_kinds();
    for_each(SparseCodecs{}, [&](auto codec) {
      using Codec = decltype(codec);
      kinds.push_back({Codec::id, 0, 0, false, false, true, Codec::kFixedSize});
    });
    return kinds;
  }();
  return list;
}

// The bytes of one run, taken from the front; zeros once they are used up.
class Input {
 public:
  Input(const uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  template <class T>
  T take() {
    T value{};
    const std::size_t n = size_ < sizeof value ? size_ : sizeof value;
    if (n > 0) std::memcpy(&value, data_, n);
    data_ += n;
    size_ -= n;
    return value;
  }
  template <class T>
  T below(T end) {
    return static_cast<T>(take<T>() % end);
  }
  std::size_t left() const { return size_; }

  void fill(const Bytes& out) {
    const std::size_t n = size_ < out.size() ? size_ : out.size();
    if (n > 0) std::memcpy(out.data(), data_, n);
    data_ += n;
    size_ -= n;
  }

  // Mostly few elements, now and then more than any chunk of a driver.
  uint64_t numel() {
    const auto kind = take<uint8_t>();
    return kind < 208 ? below<uint16_t>(300) : kind < 248 ? below<uint16_t>(5000) : below<uint16_t>(20000);
  }

  Dtype dtype() { return static_cast<Dtype>(below<uint8_t>(kNumDtypes)); }

  float weight() {
    constexpr float kWeights[] = {1.0f, 0.5f, -2.0f, 0.0f, 1e30f, 1e-40f};
    const auto choice = below<uint8_t>(8);
    const float raw = bits_float(take<uint32_t>());
    return choice < 6 ? kWeights[choice] : is_finite(raw) ? raw : 1.0f;
  }

  // Parameters in range, as an encoder is given them.
  CodecSpec dense(uint8_t choice) {
    const Kind& kind = dense_kinds()[choice % dense_kinds().size()];
    return dense(kind);
  }
  CodecSpec codec(uint64_t numel) {
    const Kind& kind = all_kinds()[take<uint8_t>() % all_kinds().size()];
    if (!kind.sparse) return dense(kind);
    CodecSpec spec = dense(take<uint8_t>());
    spec.values = spec.id;
    spec.id = kind.id;
    if (kind.fixed_size && take<uint8_t>() % 2 == 1) {
      spec.scope = static_cast<uint16_t>(kMinScope + below<uint16_t>(kMaxScope - kMinScope + 1));
      if (take<uint8_t>() % 2 == 1) spec.scope = static_cast<uint16_t>(kMinScope + spec.scope % kMinScope);
    }
    const uint64_t most = spec.scope != 0 ? spec.scope : numel;
    spec.count = most == 0 ? 0 : 1 + static_cast<uint32_t>(take<uint32_t>() % most);
    if (!kind.fixed_size) {
      spec.argument = take<uint32_t>() & kMagnitudeMask;
      if (spec.id == Dgc::id) spec.argument = float_bits(static_cast<float>(1 + spec.argument % 1000) / 1000.0f);
      if (spec.argument == 0 || spec.argument >= kInfinityBits) spec.argument = float_bits(1.0f);
    }
    return spec;
  }
  // Whatever the bytes say.
  CodecSpec raw_codec() {
    CodecSpec spec;
    spec.id = take<uint8_t>();
    spec.mode = take<uint8_t>();
    spec.values = take<uint8_t>();
    spec.block = take<uint16_t>();
    spec.levels = take<uint16_t>();
    spec.scope = take<uint16_t>();
    spec.count = take<uint32_t>();
    spec.argument = take<uint32_t>();
    return spec;
  }

  // Values of one of several kinds. What the bytes do not fill repeats them, so that long arrays need few bytes.
  Array array(Dtype dtype, uint64_t numel) {
    Array out(dtype, numel);
    const auto kind = below<uint8_t>(4);
    const auto exponent = below<uint8_t>(253);
    const auto period = 1 + take<uint8_t>() % 64u;
    uint8_t pattern[4 * 64] = {};
    for (uint32_t i = 0; i < 4 * period; ++i) pattern[i] = take<uint8_t>();
    for (uint64_t i = 0; i < numel; ++i) {
      uint32_t raw;
      std::memcpy(&raw, pattern + 4 * (i % period), 4);
      if (kind == 0) {  // any bits at all
        std::memcpy(out.bytes.data() + i * dtype_nbytes(dtype), &raw, dtype_nbytes(dtype));
        continue;
      }
      const uint32_t mixed = raw + static_cast<uint32_t>(i / period) * (kind == 3 ? 0u : 0x9E3779B9u);
      const float scale = bits_float((1u + exponent) << 23);
      const auto small = static_cast<float>(static_cast<int32_t>(mixed) >> (kind == 2 ? 28 : 16));
      out.set(i, saturate(small * scale));
    }
    return out;
  }

 private:
  CodecSpec dense(const Kind& kind) {
    CodecSpec spec;
    spec.id = kind.id;
    spec.mode = kind.mode;
    if (kind.scales) spec.block = kind.fixed_block != 0 ? kind.fixed_block : block();
    if (kind.levels) spec.levels = static_cast<uint16_t>(3 + 2 * below<uint8_t>(127));
    return spec;
  }
  uint16_t block() {
    constexpr uint16_t kBlocks[] = {32, 64, 256, 4096};
    const auto choice = take<uint8_t>();
    return choice % 8 < 4 ? kBlocks[choice % 8]
                          : static_cast<uint16_t>(kMinBlock + choice / 8 * (choice % 8 < 6 ? 1 : 131));
  }

  const uint8_t* data_;
  std::size_t size_;
};

// What encode writes, in a buffer of exactly its size; `codec` with the count that was sent.
struct Encoded {
  CodecSpec codec;
  Dtype dtype;
  uint64_t numel, seed;
  Bytes payload;
  EncodeResult result;
};

inline Encoded encode_array(Operation operation, const CodecSpec& codec, const Array& x, Array* state, uint64_t seed) {
  Bytes room(payload_bound(codec, x.dtype, x.numel));
  EncodeRequest request;
  request.operation = operation;
  request.codec = codec;
  request.x = x.bytes.data();
  request.dtype = x.dtype;
  if (state != nullptr) {
    request.state = state->bytes.data();
    request.state_dtype = state->dtype;
  }
  request.numel = x.numel;
  request.seed = seed;
  request.payload = room.data();
  request.payload_size = room.size();
  const EncodeResult result = encode(request);
  Encoded sent{codec, x.dtype, x.numel, seed, Bytes(0), result};
  sent.codec.count = result.count;
  const uint64_t size = payload_nbytes(sent.codec, x.dtype, x.numel);
  FUZZ_CHECK(size <= room.size());
  sent.payload = Bytes(size);
  if (size > 0) std::memcpy(sent.payload.data(), room.data(), size);
  return sent;
}

inline DecodeRequest decode_request(const Encoded& packet, const Array& out, bool add, float weight) {
  DecodeRequest request;
  request.codec = packet.codec;
  request.dtype = packet.dtype;
  request.seed = packet.seed;
  request.payload = packet.payload.data();
  request.payload_size = packet.payload.size();
  request.out = out.bytes.data();
  request.out_dtype = out.dtype;
  request.numel = packet.numel;
  request.add = add;
  request.weight = weight;
  return request;
}

// Equal bits, where any NaN equals any other: which of two NaN operands an addition returns is the compiler's choice.
inline bool same_values(const Array& a, const Array& b) {
  for (uint64_t i = 0; i < a.numel; ++i) {
    if (a.bits(i) != b.bits(i) && !(a.get(i) != a.get(i) && b.get(i) != b.get(i))) return false;
  }
  return a.numel == b.numel;
}

}  // namespace dance::fuzz
