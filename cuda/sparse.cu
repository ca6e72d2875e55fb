// Sparse codecs on the GPU: a selector, the code of its indices, and a dense codec for the values, which are gathered
// in scratch memory. Where only the device knows how many are sent, launches are sized for the most there can be.
#include "sparse.h"

#include <cmath>

#include "check.h"
#include "indices.h"
#include "select.h"

namespace dance::cuda {
namespace {

// Values that a packet of this spec can have at most.
uint64_t most_values(const CodecSpec& codec, uint64_t numel) {
  if (codec.id == Threshold::id) return numel;
  if (codec.id != Dgc::id) return total_count(numel, codec.scope, codec.count);
  return uint64_t{2} * codec.count < numel ? uint64_t{2} * codec.count : numel;
}

bool is_global(const CodecSpec& codec) { return codec.id != RandK::id && codec.scope == 0; }

uint32_t sample_size(uint64_t numel) { return numel < kMaxSample ? static_cast<uint32_t>(numel) : kMaxSample; }

Cut cut_of(const CodecSpec& codec, uint64_t numel, uint64_t seed) {
  const uint64_t k = codec.count, size = sample_size(numel);
  if (codec.id == Threshold::id) return {0, numel, false, codec.argument - 1, 0, 0};
  if (codec.id == Dgc::id) {
    const uint64_t rank = divide_up(3 * k * size, 2 * numel);
    return {k, most_values(codec, numel), true, 0, seed, static_cast<uint32_t>(rank < size ? rank : size)};
  }
  // Six standard deviations below where the k-th key is expected among those of the sample. The choice of this rank,
  // and of the sample's seed, changes no bit.
  const double mean = static_cast<double>(k) * static_cast<double>(size) / static_cast<double>(numel);
  const auto rank = size == numel ? k : static_cast<uint64_t>(mean + 6.0 * std::sqrt(mean) + 8.0);
  return {k, k, true, 0, 0, static_cast<uint32_t>(rank < size ? rank : size)};
}

uint64_t expected_above(const CodecSpec& codec, uint64_t numel) {
  const Cut cut = cut_of(codec, numel, 0);
  return cut.sample_rank == 0 ? numel / 8 : cut.sample_rank * numel / sample_size(numel);
}

// The head of the scratch memory; the selectors' own or that of Elias and Fano follows.
struct Head {
  Chosen chosen;
  void* rest;
};
uint64_t align16(uint64_t num_bytes) { return divide_up(num_bytes, 16) * 16; }
Head head_of(void* scratch, uint64_t most) {
  auto* base = static_cast<uint8_t*>(scratch);
  auto* values = base + align16(4 * most);
  return {{reinterpret_cast<uint32_t*>(base), reinterpret_cast<float*>(values), most}, values + align16(4 * most)};
}

}  // namespace

uint64_t sparse_scratch_nbytes(const CodecSpec& codec, uint64_t numel) {
  const uint64_t most = most_values(codec, numel);
  uint64_t rest = 0;
  if (is_global(codec)) {
    const uint64_t select = select_scratch_nbytes(numel, expected_above(codec, numel));
    const uint64_t read = elias_fano_scratch_nbytes(numel, most);
    // A packet with fewer values has fewer words, but for one where low_bits falls.
    rest = select > read + 16 ? select : read + 16;
  }
  return 2 * align16(4 * most) + rest;
}

void encode_sparse(const EncodeRequest& request, const void* x, Dtype dtype, cudaStream_t stream) {
  const CodecSpec& codec = request.codec;
  const uint64_t numel = request.numel, most = most_values(codec, numel);
  const SelectJob job{x, request.state, dtype, request.state_dtype, numel};
  const Head head = head_of(request.scratch, most);
  const Chosen& chosen = head.chosen;
  Values values;
  uint8_t* payload = request.payload;
  if (codec.id == RandK::id) {
    draw_indices(request.seed, numel, codec.scope, codec.count, most, chosen.indices, stream);
    gather(request.operation, job, chosen, request.nonfinite, stream);
  } else if (codec.scope != 0) {
    select_blocks(request.operation, job, codec.scope, codec.count, chosen, reinterpret_cast<uint16_t*>(payload),
                  request.nonfinite, stream);
  } else {
    const uint32_t* count =
        select_global(request.operation, job, cut_of(codec, numel, request.seed), chosen, request.nonfinite,
                      request.count, head.rest, expected_above(codec, numel), stream);
    if (codec.id != TopK::id) values = {count, numel};
    write_elias_fano(chosen.indices, numel, most, values, payload, stream);
  }
  if (values.count == nullptr) payload += sent_indices_nbytes(codec, numel, most);
  const DenseLayout layout = dense_layout(codec.values, codec.mode, codec.block, codec.levels, request.dtype, most);
  EncodeJob send{};
  send.x = chosen.values;
  send.numel = most;
  send.seed = request.seed;
  encode_dense(layout, Operation::encode, send, payload, values, true, nullptr, stream);
  if (request.operation == Operation::encode) return;
  const Sink sink = request.operation == Operation::feedback ? Sink::feedback : Sink::difference;
  scatter_dense(layout, payload, most, 1.0f, values,
                {chosen.indices, numel, sink, request.state, request.state_dtype, chosen.values}, stream);
}

void decode_sparse(const DecodeRequest& request, cudaStream_t stream) {
  const CodecSpec& codec = request.codec;
  const uint64_t numel = request.numel, total = total_count(numel, codec.scope, codec.count);
  if (!request.add) {
    check(cudaMemsetAsync(request.out, 0, numel * dtype_nbytes(request.out_dtype), stream), "cudaMemsetAsync");
  }
  if (total == 0) return;
  const Head head = head_of(request.scratch, total);
  uint32_t* indices = head.chosen.indices;
  if (codec.id == RandK::id) {
    draw_indices(request.seed, numel, codec.scope, codec.count, total, indices, stream);
  } else if (codec.scope != 0) {
    read_block_indices(reinterpret_cast<const uint16_t*>(request.payload), codec.scope, codec.count, total, indices,
                       stream);
  } else {
    read_elias_fano(request.payload, numel, total, indices, head.rest, stream);
  }
  const DenseLayout layout = dense_layout(codec.values, codec.mode, codec.block, codec.levels, request.dtype, total);
  scatter_dense(layout, request.payload + sent_indices_nbytes(codec, numel, total), total, request.weight, {},
                {indices, numel, request.add ? Sink::add : Sink::write, request.out, request.out_dtype, nullptr},
                stream);
}

}  // namespace dance::cuda
