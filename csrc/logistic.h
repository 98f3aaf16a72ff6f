// Log-probabilities of discretized logistics, single and mixed, their gradients and samples. fastlatent/ops/logistic
// is the definition and holds the notation.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// Bin k has centre (2k - bins + 1) / gamma + shift / gamma; shift is an integer. In Python the same is `Grid`.
struct LogisticGrid {
  int64_t bins;
  double gamma, shift, min_log_scale;
  bool coupled;  // the three channels of a mixture
};

// Elementwise over vectors of one length. out[j] = log P(bins[j]); throws std::invalid_argument for a bin out of range
void logistic_log_prob(const View& bins, const View& mean, const View& log_scale, const LogisticGrid& grid,
                       const View& out, int threads);
// mean_grad, log_scale_grad = grad * derivatives
void logistic_backward(const View& grad, const View& bins, const View& mean, const View& log_scale,
                       const LogisticGrid& grid, const View& mean_grad, const View& log_scale_grad, int threads);

// bins (n, c, s), params (n, p, s) of any strides, s pixels; out (n, s), or (n,) for the sum over the pixels
void logistic_mixture_log_prob(const View& bins, const View& params, const LogisticGrid& grid, const View& out,
                               int threads);
// grad as out above; params_grad (n, p, s)
void logistic_mixture_backward(const View& grad, const View& bins, const View& params, const LogisticGrid& grid,
                               const View& params_grad, int threads);
// uniforms (n, 1 + c, s); out (n, c, s): u8 or i32 bins of the discrete sampler, floats of the continuous one
void logistic_mixture_sample(const View& params, const View& uniforms, const LogisticGrid& grid, const View& out,
                             int threads);

// What the kernels of one instruction set are told of a mixture.
struct Mixture {
  View bins, params;
  int64_t components, channels;
  LogisticGrid grid;
};

struct LogisticKernels {
  // elements [begin, end); whether all bins are in range
  bool (*log_prob)(const View& bins, const View& mean, const View& log_scale, const LogisticGrid&, const View& out,
                   int64_t begin, int64_t end);
  void (*backward)(const View& grad, const View& bins, const View& mean, const View& log_scale, const LogisticGrid&,
                   const View& mean_grad, const View& log_scale_grad, int64_t begin, int64_t end);
  // bytes of scratch, to start at a multiple of 64
  int64_t (*scratch)(const Mixture&);
  // pixels [begin, end) of one image: their sum; also each by itself where `out` is given
  double (*mixture_log_prob)(const Mixture&, int64_t image, int64_t begin, int64_t end, const View* out, void* scratch,
                             bool& in_range);
  void (*mixture_backward)(const Mixture&, int64_t image, int64_t begin, int64_t end, const View& grad,
                           const View& params_grad, void* scratch);
  void (*mixture_sample)(const Mixture&, int64_t image, int64_t begin, int64_t end, const View& uniforms,
                         const View& out, void* scratch);
};

FL_DECLARE_KERNELS(LogisticKernels, logistic)

}  // namespace fl
