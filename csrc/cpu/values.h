// The values of a sparse packet: the payload of a dense codec, read a piece at a time.
#pragma once

#include "cpu/dense.h"

namespace dance::cpu {

// Reads values in increasing order; one for each thread.
class ValueReader {
 public:
  ValueReader(const DenseLayout& layout, const uint8_t* payload, uint64_t count, float weight)
      : layout_(layout), payload_(payload), count_(count), weight_(weight) {}

  // fl(weight * decoded) of value i.
  float operator()(uint64_t i) {
    if (i >= end_) refill(i);
    return piece_[i - begin_];
  }

 private:
  void refill(uint64_t i) {
    const uint32_t block = layout_.block;
    const uint64_t first = i / block, last = divide_up(count_, block);
    const uint64_t end = first + kMaxBlock / block < last ? first + kMaxBlock / block : last;
    begin_ = first * block;
    end_ = end * block < count_ ? end * block : count_;
    const DecodeJob job{
        payload_, payload_ + layout_.codes_size, piece_, Dtype::float32, count_, begin_, block, layout_.bits, weight_};
    layout_.kernels->decode[0](job, first, end);
  }

  DenseLayout layout_;
  const uint8_t* payload_;
  uint64_t count_, begin_ = 0, end_ = 0;
  float weight_;
  alignas(64) float piece_[kMaxBlock];
};

}  // namespace dance::cpu
