// The one intrinsic of the CPU backend against the plain product it stands for (csrc/cpu/noise.h): noise of
// Philox4x32-7 for 2048 elements, on AVX2. Prints both and whether their bits are equal:
//   g++ -std=c++17 -O3 -mavx2 -Icsrc benchmarks/philox.cpp -o /tmp/philox && /tmp/philox
#include <chrono>
#include <cstdio>
#include <vector>

#include "cpu/noise.h"

using namespace dance::cpu;

namespace {

Wide plain_multiply(Wide words, uint32_t factor) { return (words & 0xffffffffu) * factor; }

template <Wide (*multiply)(Wide, uint32_t)>
__attribute__((noinline)) void blocks(uint64_t seed, Wide* out, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    Wide c0 = kCounters + i * kWideLanes, c1 = c0 >> 32, c2 = {}, c3 = {};
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
      const Wide p0 = multiply(c0, 0xD2511F53u), p1 = multiply(c2, 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    out[2 * i] = (c0 & 0xffffffffu) | c1 << 32;
    out[2 * i + 1] = (c2 & 0xffffffffu) | c3 << 32;
  }
}

constexpr uint64_t kElements = 2048;
constexpr uint64_t kCount = kElements / 8 / kWideLanes;

double seconds(void (*run)(uint64_t, Wide*, uint64_t), Wide* out) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 16; ++i) run(42, out, kCount);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 16;
}

}  // namespace

int main() {
  std::vector<Wide> a(2 * kCount), b(2 * kCount);
  double best_plain = 1e9, best_used = 1e9;
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const double plain = seconds(blocks<plain_multiply>, a.data()), used = seconds(blocks<multiply>, b.data());
    best_plain = plain < best_plain ? plain : best_plain;
    best_used = used < best_used ? used : best_used;
  }
  const bool equal = std::memcmp(a.data(), b.data(), a.size() * sizeof(Wide)) == 0;
  std::printf("plain %.1f GB/s, used %.1f GB/s of float32, ratio %.2f, bits %s\n", kElements * 4 / best_plain / 1e9,
              kElements * 4 / best_used / 1e9, best_plain / best_used, equal ? "equal" : "DIFFER");
  return equal ? 0 : 1;
}
