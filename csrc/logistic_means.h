// Means and modes of discretized logistics, single and mixed. fastlatent/ops/logistic is the definition; the arguments
// are those of logistic.h.
#pragma once

#include "logistic.h"

namespace fl {

// Elementwise over vectors of one length. out[j] = E[clip(Y, first centre, last centre)] on the grid's scale
void logistic_mean(const View& mean, const View& log_scale, const LogisticGrid& grid, const View& out, int threads);
// mean_grad, log_scale_grad = grad * derivatives
void logistic_mean_backward(const View& grad, const View& mean, const View& log_scale, const LogisticGrid& grid,
                            const View& mean_grad, const View& log_scale_grad, int threads);
// out[j] = the likeliest bin, u8 or i32
void logistic_mode(const View& mean, const View& log_scale, const LogisticGrid& grid, const View& out, int threads);

// params (n, p, s) of any strides, s pixels; out (n, c, s) of any strides
void logistic_mixture_mean(const View& params, const LogisticGrid& grid, const View& out, int threads);
// grad as out above; params_grad (n, p, s)
void logistic_mixture_mean_backward(const View& grad, const View& params, const LogisticGrid& grid,
                                    const View& params_grad, int threads);
// out (n, c, s) u8 or i32: the likeliest of the components' modes
void logistic_mixture_mode(const View& params, const LogisticGrid& grid, const View& out, int threads);

struct LogisticMeansKernels {
  // elements [begin, end)
  void (*mean)(const View& mean, const View& log_scale, const LogisticGrid&, const View& out, int64_t begin,
               int64_t end);
  void (*mean_backward)(const View& grad, const View& mean, const View& log_scale, const LogisticGrid&,
                        const View& mean_grad, const View& log_scale_grad, int64_t begin, int64_t end);
  void (*mode)(const View& mean, const View& log_scale, const LogisticGrid&, const View& out, int64_t begin,
               int64_t end);
  // pixels [begin, end) of one image
  void (*mixture_mean)(const Mixture&, int64_t image, int64_t begin, int64_t end, const View& out, void* scratch);
  void (*mixture_mean_backward)(const Mixture&, int64_t image, int64_t begin, int64_t end, const View& grad,
                                const View& params_grad, void* scratch);
  void (*mixture_mode)(const Mixture&, int64_t image, int64_t begin, int64_t end, const View& out, void* scratch);
};

FL_DECLARE_KERNELS(LogisticMeansKernels, logistic_means)

}  // namespace fl
