#include "copula.h"

#include "expect.h"
#include "parallel.h"

namespace fl {

void expect_alignable(const View& projections, const View& codes, bool packed, bool cuda) {
  const bool holds = projections.ndim == 2 && projections.size[1] >= 1 &&
                     (projections.dtype == DType::f32 || projections.dtype == DType::f64);
  expect(holds, "core: projections must be a float32 or float64 matrix with the reference column");
  const int64_t n = projections.size[0], d = projections.size[1] - 1;
  expect_rows("projections", projections, projections.dtype, n, d + 1, cuda);
  expect_rows("codes", codes, packed ? DType::i64 : projections.dtype, n, packed ? (d + 63) / 64 : d, cuda);
}

void copula_align(const View& projections, const View& codes, bool packed, int threads) {
  expect_alignable(projections, codes, packed, false);
  const auto run = FL_KERNELS(copula).align;
  parallel_for(projections.size[0], projections.size[1] * 8, threads,
               [&](int64_t begin, int64_t end) { run(projections, codes, packed, begin, end); });
}

}  // namespace fl
