// The elementary functions of simd.h on whole arrays, so that their stated errors can be tested.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// out = function(x) elementwise; contiguous float32 or float64 of the same size
// throws std::invalid_argument for a name that simd.h does not have
void simd_probe(const char* function, const View& x, const View& out);

struct ProbeKernels {
  bool (*evaluate)(const char* function, const View& x, const View& out);
};

FL_DECLARE_KERNELS(ProbeKernels, probe)

}  // namespace fl
