// Exact top-k on the CPU: one pass for a histogram of the keys' first digit, one to collect the candidates of the bins
// that can hold a chosen element, then a selection among these alone.
#include "cpu/select.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/error.h"
#include "codecs/topk.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace dance::cpu {
namespace {

constexpr uint64_t kGrain = 65536;

bool chosen_before(const Candidate& a, const Candidate& b) {
  const uint32_t ka = TopK::key(a.value), kb = TopK::key(b.value);
  return ka != kb ? ka > kb : a.index < b.index;
}

}  // namespace

int64_t select_largest(Operation operation, const SelectJob& job, uint64_t count, uint32_t* indices, float* values) {
  const Kernels& table = kernels();
  const int op = static_cast<int>(operation);

  // Both passes must cut the range at the same places, also when another thread calls set_num_threads in between.
  const uint64_t num_parts = std::clamp<uint64_t>(job.numel / kGrain, 1, get_num_threads());
  const auto for_each_part = [&](auto&& body) {
    parallel_for(num_parts, 1, [&](uint32_t, uint64_t first_part, uint64_t last_part) {
      for (uint64_t part = first_part; part < last_part; ++part) {
        const uint64_t each = job.numel / num_parts, extra = job.numel % num_parts;
        const uint64_t first = part * each + std::min(part, extra);
        body(part, first, first + each + (part < extra ? 1 : 0));
      }
    });
  };

  std::vector<uint64_t> histograms(num_parts * TopK::kBins, 0);
  for_each_part([&](uint64_t part, uint64_t first, uint64_t last) {
    table.histogram[op](job, first, last, histograms.data() + part * TopK::kBins);
  });
  // The lowest bin that holds a chosen element, and how many elements lie in it and above.
  uint64_t num_candidates = 0;
  uint32_t lowest_bin = TopK::kBins;
  while (lowest_bin > 0 && num_candidates < count) {
    --lowest_bin;
    for (std::size_t b = lowest_bin; b < histograms.size(); b += TopK::kBins) num_candidates += histograms[b];
  }
  const uint32_t lowest = lowest_bin << TopK::kBinShift;

  // Each part writes behind the candidates of the parts before it, so the whole list is in order of index.
  struct Part {
    uint64_t begin, size, found;
    int64_t bad;
  };
  std::vector<Part> parts(num_parts, Part{0, 0, 0, -1});
  std::unique_ptr<Candidate[]> candidates(new Candidate[num_candidates]);
  uint64_t begin = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    parts[p].begin = begin;
    for (uint32_t b = lowest_bin; b < TopK::kBins; ++b) parts[p].size += histograms[p * TopK::kBins + b];
    begin += parts[p].size;
  }
  for_each_part([&](uint64_t part, uint64_t first, uint64_t last) {
    Part& own = parts[part];
    own.found = table.collect[op](job, first, last, lowest, candidates.get() + own.begin, own.size, &own.bad);
  });
  int64_t bad = -1;
  for (const Part& part : parts) {
    if (part.found != part.size) {
      throw ArgumentError("topk: another thread changed the input while it was encoded; give each its own array");
    }
    if (part.bad >= 0 && (bad < 0 || part.bad < bad)) bad = part.bad;
  }

  Candidate* first = candidates.get();
  if (count < num_candidates) {
    std::nth_element(first, first + count, first + num_candidates, chosen_before);
    std::sort(first, first + count, [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
  }
  for (uint64_t i = 0; i < count; ++i) {
    const Candidate& chosen = first[i];
    const bool finite = is_finite(chosen.value);
    indices[i] = chosen.index;
    values[i] = finite ? chosen.value : 0.0f;
    if (!finite || operation == Operation::encode) continue;
    float& state = job.state[chosen.index];
    state = operation == Operation::feedback ? 0.0f : saturate(state + chosen.value);
  }
  return bad;
}

}  // namespace dance::cpu
