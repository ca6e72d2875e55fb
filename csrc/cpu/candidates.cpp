// Which elements a global selector sends. A sample gives a magnitude that a few more than the wanted elements reach;
// one pass over the array collects these candidates, and the exact choice is made among them. The sample decides how
// long that takes, never the result.
#include "cpu/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/buffer.h"
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
  Buffer<float> aside;
  uint64_t first, last;  // the elements it is of
  uint64_t room;         // for candidates
  uint64_t found, settled, num_nonfinite, num_aside;
  uint32_t lowest, sent;
  int64_t first_nonfinite;
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

// Cuts the array, and makes room for whatever the passes may find: from here on no memory is asked for, as they write
// the state. `write`: the first pass does, so elements that are not finite may have to be set aside.
void make_room(const SelectJob& job, uint64_t most, bool write) {
  Parts& parts = parts_of_thread();
  const uint64_t numel = job.numel;
  parts.used = num_shares(numel);
  while (parts.all.size() < parts.used) parts.all.push_back(std::make_unique<Part>());
  for (uint64_t p = 0; p < parts.used; ++p) {
    // Whole chunks, and no 64-bit overflow: numel < 2^32.
    const auto cut = [&](uint64_t at) {
      return at == parts.used ? numel : numel * at / parts.used / kSelectChunk * kSelectChunk;
    };
    Part& part = *parts.all[p];
    part.first = cut(p);
    part.last = cut(p + 1);
    part.room = std::min(part.last - part.first, 2 * most + 2 * kSelectChunk) + kSelectChunk + kSelectSlack;
    const uint64_t gathered = p == 0 ? std::min(numel, parts.used * most) + kSelectSlack : 0;
    const uint64_t room = std::max(part.room, gathered);
    part.indices.at_least(room);
    part.values.at_least(room);
    part.scratch.at_least(room);
    if (!write) continue;
    part.nonfinite.at_least(part.last - part.first);
    part.aside.at_least(part.last - part.first);
  }
}

// Notes which of the new candidates are not finite, and drops these unless zeros are candidates, too.
void settle(const SelectKernels& table, const Request& request, Part& part) {
  uint32_t* indices = part.indices.data() + part.settled;
  float* values = part.values.data() + part.settled;
  const uint64_t n = part.found - part.settled;
  part.settled = part.found;
  uint32_t largest = 0;
  for (uint64_t i = 0; i < n; ++i) largest = std::max(largest, magnitude(values[i]));
  if (largest < kInfinityBits) return;
  for (uint64_t i = 0; i < n; ++i) {
    if (is_finite(values[i])) continue;
    if (part.first_nonfinite < 0) part.first_nonfinite = indices[i];
    if (!request.write) break;
    part.nonfinite.data()[part.num_nonfinite++] = indices[i];
  }
  if (part.lowest > 0) {
    part.settled = part.found = part.found - n + table.keep(indices, values, n, part.lowest - 1, 0);
  }
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
void prune(const SelectKernels& table, const SelectJob& job, uint64_t most, Part& part) {
  undo_sent(job, part);
  uint64_t ties;
  const uint32_t key = table.nth_key(part.values.data(), part.found, most, 0, part.lowest, part.scratch.data(), &ties);
  part.found = table.keep(part.indices.data(), part.values.data(), part.found, key, ties);
  part.settled = part.found;
  part.lowest = key + 1;
}

void collect_part(const SelectKernels& table, const Request& request, Part& part) {
  part.found = part.settled = part.num_nonfinite = 0;
  part.lowest = request.bounds.lowest;
  part.sent = request.bounds.sent;
  part.first_nonfinite = -1;
  const auto collect = table.collect[static_cast<int>(request.operation)];
  const Cuts cuts(request.operation, request.job);
  for (uint64_t i = part.first, end; i < part.last; i = end) {
    end = std::min(cuts.after(i), part.last);
    // Only where the room is not for all: then what has not been pruned is more than twice the most.
    if (part.found + (end - i) + kSelectSlack > part.room) {
      settle(table, request, part);
      if (part.found > request.most) prune(table, request.job, request.most, part);
    }
    part.found += collect(request.job, i, end, part.lowest, request.write, part.sent, part.indices.data() + part.found,
                          part.values.data() + part.found);
  }
  settle(table, request, part);
  // So that `gather` has room; one part alone keeps all it has.
  if (part.last - part.first < request.job.numel && part.found > request.most)
    prune(table, request.job, request.most, part);
}

// Fills the parts of this thread; returns the number of candidates in all. make_room was called, for as many or more.
uint64_t collect_all(const Request& request) {
  const SelectKernels& table = select_kernels();
  Parts& parts = parts_of_thread();
  parallel_for(parts.used, kPartsPerGrain, [&](uint32_t, uint64_t first, uint64_t last) {
    for (uint64_t p = first; p < last; ++p) collect_part(table, request, *parts.all[p]);
  });
  uint64_t total = 0;
  for (uint64_t p = 0; p < parts.used; ++p) total += parts.all[p]->found;
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
  auto* state = static_cast<float*>(job.state);
  Parts& parts = parts_of_thread();
  for (uint64_t p = 0; p < parts.used; ++p) {
    Part& part = *parts.all[p];
    part.num_aside = part.num_nonfinite;
    for (uint64_t i = 0; i < part.num_aside; ++i) {
      float& kept = state[part.nonfinite.data()[i]];
      part.aside.data()[i] = kept;
      kept = std::numeric_limits<float>::quiet_NaN();
    }
  }
  const SelectJob again{job.state, nullptr, Dtype::float32, Dtype::float32, job.numel};
  const uint64_t total = collect_all({Operation::encode, again, {0, kInfinityBits}, count, false});
  for (uint64_t p = 0; p < parts.used; ++p) {
    const Part& part = *parts.all[p];
    for (uint64_t i = 0; i < part.num_aside; ++i) state[part.nonfinite.data()[i]] = part.aside.data()[i];
  }
  return total;
}

// The candidates of all parts, one after the other, in the buffers of the first.
Selection gather(uint64_t total) {
  Parts& parts = parts_of_thread();
  Part& head = *parts.all[0];
  uint32_t* indices = head.indices.data();
  float* values = head.values.data();
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
  Parts& parts = parts_of_thread();
  if (parts.all.empty()) parts.all.push_back(std::make_unique<Part>());
  float* scratch = parts.all[0]->scratch.at_least(n);
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
  int64_t bad[kMaxParts];
  std::fill_n(bad, kMaxParts, int64_t{-1});
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
  make_room(job, most, write);
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
  Parts& parts = parts_of_thread();
  // Half of it for candidates, and half for what was not finite, which is seldom touched but asked for.
  const uint64_t half = kKeptByParts / 2 / (parts.all.empty() ? 1 : parts.all.size());
  for (auto& part : parts.all) {
    part->indices.trim(half / 3);
    part->values.trim(half / 3);
    part->scratch.trim(half / 3);
    part->nonfinite.trim(half / 2);
    part->aside.trim(half / 2);
  }
}

}  // namespace dance::cpu
