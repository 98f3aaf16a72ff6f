#include "activation.h"

#include <type_traits>

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

template <class T>
T* pointer(const View& v) {
  return static_cast<T*>(v.data);
}

template <class V>
V elu_of(V x) {
  return x > 0 ? x : power(smaller(x, V{})).expm1();
}

template <class V>
V elu_backward_of(V grad, V y) {
  return grad * (y > 0 ? splat<V>(1) : y + 1);
}

template <class T>
void elu_elements(const T* x, T* y, int64_t count) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(y + i, elu_of(load(x + i)));
  if (i < count) store_some(y + i, elu_of(load_some(x + i, count - i)), count - i);
}

template <class T>
void elu_backward_elements(const T* grad, const T* y, T* out, int64_t count) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(out + i, elu_backward_of(load(grad + i), load(y + i)));
  if (i < count) {
    const int64_t rest = count - i;
    store_some(out + i, elu_backward_of(load_some(grad + i, rest), load_some(y + i, rest)), rest);
  }
}

void elu(const View& x, const View& y, int64_t begin, int64_t end) {
  with_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    elu_elements(pointer<T>(x) + begin, pointer<T>(y) + begin, end - begin);
  });
}

void elu_backward(const View& grad, const View& y, const View& out, int64_t begin, int64_t end) {
  with_floating(y.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    elu_backward_elements(pointer<T>(grad) + begin, pointer<T>(y) + begin, pointer<T>(out) + begin, end - begin);
  });
}

}  // namespace

const ActivationKernels activation = {elu, elu_backward};

}  // namespace FL_ISA
}  // namespace fl
