// Activations with their derivatives, applied to values and tangents, and Gram matrices of Jacobians.
// fastlatent/ops/jacobian.py is the definition.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// In the order of KINDS there; up to leaky_relu the second derivative is zero.
enum class Activation { identity, relu, leaky_relu, elu, selu, silu, gelu, softplus, tanh, sigmoid, exp, sqrt, rsqrt };
constexpr int kActivations = 13;

// n samples of l numbers, t tangents of each. x (n, l) and tangents (n, t, l) have contiguous rows; scale and shift
// (l,) hold one number for each element of a sample.
struct Activated {
  View x, tangents, scale, shift;
  Activation kind;
  double below;  // slope of leaky_relu below 0
};

// y (n, l), dy (n, t, l)
void activation_jvp(const View& x, const View& tangents, int kind, const View& scale, const View& shift, double below,
                    const View& y, const View& dy, int threads);
// The gradients of x (n, l) and tangents (n, t, l); also those of scale and shift, (c,) each, or none of an empty
// vector. Element j of a sample belongs to channel j / inner % c. scratch: activation_jvp_scratch(n, l) elements.
void activation_jvp_backward(const View& grad_y, const View& grad_dy, const View& x, const View& tangents, int kind,
                             const View& scale, const View& shift, double below, const View& x_grad,
                             const View& tangents_grad, const View& scale_grad, const View& shift_grad, int64_t inner,
                             const View& scratch, int threads);
int64_t activation_jvp_scratch(int64_t n, int64_t l);

// jacobian (n, D, d) of any strides, weight (n, D) with contiguous rows or a vector for none -> out (n, d, d)
// contiguous
void jacobian_gram(const View& jacobian, const View& weight, const View& out, int threads);

struct JacobianKernels {
  // elements [begin, end) of one sample, at most kActivationBlock of them
  void (*jvp)(const Activated&, const View& y, const View& dy, int64_t sample, int64_t begin, int64_t end);
  // The same of samples [first, last). Where `sums` is given, sums[j - begin] and sums[stride + j - begin] become their
  // contributions to the gradients of scale[j] and shift[j].
  void (*jvp_backward)(const Activated&, const View& grad_y, const View& grad_dy, const View& x_grad,
                       const View& tangents_grad, int64_t first, int64_t last, int64_t begin, int64_t end, void* sums,
                       int64_t stride);
  // bytes of scratch, to start at a multiple of 64
  int64_t (*gram_scratch)(const View& jacobian);
  void (*gram)(const View& jacobian, const View* weight, const View& out, int64_t sample, void* scratch);
};

constexpr int64_t kActivationBlock = 1024;

FL_DECLARE_KERNELS(JacobianKernels, jacobian)

}  // namespace fl
