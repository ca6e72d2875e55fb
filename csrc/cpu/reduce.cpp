// Packets decoded, summed and stored or encoded again, on the CPU.
#include "cpu/reduce.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "codecs/list.h"
#include "cpu/buffer.h"
#include "cpu/dense.h"
#include "cpu/parallel.h"
#include "cpu/select.h"

namespace dance::cpu {
namespace {

// A piece of float32 that stays in the first level cache, and the most that a thread's stack should hold.
constexpr uint64_t kPiece = 4096, kLargestPiece = 16384;

// Elements of a piece that is whole blocks of every packet, or 0 where there is none.
uint64_t piece_of(const std::vector<DenseLayout>& layouts) {
  uint64_t piece = 1;
  for (const DenseLayout& layout : layouts) {
    piece = std::lcm(piece, uint64_t{layout.block});
    if (piece > kLargestPiece) return 0;
  }
  return piece < kPiece ? kPiece / piece * piece : piece;
}

void* at(void* array, Dtype dtype, uint64_t i) {
  return array == nullptr ? nullptr : static_cast<uint8_t*>(array) + dtype_nbytes(dtype) * i;
}

// Float32 numbers stored as another dtype: what decoding them as a packet of none does.
void store(const float* sum, void* out, Dtype dtype, uint64_t numel) {
  const DenseLayout none = dense_layout(None::id, 0, 0, 0, Dtype::float32, numel);
  const DecodeJob job{
      reinterpret_cast<const uint8_t*>(sum), nullptr, out, dtype, numel, 0, none.block, none.bits, 1.0f};
  none.kernels->decode[0](job, 0, divide_up(numel, none.block));
}

EncodeResult reduce_pieces(const ReduceRequest& request, const std::vector<DenseLayout>& layouts, uint64_t piece) {
  const EncodeRequest* again = request.encode_into;
  const uint64_t numel = request.numel;
  const bool direct = again == nullptr && request.out_dtype == Dtype::float32;
  const DenseLayout* into = again == nullptr ? nullptr : &layouts.back();
  if (again != nullptr && into->has_scales && into->bits >= 8) {
    const uint64_t used = numel * (into->bits / 8);
    std::memset(again->payload + used, 0, into->codes_size - used);
  }
  int64_t bad[kMaxParts];
  for (int64_t& index : bad) index = -1;
  auto body = [&](uint32_t part, uint64_t first, uint64_t last) {
    alignas(64) float buffer[kLargestPiece];
    for (uint64_t p = first; p < last; ++p) {
      const uint64_t begin = p * piece, n = numel - begin < piece ? numel - begin : piece;
      float* sum = direct ? static_cast<float*>(request.out) + begin : buffer;
      for (uint32_t i = 0; i < request.num_packets; ++i) {
        const DenseLayout& layout = layouts[i];
        const uint8_t* payload = request.packets[i].payload;
        const DecodeJob job{
            payload,       payload + layout.codes_size, sum, Dtype::float32, numel, begin, layout.block, layout.bits,
            request.weight};
        layout.kernels->decode[i > 0](job, begin / layout.block, divide_up(begin + n, layout.block));
      }
      if (again == nullptr) {
        if (!direct) store(buffer, at(request.out, request.out_dtype, begin), request.out_dtype, n);
        continue;
      }
      const EncodeJob job{buffer,         at(again->state, again->state_dtype, begin),
                          Dtype::float32, again->state_dtype,
                          again->payload, again->payload + into->codes_size,
                          numel,          begin,
                          into->block,    into->bits,
                          into->levels,   again->seed};
      const int64_t index = into->kernels->encode[static_cast<int>(again->operation)](
          job, begin / into->block, divide_up(begin + n, into->block));
      if (bad[part] < 0) bad[part] = index;
    }
  };
  const uint64_t each = piece * request.num_packets;
  parallel_for(divide_up(numel, piece), each < kGrain ? kGrain / each : 1,
               [&](uint32_t part, uint64_t first, uint64_t last) { body(part, first, last); });
  for (const int64_t index : bad) {
    if (index >= 0) return {index, 0};  // parts are in order
  }
  return {};
}

EncodeResult encode_sum(const EncodeRequest& again, const float* sum) {
  if (!is_sparse(again.codec.id)) {
    const DenseLayout layout = dense_layout(again.codec, again.dtype, again.numel);
    return {encode_dense(layout, again.operation, sum, Dtype::float32, again.state, again.state_dtype, again.numel,
                         again.seed, again.payload),
            0};
  }
  EncodeRequest request = again;
  request.x = sum;
  request.dtype = Dtype::float32;
  // The sum is float32 whatever the packet's dtype is.
  request.codec.values = stored_as(again.codec.values, again.dtype);
  return encode_sparse(request);
}

EncodeResult reduce_whole(const ReduceRequest& request) {
  const bool direct = request.encode_into == nullptr && request.out_dtype == Dtype::float32;
  thread_local Buffer<float> buffer;
  float* sum = direct ? static_cast<float*>(request.out) : buffer.at_least(request.numel);
  for (uint32_t i = 0; i < request.num_packets; ++i) {
    DecodeRequest packet = request.packets[i];
    packet.out = sum;
    packet.out_dtype = Dtype::float32;
    packet.add = i > 0;
    packet.weight = request.weight;
    if (is_sparse(packet.codec.id)) {
      decode_sparse(packet);
    } else {
      decode_dense(dense_layout(packet.codec, packet.dtype, packet.numel), packet.payload, sum, Dtype::float32,
                   packet.numel, packet.add, packet.weight);
    }
  }
  if (request.encode_into != nullptr) {
    const EncodeResult result = encode_sum(*request.encode_into, sum);
    buffer.trim(kKeptByReduction);
    return result;
  }
  if (!direct) {
    parallel_for(request.numel, kGrain, [&](uint32_t, uint64_t first, uint64_t last) {
      store(sum + first, at(request.out, request.out_dtype, first), request.out_dtype, last - first);
    });
    buffer.trim(kKeptByReduction);
  }
  return {};
}

}  // namespace

EncodeResult reduce(const ReduceRequest& request) {
  const EncodeRequest* again = request.encode_into;
  bool sparse = again != nullptr && is_sparse(again->codec.id);
  for (uint32_t i = 0; i < request.num_packets; ++i) sparse = sparse || is_sparse(request.packets[i].codec.id);
  if (sparse) return reduce_whole(request);
  std::vector<DenseLayout> layouts;
  layouts.reserve(request.num_packets + 1);
  for (uint32_t i = 0; i < request.num_packets; ++i) {
    layouts.push_back(dense_layout(request.packets[i].codec, request.packets[i].dtype, request.numel));
  }
  if (again != nullptr) layouts.push_back(dense_layout(again->codec, again->dtype, request.numel));
  const uint64_t piece = piece_of(layouts);
  return piece == 0 ? reduce_whole(request) : reduce_pieces(request, layouts, piece);
}

}  // namespace dance::cpu
