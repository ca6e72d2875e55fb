// What the F16C instructions of csrc/cpu/elements.h bring over the integer arithmetic of base/half.h: arrays of float16
// read and written, and the codec fp16, in cache, with the same result for every float16 and for floats around each
// rounding. One chunk in 16 has values that are too large. Compile and run it twice, the second time with
// -DDANCE_PLAIN_LOOPS:
//   g++ -std=c++17 -O3 -ffp-contract=off -fno-trapping-math -Icsrc -mavx2 -mf16c benchmarks/halves.cpp -o /tmp/halves
// For AVX-512: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c -mprefer-vector-width=512
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "codecs/list.h"
#include "cpu/decode.h"
#include "cpu/encode.h"

using namespace dance;
using namespace dance::cpu;

namespace {

double now_s() {
  std::timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

uint64_t digest(const void* data, uint64_t size) {
  uint64_t hash = 14695981039346656037u;
  for (uint64_t i = 0; i < size; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  return hash;
}

constexpr uint32_t kNumel = 65536;

template <class Run>
void measure(const char* name, const void* result, uint64_t size, Run&& run) {
  std::vector<double> seconds;
  for (int repetition = 0; repetition < 400; ++repetition) {
    const double start = now_s();
    run();
    seconds.push_back(now_s() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf("%-12s %6.2f GB/s of float32, digest %016llx\n", name, 4e-9 * kNumel / seconds[seconds.size() / 4],
              static_cast<unsigned long long>(digest(result, size)));
}

}  // namespace

int main() {
  // Chunk by chunk, as the drivers do.
  std::vector<uint16_t> halves(kNumel), written(kNumel), codes(kNumel);
  for (uint32_t i = 0; i < kNumel; ++i) halves[i] = static_cast<uint16_t>((i & 0x7c00) == 0x7c00 ? i - 0x400 : i);
  std::vector<float> floats(kNumel), read(kNumel), residual(kNumel);
  for (uint32_t i = 0; i < kNumel; ++i) {
    // A float16, half way to the next one, or one unit of a float beside that; too large and too small ones as well.
    const uint32_t between[] = {0, 0x1000, 0x0fff, 0x1001};
    const bool any = i % 32 == 0 && i / kChunk % 16 == 0;
    const uint32_t size = any ? (i * 0x9E3779B1u) >> 1 : float_bits(half_to_float(halves[i] & 0x7fff));
    floats[i] = bits_float(((size + between[i / 7 % 4]) & 0x7fffffff) | (i & 1) << 31);
    if (!is_finite(floats[i])) floats[i] = 1e-7f;
  }
  const auto chunks = [&](auto&& body) {
    for (uint32_t i = 0; i < kNumel; i += kChunk) body(i);
  };
  measure("read", read.data(), 4 * kNumel,
          [&] { chunks([&](uint32_t i) { load_as<Dtype::float16>(halves.data(), i, read.data() + i, kChunk); }); });
  measure("write", written.data(), 2 * kNumel,
          [&] { chunks([&](uint32_t i) { store_as<Dtype::float16>(floats.data() + i, written.data(), i, kChunk); }); });
  const EncodeJob job{floats.data(),
                      residual.data(),
                      Dtype::float32,
                      Dtype::float32,
                      reinterpret_cast<uint8_t*>(codes.data()),
                      nullptr,
                      kNumel,
                      0,
                      kChunk,
                      16,
                      0,
                      0};
  measure("encode", codes.data(), 2 * kNumel, [&] { encode_blocks<Fp16, Operation::encode>(job, 0, kNumel / kChunk); });
  measure("feedback", residual.data(), 4 * kNumel, [&] {
    std::fill(residual.begin(), residual.end(), 0.0f);
    encode_blocks<Fp16, Operation::feedback>(job, 0, kNumel / kChunk);
  });
  const DecodeJob back{
      reinterpret_cast<uint8_t*>(codes.data()), nullptr, read.data(), Dtype::float32, kNumel, 0, kChunk, 16, 0.5f};
  measure("decode", read.data(), 4 * kNumel, [&] { decode_blocks<Fp16, false>(back, 0, kNumel / kChunk); });
  return 0;
}
