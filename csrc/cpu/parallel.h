// A pool of threads that splits a range of blocks into contiguous parts.
#pragma once

#include <cstdint>

namespace dance::cpu {

// Runs body(context, part, first, last) for contiguous parts of [0, num_items), on at most get_num_threads() threads,
// the caller among them; part counts from 0 in order of the range. Results must not depend on where the range is cut. A
// body must not throw. Ranges of less than 2 * grain items stay on the caller's thread. When another thread of the
// process uses the pool, or the system gives no more threads, the caller works alone instead of waiting.
void parallel_for(uint64_t num_items, uint64_t grain, void (*body)(void*, uint32_t, uint64_t, uint64_t), void* context);

template <class Body>
void parallel_for(uint64_t num_items, uint64_t grain, Body&& body) {
  parallel_for(
      num_items, grain,
      [](void* context, uint32_t part, uint64_t first, uint64_t last) {
        (*static_cast<Body*>(context))(part, first, last);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Elements a thread takes at least. Measured on two cores with int8: waking a thread costs about 5 us, coding twice
// this many elements on one thread about 25.
constexpr uint64_t kGrain = 1 << 17;

constexpr uint32_t kMaxThreads = 256;

// Default: DANCE_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may run on, divided by LOCAL_WORLD_SIZE
// (how many processes torchrun started beside it). Throws ArgumentError where DANCE_NUM_THREADS is not a number.
uint32_t get_num_threads();
void set_num_threads(uint32_t num_threads);

}  // namespace dance::cpu
