#include "polyline.h"

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

void expect_lines(const View& points, const View& numbers, const char* name) {
  const bool holds = points.ndim == 3 && !points.cuda && (points.dtype == DType::f32 || points.dtype == DType::f64) &&
                     (points.stride[2] == 1 || points.size[2] <= 1);
  expect(holds, "core: points must be float32 or float64 on the CPU, (n, m, D) with contiguous rows");
  expect_vector(name, numbers, points.dtype, points.size[0]);
}

int64_t line_bytes(const View& points) {
  return points.size[1] * points.size[2] * (points.dtype == DType::f64 ? 8 : 4);
}

}  // namespace

void polyline(const View& points, bool energy, const View& out, int threads) {
  expect_lines(points, out, "out");
  const auto run = FL_KERNELS(polyline).measure;
  parallel_for(points.size[0], line_bytes(points), threads,
               [&](int64_t begin, int64_t end) { run(points, energy, out, begin, end); });
}

void polyline_backward(const View& grad, const View& points, bool energy, const View& out, int threads) {
  expect_lines(points, grad, "grad");
  expect_cube("out", out, points.dtype, points.size[0], points.size[1], points.size[2]);
  const auto run = FL_KERNELS(polyline).pull;
  parallel_for(points.size[0], 2 * line_bytes(points), threads,
               [&](int64_t begin, int64_t end) { run(grad, points, energy, out, begin, end); });
}

}  // namespace fl
