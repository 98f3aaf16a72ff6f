// Activations with their derivatives, applied to values and tangents. fastlatent/ops/jacobian is the definition.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// In the order of KINDS there; up to leaky_relu the second derivative is zero.
enum class Activation { identity, relu, leaky_relu, elu, selu, silu, gelu, softplus, tanh, sigmoid, exp, sqrt, rsqrt };
constexpr int kActivations = 13;

// n samples of l numbers, t tangents of each: x (n, l) and tangents (n, t, l) have contiguous rows. scale and shift
// (c,), or empty for 1 and 0; element j of a sample belongs to channel j / inner % c. `below` is the slope of
// leaky_relu below 0. scratch: activation_jvp_scratch(0, l) elements of x's dtype. y (n, l), dy (n, t, l)
void activation_jvp(const View& x, const View& tangents, int kind, const View& scale, const View& shift, int64_t inner,
                    double below, const View& scratch, const View& y, const View& dy, int threads);
// The gradients of x, tangents, scale and shift, in their shapes; the last two may be empty instead. scratch:
// activation_jvp_scratch(n, l) elements.
void activation_jvp_backward(const View& grad_y, const View& grad_dy, const View& x, const View& tangents, int kind,
                             const View& scale, const View& shift, int64_t inner, double below, const View& scratch,
                             const View& x_grad, const View& tangents_grad, const View& scale_grad,
                             const View& shift_grad, int threads);
int64_t activation_jvp_scratch(int64_t n, int64_t l);

// What the kernels of one instruction set are told of an activation; scale and shift (l,) of x's dtype.
struct Activated {
  View x, tangents;
  Activation kind;
  double below;
  const void *scale, *shift;
};

struct JacobianKernels {
  // elements [begin, end) of one sample, at most kActivationBlock of them
  void (*jvp)(const Activated&, const View& y, const View& dy, int64_t sample, int64_t begin, int64_t end);
  // The same of samples [first, last). Where `sums` is given, sums[j - begin] and sums[l + j - begin] become their
  // contributions to the gradients of scale[j] and shift[j].
  void (*jvp_backward)(const Activated&, const View& grad_y, const View& grad_dy, const View& x_grad,
                       const View& tangents_grad, int64_t first, int64_t last, int64_t begin, int64_t end, void* sums);
};

constexpr int64_t kActivationBlock = 4096;

FL_DECLARE_KERNELS(JacobianKernels, jacobian)

}  // namespace fl
