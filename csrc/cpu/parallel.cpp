// A pool of threads that splits a range of blocks into contiguous parts.
#include "cpu/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "cpu/float_mode.h"

namespace dance::cpu {
namespace {

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

uint32_t default_num_threads() {
  if (const uint32_t own = own_setting()) return own;
  if (const uint32_t openmp = from_environment("OMP_NUM_THREADS")) return openmp;
  // Processes that a launcher started side by side share the CPUs.
  const uint32_t neighbours = from_environment("LOCAL_WORLD_SIZE"), cpus = usable_cpus();
  return neighbours > 1 ? (cpus > neighbours ? cpus / neighbours : 1) : cpus;
}

std::atomic<uint32_t>& num_threads_setting() {
  static std::atomic<uint32_t> setting{default_num_threads()};
  return setting;
}

struct Task {
  void (*body)(void*, uint32_t, uint64_t, uint64_t) = nullptr;
  void* context = nullptr;
  uint64_t num_items = 0;
  uint32_t num_parts = 0;

  void run(uint32_t part) const {
    const uint64_t each = num_items / num_parts, extra = num_items % num_parts;
    const uint64_t first = part * each + (part < extra ? part : extra);
    body(context, part, first, first + each + (part < extra ? 1 : 0));
  }
};

// Workers sleep until a task has parts that nobody has begun. Just as many are woken as are useful, and the caller does
// what no worker has come to take. Workers are detached and the pool is never destroyed: a process may end while they
// sleep. After fork() the child, which has no workers, gets a fresh pool.
class Pool {
 public:
  // False, and nothing done, where the system gives no more threads.
  bool run(const Task& task) {
    std::unique_lock<std::mutex> lock(mutex_);
    try {
      for (; num_workers_ + 1 < task.num_parts; ++num_workers_) std::thread(&Pool::work, this).detach();
    } catch (const std::system_error&) {
      return false;
    }
    task_ = task;
    next_part_ = 0;
    unfinished_ = task.num_parts;
    lock.unlock();
    for (uint32_t part = 1; part < task.num_parts; ++part) wake_.notify_one();
    lock.lock();
    take_parts(lock);
    done_.wait(lock, [this] { return unfinished_ == 0; });
    return true;
  }

  std::mutex in_use;

 private:
  void take_parts(std::unique_lock<std::mutex>& lock) {
    while (next_part_ < task_.num_parts) {
      const uint32_t part = next_part_++;
      const Task task = task_;
      lock.unlock();
      task.run(part);
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  void work() {
    const FloatMode mode;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return next_part_ < task_.num_parts; });
      take_parts(lock);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Task task_;
  uint32_t next_part_ = 0;
  uint32_t unfinished_ = 0;
  uint32_t num_workers_ = 0;
};

Pool* current_pool = nullptr;

Pool& pool() {
  static const bool once = [] {
    current_pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { current_pool = new Pool; });
    return true;
  }();
  (void)once;
  return *current_pool;
}

}  // namespace

void parallel_for(uint64_t num_items, uint64_t grain, void (*body)(void*, uint32_t, uint64_t, uint64_t),
                  void* context) {
  if (num_items == 0) return;
  const uint64_t most = num_items / (grain == 0 ? 1 : grain);
  const uint32_t threads = get_num_threads();
  const uint32_t parts = most < threads ? static_cast<uint32_t>(most < 1 ? 1 : most) : threads;
  const Task task{body, context, num_items, parts};
  if (parts > 1) {
    Pool& shared = pool();
    std::unique_lock<std::mutex> lock(shared.in_use, std::try_to_lock);
    if (lock.owns_lock() && shared.run(task)) return;
  }
  for (uint32_t part = 0; part < parts; ++part) task.run(part);
}

uint32_t get_num_threads() { return num_threads_setting().load(std::memory_order_relaxed); }

void set_num_threads(uint32_t num_threads) {
  if (num_threads < 1 || num_threads > kMaxThreads) {
    throw ArgumentError("set_num_threads: expected 1 to " + std::to_string(kMaxThreads) + ", got " +
                        std::to_string(num_threads));
  }
  num_threads_setting().store(num_threads, std::memory_order_relaxed);
}

}  // namespace dance::cpu
