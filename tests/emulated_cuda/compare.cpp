// Runs the CUDA backend on the emulated device beside the CPU driver and compares payloads, states and decoded values
// bit for bit, over awkward sizes and values. Prints the number of comparisons; fails at the first difference.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "codec_api.h"
#include "codecs/list.h"
#include "kernels.h"

#include <cuda_runtime.h>

namespace {

using dance::CodecSpec;
using dance::Operation;
using dance::Place;

constexpr Place kCpu{};
constexpr Place kEmulated{0, 0};
// Bytes around every array that nobody may write.
constexpr std::size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0xa5;
constexpr int64_t kNone = INT64_MAX;

uint64_t num_comparisons = 0;

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 32);
  }
  float uniform() { return static_cast<float>(next()) * 0x1p-31f - 1.0f; }
};

// An array between two guards. `offset` moves its start by some elements, off the alignment of the allocation.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t size, std::size_t offset = 0)
      : begin_(kGuard + offset * sizeof(T)),
        num_bytes_(size * sizeof(T)),
        bytes_(begin_ + num_bytes_ + kGuard, kGuardByte) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + begin_); }
  std::size_t num_bytes() const { return num_bytes_; }
  bool intact() const {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < begin_ || i >= begin_ + num_bytes_) && bytes_[i] != kGuardByte) return false;
    }
    return true;
  }
  bool same(Guarded& other) { return std::memcmp(data(), other.data(), num_bytes_) == 0; }

 private:
  std::size_t begin_, num_bytes_;
  std::vector<uint8_t> bytes_;
};

const char* const kKinds[] = {"normal", "equal",    "few values", "zeros",   "tiny",
                              "huge",   "some bad", "all bad",    "any bits"};
constexpr int kNumKinds = 9;

float draw(int kind, Random& random, uint64_t i) {
  const float inf = std::numeric_limits<float>::infinity();
  switch (kind) {
    case 0:
      return random.uniform() + random.uniform() + random.uniform();
    case 1:
      return i % 2 ? 1.5f : -1.5f;
    case 2:
      return static_cast<float>(static_cast<int>(random.next() % 5) - 2) * 0.25f;
    case 3:
      return i % 3 ? 0.0f : -0.0f;
    case 4:
      return random.uniform() * 0x1p-126f;
    case 5:
      return random.uniform() < 0.0f ? 3.4028235e38f : random.uniform() * 3.4e38f;
    case 6:
      return random.next() % 701 == 0 ? (random.next() % 2 ? -inf : std::nanf("")) : random.uniform();
    case 7:
      return i % 2 ? inf : std::nanf("");
    default:
      return dance::bits_float(random.next());
  }
}

std::string describe(const CodecSpec& codec, uint64_t numel, int kind, int operation) {
  return "codec " + std::to_string(codec.id) + " block " + std::to_string(codec.block) + " count " +
         std::to_string(codec.count) + " numel " + std::to_string(numel) + " values '" + kKinds[kind] + "' operation " +
         std::to_string(operation);
}

void expect(bool condition, const char* what, const std::string& where) {
  ++num_comparisons;
  if (condition) return;
  std::printf("differs: %s: %s\n", what, where.c_str());
  std::exit(1);
}

void compare_decode(const CodecSpec& codec, Guarded<uint8_t>& payload, uint64_t numel, const std::string& where) {
  for (const bool add : {false, true}) {
    const float weight = add ? -0.37f : 1.0f;
    Guarded<float> cpu(numel, 1), gpu(numel, 1);
    for (uint64_t i = 0; i < numel; ++i) cpu.data()[i] = gpu.data()[i] = static_cast<float>(i % 17) - 8.0f;
    dance::decode(codec, payload.data(), payload.num_bytes(), cpu.data(), numel, add, weight, kCpu);
    dance::decode(codec, payload.data(), payload.num_bytes(), gpu.data(), numel, add, weight, kEmulated);
    expect(cpu.same(gpu) && gpu.intact(), add ? "decode, adding" : "decode", where);
  }
}

