// Which elements a global selector sends. A sample gives a magnitude that a few more than the wanted elements reach;
// one pass over the array collects these candidates, and the exact choice is made among them. The sample decides how
// long that takes, never the result.
#include "cpu/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/one_element.h"
#include "cpu/parallel.h"

namespace dance::cpu {
namespace {

// The candidates of one part of the array, in order of index.
struct Part {
  Buffer<uint32_t> indices;
  Buffer<float> values, scratch;
  Buffer<uint32_t> nonfinite;
  uint64_t found, settled, num_nonfinite;
  uint32_t lowest, sent;
  int64_t first_nonfinite;
  bool is_short_of_memory;
};

struct Parts {
  std::vector<std::unique_ptr<Part>> all;
  uint64_t used = 0;
};

Parts& parts_of_thread() {
  thread_local Parts parts;
  return parts;
}

struct Request {
  Operation operation;
  SelectJob job;
  Bounds bounds;
  uint64_t most;
  bool write;  // then elements that are not finite are listed
};

// Where chunks end, so that all but the first start on a cache line of the array that is written, or read: NumPy's
// arrays seldom do, and vectors that straddle two lines make feedback a third slower.
struct Cuts {
  uint64_t shift;

  Cuts(Operation operation, const SelectJob& job) {
    const bool encodes = operation == Operation::encode;
    const uint64_t size = dtype_nbytes(encodes ? job.dtype : job.state_dtype);
    shift = reinterpret_cast<uintptr_t>(encodes ? job.x : job.state) % 64 / size;
  }
  // The end of the chunk that i lies in.
  uint64_t after(uint64_t i) const { return (i + shift) / kSelectChunk * kSelectChunk + kSelectChunk - shift; }
};

// Notes which of the new candidates are not finite, and drops these unless zeros are candidates, too.
bool settle(const SelectKernels& table, const Request& request, Part& part) {
  uint32_t* indices = part.indices.data() + part.settled;
  float* values = part.values.data() + part.settled;
  const uint64_t n = part.found - part.settled;
  part.settled = part.found;
  uint32_t largest = 0;
  for (uint64_t i = 0; i < n; ++i) largest = std::max(largest, magnitude(values[i]));
  if (largest < kInfinityBits) return true;
  for (uint64_t i = 0; i < n; ++i) {
    if (is_finite(values[i])) continue;
    if (part.first_nonfinite < 0) part.first_nonfinite = indices[i];
    if (!request.write) break;
    if (part.num_nonfinite == part.nonfinite.capacity() && !part.nonfinite.try_grow(2 * part.num_nonfinite + 64)) {
      return false;
    }
    part.nonfinite.data()[part.num_nonfinite++] = indices[i];
  }
  if (part.lowest > 0) {
    part.settled = part.found = part.found - n + table.keep(indices, values, n, part.lowest - 1, 0);
  }
  return true;
}

// Gives states that were set to 0 the v that they are left with if the element is not sent.
void undo_sent(const SelectJob& job, Part& part) {
  for (uint64_t i = 0; part.sent < kInfinityBits && i < part.found; ++i) {
    const uint32_t size = magnitude(part.values.data()[i]);
    if (size >= part.sent && size < kInfinityBits) {
      static_cast<float*>(job.state)[part.indices.data()[i]] = part.values.data()[i];
    }
  }
  part.sent = kInfinityBits;
}

// Keeps the `most` largest. What follows has higher indices, so it must be larger than the smallest of them.
bool prune(const SelectKernels& table, const SelectJob& job, uint64_t most, Part& part) {
  undo_sent(job, part);
  if (!part.scratch.try_grow(part.found)) return false;
  uint64_t ties;
  const uint32_t key = table.nth_key(part.values.data(), part.found, most, 0, part.lowest, part.scratch.data(), &ties);
  part.found = table.keep(part.indices.data(), part.values.data(), part.found, key, ties);
  part.settled = part.found;
  part.lowest = key + 1;
  return true;
}

bool collect_part(const SelectKernels& table, const Request& request, uint64_t first, uint64_t last, Part& part) {
  part.found = part.settled = part.num_nonfinite = 0;
  part.lowest = request.bounds.lowest;
  part.sent = request.bounds.sent;
  part.first_nonfinite = -1;
  const auto collect = table.collect[static_cast<int>(request.operation)];
  const Cuts cuts(request.operation, request.job);
  for (uint64_t i = first, end; i < last; i = end) {
    end = std::min(cuts.after(i), last);
    uint64_t needed = part.found + kSelectChunk + kSelectSlack;
    if (needed > part.values.capacity()) {
      if (!settle(table, request, part)) return false;
      if (part.found / 2 > request.most && !prune(table, request.job, request.most, part)) return false;
      needed = part.found + kSelectChunk + kSelectSlack;
      if (needed > part.values.capacity()) {
        const uint64_t capacity = std::max(needed, std::min(2 * needed, 2 * request.most + 2 * kSelectChunk));
        if (!part.indices.try_grow(capacity) || !part.values.try_grow(capacity)) return false;
      }
    }
    part.found += collect(request.job, i, end, part.lowest, request.write, part.sent, part.indices.data() + part.found,
                          part.values.data() + part.found);
  }
  return settle(table, request, part);
}

// Fills the parts of this thread; returns the number of candidates in all.
uint64_t collect_all(const Request& request) {
  const SelectKernels& table = select_kernels();
  Parts& parts = parts_of_thread();
  const uint64_t numel = request.job.numel;
  parts.used = std::clamp<uint64_t>(numel / kGrain, 1, get_num_threads());
  while (parts.all.size() < parts.used) parts.all.push_back(std::make_unique<Part>());
  parallel_for(parts.used, 1, [&](uint32_t, uint64_t first_part, uint64_t last_part) {
    for (uint64_t p = first_part; p < last_part; ++p) {
      // Whole chunks, and no 64-bit overflow: numel < 2^32, used <= kMaxThreads.
      const auto cut = [&](uint64_t at) {
        return at == parts.used ? numel : numel * at / parts.used / kSelectChunk * kSelectChunk;
      };
      Part& part = *parts.all[p];
      part.is_short_of_memory = !collect_part(table, request, cut(p), cut(p + 1), part);
    }
  });
  uint64_t total = 0;
  for (uint64_t p = 0; p < parts.used; ++p) {
    if (parts.all[p]->is_short_of_memory) throw std::bad_alloc();
    total += parts.all[p]->found;
  }
  return total;
}

int64_t first_nonfinite() {
  const Parts& parts = parts_of_thread();
  for (uint64_t p = 0; p < parts.used; ++p) {
    if (parts.all[p]->first_nonfinite >= 0) return parts.all[p]->first_nonfinite;
  }
  return -1;
}

void undo_all(const SelectJob& job) {
  const Parts& parts = parts_of_thread();
  for (uint64_t p = 0; p < parts.used; ++p) undo_sent(job, *parts.all[p]);
}

uint32_t finished() {
  const Parts& parts = parts_of_thread();
  uint32_t sent = 0;
  for (uint64_t p = 0; p < parts.used; ++p) sent = std::max(sent, parts.all[p]->sent);
  return sent;
}

// Collects the `count` largest and perhaps more, after a first pass has found too few and has replaced the state by v:
// now the state is the input. What was not finite kept its state, which is set aside meanwhile.
uint64_t collect_from_state(const SelectJob& job, uint64_t count) {
  struct Aside {
    float* state;
    std::vector<std::pair<uint32_t, float>> kept;
    ~Aside() {
      for (const auto& [index, value] : kept) state[index] = value;
    }
  } aside{static_cast<float*>(job.state), {}};
  const Parts& parts = parts_of_thread();
  for (uint64_t p = 0; p < parts.used; ++p) {
    const Part& part = *parts.all[p];
    for (uint64_t i = 0; i < part.num_nonfinite; ++i) {
      const uint32_t index = part.nonfinite.data()[i];
      aside.kept.emplace_back(index, aside.state[index]);
      aside.state[index] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  const SelectJob again{job.state, nullptr, Dtype::float32, Dtype::float32, job.numel};
  return collect_all({Operation::encode, again, {0, kInfinityBits}, count, false});
}

// The candidates of all parts, one after the other, in the buffers of the first.
Selection gather(uint64_t total) {
  Parts& parts = parts_of_thread();
  Part& head = *parts.all[0];
  uint32_t* indices = head.indices.at_least(total + kSelectSlack);
  float* values = head.values.at_least(total + kSelectSlack);
  uint64_t n = head.found;
  for (uint64_t p = 1; p < parts.used; ++p) {
    const Part& part = *parts.all[p];
    std::copy_n(part.indices.data(), part.found, indices + n);
    std::copy_n(part.values.data(), part.found, values + n);
    n += part.found;
  }
  return {indices, values, total, -1, kInfinityBits};
}

uint32_t nth_key(const float* values, uint64_t n, uint64_t rank, uint64_t slack, uint32_t lowest, uint64_t* ties) {
  if (parts_of_thread().all.empty()) parts_of_thread().all.push_back(std::make_unique<Part>());
  float* scratch = parts_of_thread().all[0]->scratch.at_least(n);
  return select_kernels().nth_key(values, n, rank, slack, lowest, scratch, ties);
}

}  // namespace

Bounds estimate_bounds(Operation operation, const SelectJob& job, uint64_t count) {
  constexpr uint64_t kMostSampled = 16384;
  uint64_t size = 256;
  while (size < kMostSampled && size * size < 16 * job.numel) size *= 2;
  if (job.numel < 4 * size) return {0, kInfinityBits};
  alignas(64) float sample[kMostSampled];
  const uint64_t step = job.numel / size;
  for (uint64_t i = 0; i < size; ++i) {
    // One of each stratum, so that no regular pattern of the array meets one of the sample.
    const uint64_t jitter = (static_cast<uint32_t>(i * 0x9E3779B1u) * step) >> 32;
    sample[i] = element(operation, job, i * step + jitter);
  }
  const double expected = static_cast<double>(count) * static_cast<double>(size) / static_cast<double>(job.numel);
  const double margin = 4 * std::sqrt(expected) + 4;
  const uint64_t rank = static_cast<uint64_t>(expected + margin);
  Bounds bounds{0, kInfinityBits};
  uint64_t ties;
  if (rank < size) bounds.lowest = nth_key(sample, size, rank, rank / 32, 0, &ties);
  if (expected > margin + 1) {
    const uint64_t sure = static_cast<uint64_t>(expected - margin);
    bounds.sent = nth_key(sample, size, sure, 0, 0, &ties);
  }
  return bounds;
}

int64_t pass_over(Operation operation, const SelectJob& job) {
  const auto collect = select_kernels().collect[static_cast<int>(operation)];
  int64_t bad[kMaxThreads];
  std::fill_n(bad, kMaxThreads, int64_t{-1});
  const Cuts cuts(operation, job);
  parallel_for(job.numel, kGrain, [&](uint32_t part, uint64_t first, uint64_t last) {
    uint32_t indices[kSelectChunk + kSelectSlack];
    float values[kSelectChunk + kSelectSlack];
    for (uint64_t i = first, end; i < last; i = end) {
      end = std::min(cuts.after(i), last);
      const uint64_t found = collect(job, i, end, kInfinityBits, true, kInfinityBits, indices, values);
      if (found > 0 && bad[part] < 0) bad[part] = indices[0];
    }
  });
  for (const int64_t index : bad) {
    if (index >= 0) return index;
  }
  return -1;
}

Selection select_global(Operation operation, const SelectJob& job, Bounds bounds, uint64_t least, uint64_t most) {
  // A state of 16 bits holds v rounded, from which no second attempt could start: it is written when all is decided.
  const bool write = operation == Operation::feedback && job.state_dtype == Dtype::float32;
  // Only candidates can be undone.
  bounds.sent = write ? std::max(bounds.sent, bounds.lowest) : kInfinityBits;
  uint64_t total = collect_all({operation, job, bounds, most, write});
  const int64_t bad = first_nonfinite();
  if (total < least) {
    undo_all(job);
    total = write ? collect_from_state(job, least) : collect_all({operation, job, {0, kInfinityBits}, least, false});
    most = least;
    bounds = {0, kInfinityBits};
  }
  Selection chosen = gather(total);
  if (total > most) {
    uint64_t ties;
    const uint32_t key = nth_key(chosen.values, total, most, 0, bounds.lowest, &ties);
    if (key >= bounds.sent) undo_all(job);
    chosen.count = select_kernels().keep(chosen.indices, chosen.values, total, key, ties);
  }
  chosen.finished = finished();
  if (operation == Operation::feedback && !write) pass_over(operation, job);
  chosen.first_nonfinite = bad;
  return chosen;
}

void trim_candidates() {
  for (auto& part : parts_of_thread().all) {
    part->indices.trim();
    part->values.trim();
    part->scratch.trim();
    part->nonfinite.trim();
  }
}

}  // namespace dance::cpu
