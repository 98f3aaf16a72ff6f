// Lengths and energies of polylines. fastlatent/ops/spline/polyline.py is the definition.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// points (n, m, D), contiguous along D -> out (n,): the sum of the chords' lengths, or m - 1 times that of their
// squares
void polyline(const View& points, bool energy, const View& out, int threads);
// out (n, m, D), contiguous: grad (n,) times the derivative of the above
void polyline_backward(const View& grad, const View& points, bool energy, const View& out, int threads);

struct PolylineKernels {
  void (*measure)(const View& points, bool energy, const View& out, int64_t begin, int64_t end);
  void (*pull)(const View& grad, const View& points, bool energy, const View& out, int64_t begin, int64_t end);
};

FL_DECLARE_KERNELS(PolylineKernels, polyline)

}  // namespace fl
