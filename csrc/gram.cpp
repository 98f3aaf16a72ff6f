#include "gram.h"

#include <atomic>
#include <memory>
#include <new>

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

struct alignas(64) Line {
  char bytes[64];
};

void expect_contiguous(const View& out, DType dtype, int64_t n, int64_t d) {
  const int64_t size[] = {n, d, d}, stride[] = {d * d, d, 1};
  bool holds = out.ndim == 3 && out.dtype == dtype && !out.cuda;
  for (int k = 0; k < 3 && holds; ++k) holds = out.size[k] == size[k] && (out.stride[k] == stride[k] || size[k] <= 1);
  expect(holds || n * d == 0, "core: out must be (n, d, d), contiguous, of the dtype of jacobian");
}

}  // namespace

void jacobian_gram(const View& jacobian, const View& weight, const View& out, int threads) {
  expect(jacobian.ndim == 3 && !jacobian.cuda && (jacobian.dtype == DType::f32 || jacobian.dtype == DType::f64),
         "core: jacobian must be (n, D, d), float32 or float64, on the CPU");
  const int64_t n = jacobian.size[0], rows = jacobian.size[1], d = jacobian.size[2];
  const bool weighted = weight.ndim == 2;
  if (weighted) expect_rows("weight", weight, jacobian.dtype, n, rows);
  expect_contiguous(out, jacobian.dtype, n, d);
  const auto& kernels = FL_KERNELS(gram);
  const size_t lines = size_t(kernels.scratch(jacobian) / 64 + 1);
  std::atomic<bool> out_of_memory{false};
  // Each number is used d times, which costs as much as fetching it where d is about 8.
  const int64_t bytes = rows * d * (jacobian.dtype == DType::f64 ? 8 : 4) * (1 + d / 8);
  parallel_for(n, bytes, threads, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Line[]> scratch(new (std::nothrow) Line[lines]);
    if (!scratch) {
      out_of_memory = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) kernels.gram(jacobian, weighted ? &weight : nullptr, out, i, scratch.get());
  });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace fl
