// Memory that grows and is kept from call to call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace dance::cpu {

// What a thread keeps from call to call, in bytes: of a selector, of the parts of a selection, and of a reduction.
constexpr uint64_t kKeptBySelector = uint64_t{16} << 20, kKeptByParts = uint64_t{16} << 20;
constexpr uint64_t kKeptByReduction = uint64_t{8} << 20;

// First touches of fresh pages cost more than the loops; what a large array needed is given back at the end of the call
// (trim). Pages that are never touched cost nothing.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Room for so many; what was there is lost. Throws std::bad_alloc.
  T* at_least(uint64_t capacity) {
    if (capacity > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = static_cast<T*>(std::malloc(capacity * sizeof(T)));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = capacity;
    }
    return data_;
  }
  void trim(uint64_t most_nbytes) {
    if (capacity_ * sizeof(T) <= most_nbytes) return;
    std::free(data_);
    data_ = nullptr;
    capacity_ = 0;
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  uint64_t capacity_ = 0;
};

}  // namespace dance::cpu
