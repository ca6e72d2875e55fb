// The thread pool under ThreadSanitizer: several callers at once, the number of threads changing meanwhile, nested use,
// fork, and every codec with results equal to those of one thread. Prints what it did; exits with 1 on a difference.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "../fuzz/input.h"
#include "cpu/parallel.h"

using namespace dance;
using namespace dance::fuzz;

namespace {

constexpr uint32_t kCallers = 4;

// Every item of a range is done exactly once.
void check_range(uint64_t num_items, uint64_t grain) {
  std::vector<uint8_t> done(num_items, 0);
  cpu::parallel_for(num_items, grain, [&](uint32_t, uint64_t first, uint64_t last) {
    for (uint64_t i = first; i < last; ++i) ++done[i];
  });
  for (const uint8_t times : done) FUZZ_CHECK(times == 1);
}

// With small grains every thread of a task has a part of it.
void check_together() {
  cpu::set_grain_shift(10);
  for (const uint32_t num_threads : {1u, 2u, 7u}) {
    cpu::set_num_threads(num_threads);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    cpu::parallel_for(7, 1 << 10, [&](uint32_t, uint64_t, uint64_t) {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    FUZZ_CHECK(seen.size() == num_threads);
  }
  cpu::set_grain_shift(0);
}

void check_nested() {
  std::vector<std::atomic<uint32_t>> done(64 * 64);
  cpu::parallel_for(64, 1, [&](uint32_t, uint64_t first, uint64_t last) {
    for (uint64_t i = first; i < last; ++i) {
      cpu::parallel_for(64, 1, [&](uint32_t, uint64_t begin, uint64_t end) {
        for (uint64_t j = begin; j < end; ++j) ++done[i * 64 + j];
      });
    }
  });
  for (const auto& times : done) FUZZ_CHECK(times == 1);
}

template <class F>
void from_several_callers(F&& body) {
  std::vector<std::thread> callers;
  for (uint32_t caller = 0; caller < kCallers; ++caller) callers.emplace_back([&, caller] { body(caller); });
  for (std::thread& caller : callers) caller.join();
}

// While `body` runs, another thread changes the setting all the time.
template <class F>
void while_threads_change(F&& body) {
  std::atomic<bool> over{false};
  std::thread changer([&] {
    for (uint32_t n = 0; !over; ++n) {
      cpu::set_num_threads(1 + n % 7);
      std::this_thread::yield();
    }
  });
  body();
  over = true;
  changer.join();
}

// The child of a fork has no workers; it gets its own, or works alone, but it does not wait for those of its parent.
void check_fork() {
  const pid_t child = fork();
  if (child == 0) {
    check_range(100'000, 1'000);
    _exit(0);
  }
  int status = 0;
  FUZZ_CHECK(child > 0 && waitpid(child, &status, 0) == child);
  FUZZ_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

CodecSpec codec_of(const Kind& kind, uint64_t numel, uint16_t scope) {
  CodecSpec spec;
  spec.id = kind.id;
  spec.mode = kind.mode;
  if (kind.scales) spec.block = kind.fixed_block != 0 ? kind.fixed_block : 256;
  if (kind.levels) spec.levels = 15;
  if (kind.sparse) {
    spec.scope = kind.fixed_size ? scope : 0;
    spec.count = static_cast<uint32_t>((spec.scope != 0 ? spec.scope : numel) / 50);
    if (!kind.fixed_size) spec.argument = float_bits(spec.id == Dgc::id ? 0.02f : 30000.0f);
  }
  return spec;
}

struct Results {
  Encoded packet;
  Array state, decoded, reduced;
  bool operator==(const Results& other) const {
    return packet.payload == other.packet.payload && state.bytes == other.state.bytes &&
           decoded.bytes == other.decoded.bytes && reduced.bytes == other.reduced.bytes;
  }
};

Results run(Operation operation, const CodecSpec& codec, const Array& x) {
  Array state = x;
  Encoded packet = encode_array(operation, codec, x, operation == Operation::encode ? nullptr : &state, 42);
  Array decoded(Dtype::float32, x.numel), reduced(Dtype::float32, x.numel);
  const DecodeRequest request = decode_request(packet, decoded, false, 0.5f);
  decode(request);
  const DecodeRequest packets[] = {request, request};
  ReduceRequest both;
  both.packets = packets;
  both.num_packets = 2;
  both.numel = x.numel;
  both.out = reduced.bytes.data();
  reduce(both);
  mix(decoded.bytes.data(), reduced.bytes.data(), x.bytes.data(), Dtype::float32, 0.3f, x.numel, Place{});
  return {std::move(packet), std::move(state), std::move(decoded), std::move(reduced)};
}

Array values(uint64_t numel) {
  Array x(Dtype::float32, numel);
  uint32_t bits = 1;
  for (uint64_t i = 0; i < numel; ++i) {
    bits = bits * 1664525u + 1013904223u;
    x.set(i, static_cast<float>(static_cast<int32_t>(bits) >> 16));
  }
  return x;
}

void check_codec(Operation operation, const CodecSpec& codec, const Array& x) {
  cpu::set_num_threads(1);
  const Results expected = run(operation, codec, x);
  while_threads_change(
      [&] { from_several_callers([&](uint32_t) { FUZZ_CHECK(run(operation, codec, x) == expected); }); });
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t numel = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 600'000;
  for (int round = 0; round < 20; ++round) {
    while_threads_change([] {
      from_several_callers([](uint32_t caller) {
        for (uint64_t n : {0, 1, 7, 1000, 99991}) check_range(n + caller, 1 + caller);
        check_nested();
      });
    });
    cpu::set_num_threads(4);
    check_range(100'000, 100);
    check_fork();
    check_together();
  }
  // Forks in the middle of the others' work.
  while_threads_change([] {
    from_several_callers([](uint32_t caller) {
      for (int round = 0; round < 20; ++round) {
        if (caller == 0) {
          check_fork();
        } else {
          check_range(50'000, 100);
        }
      }
    });
  });
  const Array x = values(numel);
  int codecs = 0;
  for (const Kind& kind : all_kinds()) {
    for (const uint16_t scope : {0, 4096}) {
      if (scope != 0 && !(kind.sparse && kind.fixed_size)) continue;
      for (int operation = 0; operation < kNumOperations; ++operation) {
        check_codec(static_cast<Operation>(operation), codec_of(kind, numel, scope), x);
        ++codecs;
      }
    }
  }
  std::printf("%d codecs and operations, %u callers, no difference\n", codecs, kCallers);
  return 0;
}