void compare(const CodecSpec& codec, uint64_t numel, int kind, Random& random) {
  for (int op = 0; op < 3; ++op) {
    const Operation operation = static_cast<Operation>(op);
    const std::string where = describe(codec, numel, kind, op);
    const uint64_t size = dance::payload_nbytes(codec, numel);
    // Alignment to 4 bytes only, as a slice of a tensor has it.
    Guarded<float> x(numel, 1), cpu_state(numel, 3), gpu_state(numel, 3);
    Guarded<uint8_t> cpu_payload(size, 4), gpu_payload(size, 4), scratch(dance::cuda_scratch_nbytes(codec, numel));
    for (uint64_t i = 0; i < numel; ++i) {
      x.data()[i] = draw(kind, random, i);
      // 'some bad' has a finite state, so that a block is bad by x alone; the others mix.
      cpu_state.data()[i] = gpu_state.data()[i] = kind == 6 ? random.uniform() : draw(kind, random, i + 1);
    }
    float* states[2] = {op == 0 ? nullptr : cpu_state.data(), op == 0 ? nullptr : gpu_state.data()};
    const int64_t bad = dance::encode(operation, codec, x.data(), states[0], cpu_payload.data(), size, numel, 0, kCpu,
                                      nullptr, nullptr);
    int64_t lowest = kNone;
    dance::encode(operation, codec, x.data(), states[1], gpu_payload.data(), size, numel, 0, kEmulated, &lowest,
                  scratch.data());
    expect(cpu_payload.same(gpu_payload) && gpu_payload.intact() && scratch.intact(), "payload", where);
    expect(cpu_state.same(gpu_state) && gpu_state.intact(), "state", where);
    expect((lowest == kNone ? -1 : lowest) == bad, "first non-finite index", where);
    if (op == 0) compare_decode(codec, cpu_payload, numel, where);
  }
}

void compare_mix(uint64_t numel, Random& random) {
  Guarded<float> cpu(numel, 1), gpu(numel, 1), sum(numel, 2), reference(numel, 3);
  for (uint64_t i = 0; i < numel; ++i) {
    cpu.data()[i] = gpu.data()[i] = random.uniform();
    sum.data()[i] = random.uniform();
    reference.data()[i] = random.uniform();
  }
  dance::mix(cpu.data(), sum.data(), reference.data(), 0.3f, numel, kCpu);
  dance::mix(gpu.data(), sum.data(), reference.data(), 0.3f, numel, kEmulated);
  expect(cpu.same(gpu) && gpu.intact(), "mix", std::to_string(numel) + " elements");
}

// Indices from a peer that were never validated: nothing is written outside, all else arrives.
void check_wild_indices() {
  const CodecSpec codec{dance::TopK::id, 0, 3};
  uint32_t payload[6] = {1, 4000000000u, 5, 0, 0, 0};
  const float values[3] = {2.0f, 3.0f, 4.0f};
  std::memcpy(payload + 3, values, sizeof values);
  Guarded<float> out(5);
  dance::decode(codec, reinterpret_cast<uint8_t*>(payload), sizeof payload, out.data(), 5, false, 1.0f, kEmulated);
  expect(out.intact() && out.data()[1] == 2.0f && out.data()[4] == 0.0f, "wild indices", "topk decode");
}

void check_missing_device() {
  float x[1] = {1.0f};
  bool refused = false;
  try {
    dance::mix(x, x, x, 1.0f, 1, Place{1, 0});
  } catch (const dance::UnavailableError& error) {
    refused = std::string(error.what()).rfind("no CUDA device: ", 0) == 0;
  }
  expect(refused, "UnavailableError", "mix on device 1 of 1");
}

}  // namespace

int main() {
  Random random{1};
  for (int kind = 0; kind < kNumKinds; ++kind) {
    for (const uint64_t numel : {1, 33, 255, 256, 257, 6007}) {
      dance::for_each(dance::DenseCodecs{}, [&](auto c) {
        using Codec = decltype(c);
        if (!dance::has_scales<Codec>) return compare({Codec::id, 0, 0}, numel, kind, random);
        for (const uint32_t block : {32u, 33u, 100u, 256u, 1024u, 1500u, 4096u}) {
          compare({Codec::id, block, 0}, numel, kind, random);
        }
      });
    }
    for (const uint64_t numel : {1, 33, 256, 6007}) {
      for (const uint64_t count : {uint64_t{1}, numel / 2, numel}) {
        if (count > 0) compare({dance::TopK::id, 0, count}, numel, kind, random);
      }
    }
    compare({dance::TopK::id, 0, 700}, 70001, kind, random);
  }
  for (const uint64_t numel : {1, 255, 256, 70001}) compare_mix(numel, random);
  check_wild_indices();
  check_missing_device();
  std::printf("%llu comparisons, no difference\n", static_cast<unsigned long long>(num_comparisons));
  return 0;
}
