// Gram matrices of Jacobians. fastlatent/ops/jacobian is the definition.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// jacobian (n, D, d) of any strides, weight (n, D) with contiguous rows or an empty vector for none -> out (n, d, d)
// contiguous
void jacobian_gram(const View& jacobian, const View& weight, const View& out, int threads);

struct GramKernels {
  // bytes of scratch, to start at a multiple of 64
  int64_t (*scratch)(const View& jacobian);
  void (*gram)(const View& jacobian, const View* weight, const View& out, int64_t sample, void* scratch);
};

FL_DECLARE_KERNELS(GramKernels, gram)

}  // namespace fl
