#include "copula.h"

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

template <class T>
void align_rows(const View& projections, const View& codes, bool packed, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t d = projections.size[1] - 1;
  for (int64_t i = begin; i < end; ++i) {
    const T* in = static_cast<const T*>(projections.data) + i * projections.stride[0];
    const T reference = sign(splat<V>(in[d]))[0];
    if (packed) {
      auto* words = static_cast<uint64_t*>(codes.data) + i * codes.stride[0];
      for (int64_t j = 0; j < d; j += 64) {
        uint64_t word = 0;
        const int64_t stop = j + 64 < d ? j + 64 : d;
        for (int64_t k = j; k < stop; ++k) {
          word |= uint64_t(reference > 0 ? in[k] >= 0 : (reference < 0 && in[k] < 0)) << (k - j);
        }
        words[j / 64] = word;
      }
      continue;
    }
    T* out = static_cast<T*>(codes.data) + i * codes.stride[0];
    int64_t j = 0;
    for (; j + lanes <= d; j += lanes) store(out + j, sign(load(in + j)) * reference);
    if (j < d) store_some(out + j, sign(load_some(in + j, d - j)) * reference, d - j);
  }
}

void align(const View& projections, const View& codes, bool packed, int64_t begin, int64_t end) {
  if (projections.dtype == DType::f64) {
    align_rows<double>(projections, codes, packed, begin, end);
  } else {
    align_rows<float>(projections, codes, packed, begin, end);
  }
}

}  // namespace

const CopulaKernels copula = {align};

}  // namespace FL_ISA
}  // namespace fl
