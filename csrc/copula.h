// The epilogue of copula sampling: projections become codes. fastlatent/ops/copula.py is the definition.
#pragma once

#include "cuda.h"
#include "isa.h"
#include "view.h"

namespace fl {

// projections (n, d + 1) -> codes (n, d) +/-1 in the same dtype, or packed (n, ceil(d / 64)) int64:
// the sign of each projection times the sign of its row's last one
void copula_align(const View& projections, const View& codes, bool packed, int threads);
// throws std::invalid_argument unless these fit together
void expect_alignable(const View& projections, const View& codes, bool packed, bool cuda);
#if defined(FL_CUDA)
void copula_align_cuda(const View& projections, const View& codes, bool packed, Stream stream);
#endif

struct CopulaKernels {
  void (*align)(const View& projections, const View& codes, bool packed, int64_t begin, int64_t end);
};

FL_DECLARE_KERNELS(CopulaKernels, copula)

}  // namespace fl
