#include "simd_probe.h"

#include <stdexcept>
#include <string>

namespace fl {

void simd_probe(const char* function, const View& x, const View& out) {
  if (!FL_KERNELS(probe).evaluate(function, x, out)) {
    throw std::invalid_argument(std::string("simd_probe: there is no function ") + function);
  }
}

}  // namespace fl
