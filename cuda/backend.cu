// The entry points of the CUDA backend (kernels.h): they pick kernels and compose them.
#include "check.h"
#include "dense.h"
#include "kernels.h"
#include "mix.h"
#include "sparse.h"

namespace dance::cuda {
namespace {

cudaStream_t stream_of(Place place) { return reinterpret_cast<cudaStream_t>(place.stream); }

DenseLayout layout_of(const CodecSpec& codec, Dtype dtype, uint64_t numel) {
  return dense_layout(codec.id, codec.mode, codec.block, codec.levels, dtype, numel);
}

// Encodes x of `dtype`; the request's own x and dtype are those of the packet.
void encode_array(const EncodeRequest& request, const void* x, Dtype dtype, cudaStream_t stream) {
  if (is_sparse(request.codec.id)) return encode_sparse(request, x, dtype, stream);
  EncodeJob job{};
  job.x = x;
  job.state = request.state;
  job.dtype = dtype;
  job.state_dtype = request.state_dtype;
  job.numel = request.numel;
  job.seed = request.seed;
  encode_dense(layout_of(request.codec, request.dtype, request.numel), request.operation, job, request.payload, {},
               false, request.nonfinite, stream);
}

// One after the other into float32 `sum`; runs of packets of one dense codec in one pass.
void sum_packets(const ReduceRequest& request, float* sum, void* scratch, cudaStream_t stream) {
  for (uint32_t p = 0; p < request.num_packets;) {
    DecodeRequest packet = request.packets[p];
    const bool add = p > 0;
    if (is_sparse(packet.codec.id)) {
      packet.out = sum;
      packet.out_dtype = Dtype::float32;
      packet.add = add;
      packet.weight = request.weight;
      packet.scratch = scratch;
      decode_sparse(packet, stream);
      ++p;
      continue;
    }
    const DenseLayout layout = layout_of(packet.codec, packet.dtype, request.numel);
    Packets run{{}, layout.codes_nbytes, 0, request.weight};
    for (; p < request.num_packets && run.count < kMaxPackets; ++p) {
      const DecodeRequest& next = request.packets[p];
      if (is_sparse(next.codec.id) || !same_kernels(layout, layout_of(next.codec, next.dtype, request.numel))) break;
      run.payload[run.count++] = next.payload;
    }
    decode_dense(layout, run, request.numel, sum, Dtype::float32, add, stream);
  }
}

// Whether all packets are of one dense codec and fit into one launch; then *packets is that launch's.
bool fuse(const ReduceRequest& request, DenseLayout* layout, Packets* packets) {
  if (request.num_packets > kMaxPackets) return false;
  for (uint32_t p = 0; p < request.num_packets; ++p) {
    const DecodeRequest& packet = request.packets[p];
    if (is_sparse(packet.codec.id)) return false;
    const DenseLayout own = layout_of(packet.codec, packet.dtype, request.numel);
    if (p == 0) *layout = own;
    if (!same_kernels(*layout, own)) return false;
    packets->payload[p] = packet.payload;
  }
  packets->codes_nbytes = layout->codes_nbytes;
  packets->count = request.num_packets;
  packets->weight = request.weight;
  return true;
}

bool encodes_alike(const EncodeRequest& request, const DenseLayout& layout) {
  if (is_sparse(request.codec.id) || request.operation == Operation::difference) return false;
  const DenseLayout own = layout_of(request.codec, request.dtype, request.numel);
  return same_kernels(layout, own) && layout.levels == own.levels;
}

uint64_t sum_nbytes(uint64_t numel) { return divide_up(numel, 4) * 16; }

}  // namespace

bool built() { return true; }

bool available() { return count_devices() > 0; }

std::vector<int> architectures() {
  std::vector<int> list = {__CUDA_ARCH_LIST__};  // nvcc's own: 750,800,900
  for (int& architecture : list) architecture /= 10;
  return list;
}

void encode(const EncodeRequest& request) {
  if (request.numel == 0) return;
  const DeviceGuard guard(request.place.device);
  encode_array(request, request.x, request.dtype, stream_of(request.place));
}

void decode(const DecodeRequest& request) {
  if (request.numel == 0) return;
  const DeviceGuard guard(request.place.device);
  const cudaStream_t stream = stream_of(request.place);
  if (is_sparse(request.codec.id)) return decode_sparse(request, stream);
  const DenseLayout layout = layout_of(request.codec, request.dtype, request.numel);
  const Packets one{{request.payload}, layout.codes_nbytes, 1, request.weight};
  decode_dense(layout, one, request.numel, request.out, request.out_dtype, request.add, stream);
}

void reduce(const ReduceRequest& request) {
  if (request.numel == 0) return;
  const DeviceGuard guard(request.place.device);
  const cudaStream_t stream = stream_of(request.place);
  DenseLayout layout{};
  Packets packets{};
  const EncodeRequest* into = request.encode_into;
  if (fuse(request, &layout, &packets)) {
    if (into == nullptr) {
      return decode_dense(layout, packets, request.numel, request.out, request.out_dtype, false, stream);
    }
    if (encodes_alike(*into, layout)) {
      EncodeJob job{};
      job.state = into->state;
      job.state_dtype = into->state_dtype;
      job.numel = request.numel;
      job.seed = into->seed;
      return reduce_dense(layout, into->operation, job, packets, into->payload, into->nonfinite, stream);
    }
  }
  const bool in_place = into == nullptr && request.out_dtype == Dtype::float32;
  auto* sum = static_cast<float*>(in_place ? request.out : request.scratch);
  void* rest = static_cast<uint8_t*>(request.scratch) + (in_place ? 0 : sum_nbytes(request.numel));
  sum_packets(request, sum, rest, stream);
  if (into != nullptr) {
    EncodeRequest again = *into;
    again.scratch = rest;
    encode_array(again, sum, Dtype::float32, stream);
  } else if (!in_place) {
    // Rounded once, at the end: the sum is read as a packet of `none`.
    const DenseLayout plain = dense_layout(None::id, 0, 0, 0, Dtype::float32, request.numel);
    const Packets one{{reinterpret_cast<const uint8_t*>(sum)}, plain.codes_nbytes, 1, 1.0f};
    decode_dense(plain, one, request.numel, request.out, request.out_dtype, false, stream);
  }
}

void mix(void* x, const void* neighbour_sum, const void* reference, Dtype dtype, float step_size, uint64_t numel,
         Place place) {
  if (numel == 0) return;
  const DeviceGuard guard(place.device);
  mix_arrays(x, neighbour_sum, reference, dtype, step_size, numel, stream_of(place));
}

uint64_t scratch_nbytes(const CodecSpec& codec, Dtype, uint64_t numel) {
  return is_sparse(codec.id) && numel > 0 ? sparse_scratch_nbytes(codec, numel) : 0;
}

uint64_t reduce_scratch_nbytes(const ReduceRequest& request) {
  if (request.numel == 0) return 0;
  DenseLayout layout{};
  Packets packets{};
  const EncodeRequest* into = request.encode_into;
  if (fuse(request, &layout, &packets) && (into == nullptr || encodes_alike(*into, layout))) return 0;
  uint64_t rest = into == nullptr ? 0 : scratch_nbytes(into->codec, into->dtype, request.numel);
  for (uint32_t p = 0; p < request.num_packets; ++p) {
    const DecodeRequest& packet = request.packets[p];
    const uint64_t own = scratch_nbytes(packet.codec, packet.dtype, request.numel);
    rest = own > rest ? own : rest;
  }
  return sum_nbytes(request.numel) + rest;
}

}  // namespace dance::cuda
