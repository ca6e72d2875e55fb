// A pool of threads that splits a range of blocks into contiguous parts.
#pragma once

#include <cstdint>

namespace dance::cpu {

// Runs body(context, part, first, last) for contiguous parts of [0, num_items), on at most get_num_threads() threads,
// the caller among them; part < kMaxParts counts from 0 in order of the range. Results must not depend on where the
// range is cut. A body must not throw. When another thread of the process uses the pool, or the system gives no more
// threads, the caller works alone instead of waiting.
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

// How many threads that is: one for each `grain` (at least 1) items, at least one.
uint32_t num_threads_for(uint64_t num_items, uint64_t grain);

// Elements a thread takes at least. Measured on two virtual cores: twice as many take 50 us or more on one thread,
// which is what it costs to wake another that has slept; of half as many, 2 threads were up to 1.8 times as fast in a
// row of calls, but 0.8 times after 3 ms of rest.
constexpr uint64_t kGrain = 1 << 18;

// Values of a sparse packet that a thread takes at least.
constexpr uint64_t kValueGrain = 1 << 14;

// Parts a thread's share is cut into, so that who comes late takes fewer.
constexpr uint64_t kPartsPerGrain = 4;

// Into how many parts a task over numel elements is best cut that keeps something for each part: grains of
// kPartsPerGrain of them.
uint64_t num_shares(uint64_t numel);

constexpr uint32_t kMaxThreads = 256, kMaxParts = 256;

// Default: DANCE_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may run on, divided by LOCAL_WORLD_SIZE
// (how many processes torchrun started beside it). Throws ArgumentError where DANCE_NUM_THREADS is not a number.
uint32_t get_num_threads();
void set_num_threads(uint32_t num_threads);

// For tests, which would otherwise need large arrays to meet threads: grains are 2^shift times smaller from now on, and
// where shift > 0 each thread of a task has a part before any runs one. 0 is what was measured.
void set_grain_shift(uint32_t shift);
// How often a thread has begun so, callers included.
uint64_t num_begun_together();

}  // namespace dance::cpu
