#include "elementwise.h"

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

// Each op is one formula of vectors, of floats where the tensors are of half types, and one line of the table below.
// fastlatent/ops/activation.py has the definitions.

struct Elu {
  template <class V>
  V operator()(V x) const {
    return x > 0 ? x : power(smaller(x, V{})).expm1();
  }
};

struct EluBackward {
  template <class V>
  V operator()(V grad, V y) const {
    return grad * (y > 0 ? splat<V>(1) : y + 1);
  }
};

template <class F, class T, class... Inputs>
void compute(T* out, int64_t count, const Inputs*... in) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(out + i, F{}(load(in + i)...));
  if (i < count) store_some(out + i, F{}(load_some(in + i, count - i)...), count - i);
}

template <class F>
constexpr int kInputs = std::is_invocable_v<F, f32v> ? 1 : 2;

template <class F>
void run(const View* tensors, int64_t begin, int64_t end) {
  with_floating(tensors[0].dtype, [&](auto* type) {
    const auto at = [&](int k) { return static_cast<decltype(type)>(tensors[k].data) + begin; };
    if constexpr (kInputs<F> == 1) {
      compute<F>(at(1), end - begin, at(0));
    } else {
      compute<F>(at(2), end - begin, at(0), at(1));
    }
  });
}

template <class F>
constexpr Elementwise row(const char* op) {
  return {op, kInputs<F>, run<F>};
}

constexpr Elementwise table[] = {
    row<Elu>("elu"),
    row<EluBackward>("elu_backward"),
};

const Elementwise* named(const char* op) {
  for (const Elementwise& known : table) {
    if (std::strcmp(known.op, op) == 0) return &known;
  }
  return nullptr;
}

}  // namespace

const ElementwiseKernels elementwise = {named};

}  // namespace FL_ISA
}  // namespace fl
