// The sum of packets of one dense codec, encoded again with it, in one pass: what one rank of an all-reduce does.
#include "check.h"
#include "encode.h"

namespace dance::cuda {

void reduce_dense(const DenseLayout& layout, Operation operation, EncodeJob job, const Packets& packets,
                  uint8_t* payload, int64_t* nonfinite, cudaStream_t stream) {
  const EncodeLaunch what{job, {}, false, nonfinite};
  if (operation == Operation::encode) {
    launch_encode<Operation::encode>(layout, what, packets, payload, stream);
  } else {
    launch_encode<Operation::feedback>(layout, what, packets, payload, stream);
  }
}

}  // namespace dance::cuda
