#include "simd_probe.h"

#include <stdexcept>
#include <string>

#include "expect.h"

namespace fl {

void simd_probe(const char* function, const View& x, const View& out) {
  expect(is_floating(x.dtype) && out.ndim == 1 && x.ndim == 1, "core: x and out must be floating vectors");
  expect_vector("x", x, x.dtype == DType::f64 ? DType::f64 : DType::f32, out.size[0]);
  expect_vector("out", out, x.dtype, x.size[0]);
  if (!FL_KERNELS(probe).evaluate(function, x, out)) {
    throw std::invalid_argument(std::string("simd_probe: there is no function ") + function);
  }
}

}  // namespace fl
