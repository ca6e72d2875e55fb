// Encoding arrays with the dense codecs.
#include "check.h"
#include "encode.h"

namespace dance::cuda {

void encode_dense(const DenseLayout& layout, Operation operation, EncodeJob job, uint8_t* payload, Values values,
                  bool clean, int64_t* nonfinite, cudaStream_t stream) {
  const EncodeLaunch what{job, values, clean, nonfinite};
  switch (operation) {
    case Operation::encode:
      return launch_encode<Operation::encode>(layout, what, NoPackets{}, payload, stream);
    case Operation::feedback:
      return launch_encode<Operation::feedback>(layout, what, NoPackets{}, payload, stream);
    case Operation::difference:
      return launch_encode<Operation::difference>(layout, what, NoPackets{}, payload, stream);
  }
}

}  // namespace dance::cuda
