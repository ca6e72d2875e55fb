// What the intrinsics of csrc/cpu/hits.h bring over the plain loop beside them: collecting one element in 80 from an
// array in cache, with the same result. Compile and run it twice, the second time with -DDANCE_PLAIN_LOOPS:
//   g++ -std=c++17 -O3 -ffp-contract=off -fno-trapping-math -Icsrc -DDANCE_TARGET=avx2 -mavx2 benchmarks/hits.cpp
//   g++ ... -DDANCE_TARGET=avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 ...
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "base/random.h"
#include "cpu/select_kernels.cpp"

namespace {

double now_s() {
  std::timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

int main() {
  using namespace dance;
  const cpu::SelectKernels& table = cpu::DANCE_TARGET_FUNCTION(DANCE_TARGET)();
  for (const uint64_t numel : {uint64_t{1} << 16, uint64_t{1} << 20}) {
    std::vector<float> x(numel), values(numel + cpu::kSelectSlack);
    std::vector<uint32_t> indices(numel + cpu::kSelectSlack);
    for (uint64_t i = 0; i < numel; ++i) x[i] = static_cast<float>(random_word(1, i)) * 0x1p-32f;
    const SelectJob job{x.data(), nullptr, Dtype::float32, Dtype::float32, numel};
    std::vector<double> seconds;
    uint64_t found = 0, sum = 0;
    for (int repetition = 0; repetition < 200; ++repetition) {
      const double start = now_s();
      found = table.collect[0](job, 0, numel, float_bits(0.9875f), false, kInfinityBits, indices.data(), values.data());
      seconds.push_back(now_s() - start);
    }
    std::sort(seconds.begin(), seconds.end());
    for (uint64_t i = 0; i < found; ++i) sum = sum * 31 + indices[i] + float_bits(values[i]);
    std::printf("%s: %8llu elements, %6.2f GB/s, %llu found, digest %016llx\n", table.target,
                static_cast<unsigned long long>(numel), 4e-9 * static_cast<double>(numel) / seconds[seconds.size() / 4],
                static_cast<unsigned long long>(found), static_cast<unsigned long long>(sum));
  }
}
