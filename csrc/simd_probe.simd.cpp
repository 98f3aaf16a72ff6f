#include "simd_probe.h"

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

template <class T, class F>
void map(const View& x, const View& out, const F& f) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  const T* in = static_cast<const T*>(x.data);
  T* to = static_cast<T*>(out.data);
  for (int64_t i = 0; i < x.size[0]; i += lanes) {
    const int64_t count = i + lanes < x.size[0] ? lanes : x.size[0] - i;
    store_some(to + i, f(load_some(in + i, count)), count);
  }
}

template <class T>
bool evaluate_as(const char* function, const View& x, const View& out) {
  const auto is = [&](const char* name) { return std::strcmp(function, name) == 0; };
  if (is("exp")) return map<T>(x, out, [](auto v) { return exp(v); }), true;
  if (is("expm1")) return map<T>(x, out, [](auto v) { return expm1(v); }), true;
  if (is("log")) return map<T>(x, out, [](auto v) { return log(v); }), true;
  if (is("log1p")) return map<T>(x, out, [](auto v) { return log1p(v); }), true;
  if (is("tanh")) return map<T>(x, out, [](auto v) { return tanh(v); }), true;
  if (is("sigmoid")) return map<T>(x, out, [](auto v) { return sigmoid(v); }), true;
  if (is("softplus")) return map<T>(x, out, [](auto v) { return softplus(v); }), true;
  if (is("power")) return map<T>(x, out, [](auto v) { return power(v).value(); }), true;
  if (is("power_expm1")) return map<T>(x, out, [](auto v) { return power(v).expm1(); }), true;
  if (is("mean_decay")) return map<T>(x, out, [](auto v) { return mean_decay(v); }), true;
  if (is("fma")) return map<T>(x, out, [](auto v) { return fma(v, v, -v); }), true;
  return false;
}

bool evaluate(const char* function, const View& x, const View& out) {
  return x.dtype == DType::f64 ? evaluate_as<double>(function, x, out) : evaluate_as<float>(function, x, out);
}

}  // namespace

const ProbeKernels probe = {evaluate};

}  // namespace FL_ISA
}  // namespace fl
