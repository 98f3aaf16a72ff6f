// B-spline curves. fastlatent/ops/spline is the definition; all rows are contiguous.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

constexpr int kMaxDegree = 31;
constexpr int64_t kSamples = 64;  // places on a curve whose weights lie together

// control (n, k, d), t (m,) or (n, m), knots (k + degree + 1,) or (n, k + degree + 1) -> out (n, m, d). Where all
// curves share t and knots, scratch of the same dtype has (m + kSamples - 1) (degree + 3) elements. Throws
// std::invalid_argument for knots that are not clamped or not distinct between the ends, and for t outside.
void bspline(const View& control, const View& t, const View& knots, int degree, int order, const View& scratch,
             const View& out, int threads);
// grad (n, m, d) -> out (n, k, d), the transpose of the map above
void bspline_backward(const View& grad, const View& t, const View& knots, int degree, int order, const View& scratch,
                      const View& out, int threads);

struct SplineTask {
  View points;    // control points, or gradients at the places when `backward`
  View t, knots;  // (1 or n, ...)
  View out;
  void* scratch;
  int degree, order;
  bool backward;
};

struct SplineKernels {
  // Fills scratch with the weights that all curves share; false if the knots or some t are not as they must be.
  bool (*weigh)(const SplineTask& task);
  void (*shared)(const SplineTask& task, int64_t begin, int64_t end);
  // Each curve with weights of its own; the first curve whose knots or t are not as they must be, or -1.
  int64_t (*own)(const SplineTask& task, int64_t begin, int64_t end);
};

FL_DECLARE_KERNELS(SplineKernels, spline)

}  // namespace fl
