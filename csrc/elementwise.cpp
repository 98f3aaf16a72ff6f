#include "elementwise.h"

#include "expect.h"
#include "parallel.h"

namespace fl {

// Elements that one call computes: a multiple of every vector's.
constexpr int64_t kBlock = 1024;

void elementwise(const char* op, const View* tensors, int count, int threads) {
  const Elementwise* kernel = FL_KERNELS(elementwise).named(op);
  if (kernel == nullptr) throw std::invalid_argument(std::string("core: there is no elementwise op ") + op);
  expect(count == kernel->inputs + 1, "core: an elementwise op takes its inputs and one output");
  const View& out = tensors[count - 1];
  expect(out.ndim == 1 && is_floating(out.dtype), "core: elementwise ops give a floating vector");
  for (int k = 0; k < count; ++k) expect_vector("each tensor", tensors[k], out.dtype, out.size[0]);
  const int64_t n = out.size[0], bytes = out.dtype == DType::f64 ? 8 : out.dtype == DType::f32 ? 4 : 2;
  parallel_for((n + kBlock - 1) / kBlock, count * kBlock * bytes, threads, [&](int64_t begin, int64_t end) {
    kernel->run(tensors, begin * kBlock, end * kBlock < n ? end * kBlock : n);
  });
}

}  // namespace fl
