// Which elements a global selector sends: exact, whatever the number of threads.
#pragma once

#include "codec_api.h"

namespace dance::cpu {

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
// every other finite element is v afterwards, where the operation is feedback. Throws std::bad_alloc before that.
Selection select_global(Operation operation, const SelectJob& job, Bounds bounds, uint64_t least, uint64_t most);

// The state of all elements, where the selection does not depend on them; returns the first non-finite index or -1.
int64_t pass_over(Operation operation, const SelectJob& job);

// Keys that most likely no fewer, and no more, than `count` elements reach: from a sample.
Bounds estimate_bounds(Operation operation, const SelectJob& job, uint64_t count);

// Gives back what a large array needed.
void trim_candidates();

}  // namespace dance::cpu
