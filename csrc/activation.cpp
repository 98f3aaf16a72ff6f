#include "activation.h"

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

// Elements that one call computes: a multiple of every vector's.
constexpr int64_t kBlock = 1024;

void expect_alike(const char* name, const View& v, const View& like) {
  expect_vector(name, v, like.dtype, like.size[0]);
}

template <class F>
void for_blocks(const View& v, int64_t tensors, int threads, const F& run) {
  const int64_t count = v.size[0], bytes = v.dtype == DType::f64 ? 8 : v.dtype == DType::f32 ? 4 : 2;
  parallel_for((count + kBlock - 1) / kBlock, tensors * kBlock * bytes, threads, [&](int64_t first, int64_t last) {
    run(first * kBlock, last * kBlock < count ? last * kBlock : count);
  });
}

}  // namespace

void elu(const View& x, const View& y, int threads) {
  expect(x.ndim == 1 && is_floating(x.dtype), "core: x must be a floating vector");
  expect_alike("x", x, x);
  expect_alike("y", y, x);
  const auto run = FL_KERNELS(activation).elu;
  for_blocks(x, 2, threads, [&](int64_t begin, int64_t end) { run(x, y, begin, end); });
}

void elu_backward(const View& grad, const View& y, const View& out, int threads) {
  expect(y.ndim == 1 && is_floating(y.dtype), "core: y must be a floating vector");
  expect_alike("y", y, y);
  expect_alike("grad", grad, y);
  expect_alike("out", out, y);
  const auto run = FL_KERNELS(activation).elu_backward;
  for_blocks(y, 3, threads, [&](int64_t begin, int64_t end) { run(grad, y, out, begin, end); });
}

}  // namespace fl
