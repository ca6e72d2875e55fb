// Elements on their way between arrays and the float32 math: conversion of 16-bit types and noise, block by block in
// L1. Included by kernels.cpp alone, once for each CPU target.
#pragma once

#include "base/dtype.h"
#include "base/random.h"
#include "codecs/dense.h"

namespace dance::cpu {
namespace {

template <Dtype dtype>
__attribute__((noinline)) void load_as(const void* array, uint64_t at, float* __restrict out, uint32_t n) {
  const auto* __restrict from = static_cast<const typename Element<dtype>::Type*>(array) + at;
  for (uint32_t i = 0; i < n; ++i) out[i] = Element<dtype>::load(from[i]);
}

template <Dtype dtype>
__attribute__((noinline)) void store_as(const float* __restrict values, void* array, uint64_t at, uint32_t n) {
  auto* __restrict to = static_cast<typename Element<dtype>::Type*>(array) + at;
  for (uint32_t i = 0; i < n; ++i) to[i] = Element<dtype>::store(values[i]);
}

// n elements from `at` on as float32: where they lie, or converted into buffer.
inline const float* load_elements(const void* array, Dtype dtype, uint64_t at, float* buffer, uint32_t n) {
  if (dtype == Dtype::float32) return static_cast<const float*>(array) + at;
  if (dtype == Dtype::float16) {
    load_as<Dtype::float16>(array, at, buffer, n);
  } else {
    load_as<Dtype::bfloat16>(array, at, buffer, n);
  }
  return buffer;
}

// The counterpart: nothing to do for float32, whose elements were written in place.
inline void store_elements(const float* buffer, void* array, Dtype dtype, uint64_t at, uint32_t n) {
  if (dtype == Dtype::float16) store_as<Dtype::float16>(buffer, array, at, n);
  if (dtype == Dtype::bfloat16) store_as<Dtype::bfloat16>(buffer, array, at, n);
}

// Blocks whose loops have trip counts known at compile time.
template <class Codec>
constexpr uint32_t fixed_block = !has_scales<Codec>       ? kChunk
                                 : Codec::kFixedBlock > 0 ? Codec::kFixedBlock
                                                          : kDefaultBlock;

// Elements that are taken at a time where the block is fixed_block: enough blocks to hide the latency of one behind the
// work on others, few enough for L1.
constexpr uint32_t kGroup = 2048;

// How an array is cut.
struct Blocks {
  uint64_t numel;
  uint32_t block;

  uint64_t num_full() const { return numel / block; }
  uint32_t size(uint64_t b) const {
    const uint64_t left = numel - b * block;
    return left < block ? static_cast<uint32_t>(left) : block;
  }
  // How many of the full blocks from b on, before `last`, make a group.
  uint64_t group(uint64_t b, uint64_t last, uint64_t most) const {
    const uint64_t left = (last < num_full() ? last : num_full()) - b;
    return left < most ? left : most;
  }
};

}  // namespace
}  // namespace dance::cpu
