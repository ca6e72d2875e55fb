// A pool of threads that splits a range of blocks into contiguous parts.
#include "cpu/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#include "base/error.h"
#include "cpu/float_mode.h"

namespace dance::cpu {
namespace {

// Longer than it takes to wake a thread of a virtual machine (20 to 50 us), and to come back from Python with the next
// array.
constexpr std::chrono::microseconds kSpin{50};

// The whole number that the text begins with, from 1 on, at most kMaxThreads; 0 where it begins with none.
uint32_t leading_number(const char* text, char** end) {
  const long value = std::strtol(text, end, 10);
  return value < 1 ? 0 : value > static_cast<long>(kMaxThreads) ? kMaxThreads : static_cast<uint32_t>(value);
}

// Of a variable that belongs to others, like OMP_NUM_THREADS=4,2: what is not a number is theirs to complain about.
uint32_t from_environment(const char* name) {
  const char* text = std::getenv(name);
  char* end = nullptr;
  return text == nullptr ? 0 : leading_number(text, &end);
}

uint32_t own_setting() {
  const char* text = std::getenv("DANCE_NUM_THREADS");
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (value < 1 || value > static_cast<long>(kMaxThreads) || *end != '\0') {
    throw ArgumentError("DANCE_NUM_THREADS=" + std::string(text) + ": expected a whole number from 1 to " +
                        std::to_string(kMaxThreads) + "; correct it, or unset it to choose by itself");
  }
  return static_cast<uint32_t>(value);
}

uint32_t usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // The set is too small for machines with more than 1,024 CPUs. Quotas of a container do not show in it.
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                                : static_cast<int>(std::thread::hardware_concurrency());
  return count < 1 ? 1 : count > static_cast<int>(kMaxThreads) ? kMaxThreads : static_cast<uint32_t>(count);
}

// The CPUs that are this process's own: those that a launcher started side by side share them.
uint32_t own_cpus() {
  const uint32_t neighbours = from_environment("LOCAL_WORLD_SIZE"), cpus = usable_cpus();
  return neighbours > 1 ? (cpus > neighbours ? cpus / neighbours : 1) : cpus;
}

uint32_t default_num_threads() {
  if (const uint32_t own = own_setting()) return own;
  if (const uint32_t openmp = from_environment("OMP_NUM_THREADS")) return openmp;
  return own_cpus();
}

std::atomic<uint32_t>& num_threads_setting() {
  static std::atomic<uint32_t> setting{default_num_threads()};
  return setting;
}

std::atomic<uint32_t> grain_shift{0};
std::atomic<uint64_t> begun_together{0};

struct Task {
  void (*body)(void*, uint32_t, uint64_t, uint64_t) = nullptr;
  void* context = nullptr;
  uint64_t num_items = 0;
  uint32_t num_parts = 0;
  uint32_t num_together = 0;  // so many threads take a part each before any runs one

  void run(uint32_t part) const {
    const uint64_t each = num_items / num_parts, extra = num_items % num_parts;
    const uint64_t first = part * each + (part < extra ? part : extra);
    body(context, part, first, first + each + (part < extra ? 1 : 0));
  }
};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Asks `done` again and again for about kSpin, and lets others on this CPU go first; false where it stayed false.
template <class Done>
bool spin_until(const Done& done) {
  using Clock = std::chrono::steady_clock;
  constexpr int kLooksPerTurn = 16;
  const Clock::time_point end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < kLooksPerTurn; ++i) {
      if (done()) return true;
      relax();
    }
    sched_yield();
  } while (Clock::now() < end);
  return done();
}

// A task has seats for as many workers as are useful. Who is seated takes parts until none is left; the caller, too.
// The caller waits for those who are seated, and never for one that has not come yet: it does the work itself instead.
//
// A worker without work looks out for more for kSpin before it sleeps, and a caller for the last part, as long as
// the process has a CPU for each: to wake a sleeper takes longer than to code a hundred thousand elements. Workers
// are detached and the pool is never destroyed: a process may end while they sleep. After fork() the child, which has
// no workers, gets a fresh pool.
class Pool {
 public:
  // Nothing is done, and false, where another thread uses the pool or the system gives no more threads.
  bool run(const Task& task, uint32_t helpers) {
    if (in_use_.test_and_set(std::memory_order_acquire)) return false;
    const bool enough = hire(helpers);
    if (enough) {
      task_ = task;
      ends_.store(task.num_parts, std::memory_order_relaxed);
      num_begun_.store(0, std::memory_order_relaxed);
      places_.store(helpers * kSeat);
      wake(helpers);
      take_parts(true);
      places_.fetch_and(kSeat - 1);
      wait_for_seated();
    }
    in_use_.clear(std::memory_order_release);
    return enough;
  }

 private:
  bool hire(uint32_t helpers) {
    spins_ = helpers < cpus_;
    try {
      for (; num_workers_ < helpers; ++num_workers_) std::thread(&Pool::work, this).detach();
    } catch (const std::exception&) {
      return false;
    }
    return true;
  }

