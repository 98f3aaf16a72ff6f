#include "copula.h"

namespace fl {
namespace {

constexpr int kWarp = 32;
constexpr int kRowsPerBlock = 8;  // one warp a row

template <class T>
__device__ T sign_of(T a) {
  return a >= T(0) ? T(1) : (a < T(0) ? T(-1) : a);
}

template <class T, bool packed>
__global__ void align_kernel(const T* __restrict__ projections,  // (n, d + 1), row stride `stride`
                             void* __restrict__ codes,           // (n, d) T, or (n, words) 32-bit halves
                             int64_t n, int64_t d, int64_t stride, int64_t out_stride) {
  const int64_t i = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.y;
  if (i >= n) return;
  const T* in = projections + i * stride;
  const T reference = sign_of(in[d]);
  if constexpr (packed) {
    // A warp's ballot is one half of a word; the padding halves are written too.
    uint32_t* out = static_cast<uint32_t*>(codes) + i * out_stride * 2;
    const int64_t padded = (d + 63) / 64 * 64;
    for (int64_t j = threadIdx.x; j < padded; j += kWarp) {
      const uint32_t bits = __ballot_sync(0xffffffffu, j < d && sign_of(in[j < d ? j : d]) * reference > T(0));
      if (threadIdx.x == 0) out[j / kWarp] = bits;
    }
  } else {
    T* out = static_cast<T*>(codes) + i * out_stride;
    for (int64_t j = threadIdx.x; j < d; j += kWarp) out[j] = sign_of(in[j]) * reference;
  }
}

template <class T>
void launch(const View& projections, const View& codes, bool packed, Stream stream) {
  const int64_t n = projections.size[0], d = projections.size[1] - 1;
  const dim3 block(kWarp, kRowsPerBlock);
  const unsigned grid = static_cast<unsigned>((n + kRowsPerBlock - 1) / kRowsPerBlock);
  const auto* in = static_cast<const T*>(projections.data);
  if (packed) {
    align_kernel<T, true>
        <<<grid, block, 0, stream.handle>>>(in, codes.data, n, d, projections.stride[0], codes.stride[0]);
  } else {
    align_kernel<T, false>
        <<<grid, block, 0, stream.handle>>>(in, codes.data, n, d, projections.stride[0], codes.stride[0]);
  }
  check_launch("copula_align");
}

}  // namespace

void copula_align_cuda(const View& projections, const View& codes, bool packed, Stream stream) {
  expect_alignable(projections, codes, packed, true);
  if (projections.size[0] == 0 || codes.size[1] == 0) return;
  const DeviceGuard guard(projections.device);
  if (projections.dtype == DType::f64) {
    launch<double>(projections, codes, packed, stream);
  } else {
    launch<float>(projections, codes, packed, stream);
  }
}

}  // namespace fl
