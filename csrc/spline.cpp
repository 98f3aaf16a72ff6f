#include "spline.h"

#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>
#include <string>

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

// Curves that a thread takes at once: a multiple of the lanes of every vector.
constexpr int64_t kGroup = 16;

template <class T>
const T* row(const View& v, int64_t i) {
  return static_cast<const T*>(v.data) + (v.size[0] == 1 ? 0 : i) * v.stride[0];
}

// Says what is wrong with a curve that a kernel refused.
template <class T>
[[noreturn]] void refuse(const SplineTask& task, int64_t curve) {
  const T* t = row<T>(task.t, curve);
  const T* knots = row<T>(task.knots, curve);
  const int64_t m = task.t.size[1], last = task.knots.size[1] - 1, degree = task.degree;
  std::ostringstream why;
  why << "bspline: ";
  const auto of_curve = [&](const View& v) {
    if (v.size[0] > 1) why << " of curve " << curve;
  };
  for (int64_t i = 0; i < degree; ++i) {
    if (!(knots[i] == knots[i + 1]) || !(knots[last - i] == knots[last - i - 1])) {
      why << "knots must start with degree + 1 equal ones, here " << degree + 1 << ", and end with as many (clamped)";
      throw std::invalid_argument(why.str());
    }
  }
  for (int64_t i = degree + 1; i <= last - degree; ++i) {
    if (!(knots[i] > knots[i - 1])) {
      why << "knots must increase between the ends; knot " << i;
      of_curve(task.knots);
      why << " does not: a doubled knot is refused";
      throw std::invalid_argument(why.str());
    }
  }
  int64_t wrong = 0;
  while (wrong < m && !(t[wrong] < knots[0] || t[wrong] > knots[last])) ++wrong;
  why << "t must lie between the first and the last knot, " << knots[0] << " and " << knots[last] << "; element "
      << wrong;
  of_curve(task.t);
  why << " is " << (wrong < m ? t[wrong] : T(0));
  throw std::invalid_argument(why.str());
}

void refuse(const SplineTask& task, int64_t curve) {
  if (task.t.dtype == DType::f64) refuse<double>(task, curve);
  refuse<float>(task, curve);
}

// A vector as a matrix of one row.
View as_rows(const View& v) {
  if (v.ndim != 1) return v;
  View rows = v;
  rows.ndim = 2;
  rows.size[0] = 1, rows.stride[0] = v.size[0];
  rows.size[1] = v.size[0], rows.stride[1] = v.stride[0];
  return rows;
}

void run(const View& points, const View& given_t, const View& given_knots, int degree, int order, bool backward,
         const View& scratch, const View& out, int threads) {
  const View t = as_rows(given_t), knots = as_rows(given_knots);
  const DType dtype = points.dtype;
  expect(points.ndim == 3 && t.ndim == 2 && knots.ndim == 2, "core: points must have 3 dimensions, t and knots 1 or 2");
  expect(dtype == DType::f32 || dtype == DType::f64, "core: points must be float32 or float64");
  expect(degree >= 1 && degree <= kMaxDegree && order >= 0 && order <= degree,
         "core: degree must be in 1 to 31 and order in 0 to degree");
  const int64_t n = points.size[0], m = t.size[1], d = points.size[2], k = knots.size[1] - degree - 1;
  expect(k > degree && k < INT32_MAX, "core: knots must be at least twice degree + 1");
  expect_cube("points", points, dtype, n, backward ? m : k, d);
  expect_cube("out", out, dtype, n, backward ? k : m, d);
  expect_rows("t", t, dtype, given_t.ndim == 1 ? 1 : n, m);
  expect_rows("knots", knots, dtype, given_knots.ndim == 1 ? 1 : n, k + degree + 1);

  const SplineTask task = {points, t, knots, out, scratch.data, degree, order, backward};
  const SplineKernels& kernels = FL_KERNELS(spline);
  const int64_t groups = (n + kGroup - 1) / kGroup;
  const int64_t bytes = kGroup * (k + m) * d * (dtype == DType::f64 ? 8 : 4);
  if (given_t.ndim == 1 && given_knots.ndim == 1) {
    expect_vector("scratch", scratch, dtype, (m + kSamples - 1) * (degree + 3));
    if (!kernels.weigh(task)) refuse(task, 0);
    parallel_for(groups, bytes, threads,
                 [&](int64_t begin, int64_t end) { kernels.shared(task, begin * kGroup, std::min(end * kGroup, n)); });
    return;
  }
  std::atomic<int64_t> wrong{n};
  parallel_for(groups, bytes, threads, [&](int64_t begin, int64_t end) {
    const int64_t found = kernels.own(task, begin * kGroup, std::min(end * kGroup, n));
    int64_t least = wrong;
    while (found >= 0 && found < least && !wrong.compare_exchange_weak(least, found)) {
    }
  });
  if (wrong < n) refuse(task, wrong);
}

}  // namespace

void bspline(const View& control, const View& t, const View& knots, int degree, int order, const View& scratch,
             const View& out, int threads) {
  run(control, t, knots, degree, order, false, scratch, out, threads);
}

void bspline_backward(const View& grad, const View& t, const View& knots, int degree, int order, const View& scratch,
                      const View& out, int threads) {
  run(grad, t, knots, degree, order, true, scratch, out, threads);
}

}  // namespace fl
