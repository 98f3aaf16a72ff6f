// A tensor as kernels see it: pointer, dtype, device, sizes and strides. Holds no Python object, so the GIL may be
// released while a View is alive. A plain struct without functions: files compiled for different instruction sets
// share it.
#pragma once

#include <cstdint>

namespace fl {

enum class DType : uint8_t { f16, bf16, f32, f64, i64, i32, u8 };

struct View {
  void* data;
  DType dtype;
  bool cuda;
  int32_t device;  // index of the CUDA device
  int32_t ndim;
  int64_t size[4];
  int64_t stride[4];  // in elements
};

}  // namespace fl
