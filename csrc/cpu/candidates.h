// Which elements a global selector sends: exact, whatever the number of threads.
#pragma once

#include <cstdlib>
#include <new>

#include "codec_api.h"

namespace dance::cpu {

// Memory that grows and is kept from call to call, as first touches of fresh pages cost more than the loops; what a
// large array needed is given back at the end of the call (trim).
template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Keeps what is there; false where memory is short.
  bool try_grow(uint64_t capacity) {
    if (capacity <= capacity_) return true;
    void* grown = std::realloc(data_, capacity * sizeof(T));
    if (grown == nullptr) return false;
    data_ = static_cast<T*>(grown);
    capacity_ = capacity;
    return true;
  }
  T* at_least(uint64_t capacity) {
    if (!try_grow(capacity)) throw std::bad_alloc();
    return data_;
  }
  void trim() {
    if (capacity_ * sizeof(T) <= kKept) return;
    std::free(data_);
    data_ = nullptr;
    capacity_ = 0;
  }
  T* data() const { return data_; }
  uint64_t capacity() const { return capacity_; }

 private:
  static constexpr uint64_t kKept = uint64_t{8} << 20;
  T* data_ = nullptr;
  uint64_t capacity_ = 0;
};

// Chosen elements in order of index. Both arrays live until the next selection of this thread. From key `finished` on
// the state is what it shall be, 0.
struct Selection {
  uint32_t* indices;
  float* values;
  uint64_t count;
  int64_t first_nonfinite;
  uint32_t finished;
};

// What a selection starts from. Feedback may be told that what is sent is v itself: then the pass sets states from key
// `sent` on to 0, where they are at hand (a second visit to 1 % of the elements costs a fifth of the time); where this
// turns out wrong it is undone. kInfinityBits: nothing is known.
struct Bounds {
  uint32_t lowest, sent;
};

// All elements with a key >= lowest if they are `least` to `most`, else the `least` or `most` largest. The state of
// every other finite element is v afterwards, where the operation is feedback.
Selection select_global(Operation operation, const SelectJob& job, Bounds bounds, uint64_t least, uint64_t most);

// The state of all elements, where the selection does not depend on them; returns the first non-finite index or -1.
int64_t pass_over(Operation operation, const SelectJob& job);

// Keys that most likely no fewer, and no more, than `count` elements reach: from a sample.
Bounds estimate_bounds(Operation operation, const SelectJob& job, uint64_t count);

// Gives back what a large array needed.
void trim_candidates();

}  // namespace dance::cpu
