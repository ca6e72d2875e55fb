// Binds what the build and the machine offer: version, CPU targets, threads, CUDA.
#include <pybind11/stl.h>

#include "../cuda/kernels.h"
#include "bindings/bindings.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/targets.h"

namespace py = pybind11;

namespace dance {

void bind_info(py::module_& module) {
  module.attr("version") = DANCE_VERSION;
  module.def("cpu_target", [] { return cpu::kernels().target; });
  module.def("cpu_targets", cpu::target_names);
  module.def("get_num_threads", cpu::get_num_threads);
  module.def("set_num_threads", cpu::set_num_threads, py::arg("num_threads"));
  module.def("set_grain_shift", cpu::set_grain_shift, py::arg("shift"));
  module.def("num_begun_together", cpu::num_begun_together);
  module.def("cuda_built", cuda::built);
  module.def("cuda_available", cuda::available);
  module.def("cuda_architectures", cuda::architectures);
}

}  // namespace dance
