// Packets decoded, summed and stored or encoded again, on the CPU.
#pragma once

#include "codec_api.h"

namespace dance::cpu {

// Arguments and payloads are checked, numel > 0. Packets of dense codecs pass through a piece of cache; where a codec
// is sparse, or blocks fit into no common piece, through a float32 buffer of numel elements.
EncodeResult reduce(const ReduceRequest& request);

}  // namespace dance::cpu
