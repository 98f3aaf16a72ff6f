// The exponential linear unit. fastlatent/ops/activation.py is the definition.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// Vectors of as many elements each: y = x where x > 0, else e^x - 1; out = grad where y > 0, else grad (y + 1).
void elu(const View& x, const View& y, int threads);
void elu_backward(const View& grad, const View& y, const View& out, int threads);

struct ActivationKernels {
  // elements [begin, end)
  void (*elu)(const View& x, const View& y, int64_t begin, int64_t end);
  void (*elu_backward)(const View& grad, const View& y, const View& out, int64_t begin, int64_t end);
};

FL_DECLARE_KERNELS(ActivationKernels, activation)

}  // namespace fl
