#include "copula.h"

#include <stdexcept>

#include "parallel.h"

namespace fl {

void copula_align(const View& projections, const View& codes, bool packed, int threads) {
  if (!packed && codes.dtype != projections.dtype) {
    throw std::invalid_argument("copula_align: codes must have the dtype of the projections");
  }
  const auto run = FL_KERNELS(copula).align;
  parallel_for(projections.size[0], projections.size[1] * 8, threads,
               [&](int64_t begin, int64_t end) { run(projections, codes, packed, begin, end); });
}

}  // namespace fl