  void wake(uint32_t helpers) {
    const uint32_t sleeping = num_sleeping_.load(), awake = num_workers_ - sleeping;
    if (sleeping == 0 || awake >= helpers) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }  // who has looked in vain is asleep now
    for (uint32_t n = std::min(sleeping, helpers - awake); n > 0; --n) seats_.notify_one();
  }

  // The caller from the front, workers from the back: so each finds what it had in its cache at the last call.
  void take_parts(bool from_front) {
    bool waits = task_.num_together > 0;
    uint32_t ends = ends_.load(std::memory_order_relaxed);
    for (;;) {
      const uint32_t front = ends >> 16, back = ends & 0xffff;
      if (front == back) return;
      const uint32_t rest = from_front ? ends + (1u << 16) : ends - 1;
      if (!ends_.compare_exchange_weak(ends, rest, std::memory_order_relaxed)) continue;
      if (waits) begin_together();
      waits = false;
      task_.run(from_front ? front : back - 1);
      ends = ends_.load(std::memory_order_relaxed);
    }
  }

  void begin_together() {
    begun_together.fetch_add(1, std::memory_order_relaxed);
    num_begun_.fetch_add(1);
    while (num_begun_.load() < task_.num_together) sched_yield();
  }

  void wait_for_seated() {
    const auto none = [this] { return places_.load() == 0; };
    if (none() || (spins_ && spin_until(none))) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    left_.wait(lock, none);
    caller_sleeps_.store(false);
  }

  bool sit() {
    uint32_t places = places_.load();
    while (places >= kSeat) {
      if (places_.compare_exchange_weak(places, places - kSeat + 1)) return true;
    }
    return false;
  }

  void leave() {
    if (places_.fetch_sub(1) != 1 || !caller_sleeps_.load()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    left_.notify_one();
  }

  void work() {
    const FloatMode mode;
    const auto has_seat = [this] { return places_.load() >= kSeat; };
    for (;;) {
      while (sit()) {
        take_parts(false);
        leave();
      }
      if (spins_ && spin_until(has_seat)) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      ++num_sleeping_;
      seats_.wait(lock, has_seat);
      --num_sleeping_;
    }
  }

  static constexpr uint32_t kSeat = 1 << 16;

  uint32_t cpus_ = own_cpus();
  std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
  Task task_;                        // stays as it is while anybody is seated
  std::atomic<uint32_t> places_{0};  // free seats * kSeat + workers that are seated
  std::atomic<uint32_t> ends_{0};    // of the parts that nobody has begun: the first * 2^16 + behind the last
  std::atomic<bool> spins_{false}, caller_sleeps_{false};
  std::atomic<uint32_t> num_sleeping_{0}, num_begun_{0};
  uint32_t num_workers_ = 0;
  std::mutex mutex_;
  std::condition_variable seats_, left_;
};

uint64_t finer(uint64_t grain) { return std::max<uint64_t>(1, grain >> grain_shift.load(std::memory_order_relaxed)); }

// Never destroyed, and made without allocating: who encodes may count on an error coming before anything is written.
Pool& pool() {
  alignas(Pool) static unsigned char storage[sizeof(Pool)];
  static Pool* const made = [] {
    pthread_atfork(nullptr, nullptr, [] { new (storage) Pool; });
    return new (storage) Pool;
  }();
  return *made;
}

}  // namespace

void parallel_for(uint64_t num_items, uint64_t grain, void (*body)(void*, uint32_t, uint64_t, uint64_t),
                  void* context) {
  if (num_items == 0) return;
  const uint32_t threads = num_threads_for(num_items, grain);
  if (threads > 1) {
    const uint64_t most = std::min<uint64_t>(num_items, kMaxParts), fine = num_items / finer(grain) * kPartsPerGrain;
    const uint32_t num_parts = static_cast<uint32_t>(std::min(most, fine));
    const uint32_t together = grain_shift.load(std::memory_order_relaxed) > 0 ? threads : 0;
    if (pool().run({body, context, num_items, num_parts, together}, threads - 1)) return;
  }
  body(context, 0, 0, num_items);
}

uint32_t num_threads_for(uint64_t num_items, uint64_t grain) {
  const uint64_t most = num_items / finer(grain), threads = get_num_threads();
  return most < 2 ? 1 : static_cast<uint32_t>(std::min(most, threads));
}

uint64_t num_shares(uint64_t numel) {
  const uint32_t threads = num_threads_for(numel, kGrain);
  return threads > 1 ? threads * kPartsPerGrain : 1;
}

uint32_t get_num_threads() { return num_threads_setting().load(std::memory_order_relaxed); }

void set_num_threads(uint32_t num_threads) {
  if (num_threads < 1 || num_threads > kMaxThreads) {
    throw ArgumentError("set_num_threads: expected 1 to " + std::to_string(kMaxThreads) + ", got " +
                        std::to_string(num_threads));
  }
  num_threads_setting().store(num_threads, std::memory_order_relaxed);
}

void set_grain_shift(uint32_t shift) { grain_shift.store(std::min(shift, 63u), std::memory_order_relaxed); }

uint64_t num_begun_together() { return begun_together.load(std::memory_order_relaxed); }

}  // namespace dance::cpu
