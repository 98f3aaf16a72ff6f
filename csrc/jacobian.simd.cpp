#include "jacobian.h"

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

// A whole vector of a row, or the last few elements of it.
struct Whole {};
struct Part {
  int64_t count;
};

template <class T>
VectorOf<T> get(const T* p, Whole) {
  return load(p);
}
template <class T>
VectorOf<T> get(const T* p, Part part) {
  return load_some(p, part.count);
}
template <class T>
void put(T* p, VectorOf<T> v, Whole) {
  store(p, v);
}
template <class T>
void put(T* p, VectorOf<T> v, Part part) {
  store_some(p, v, part.count);
}

template <class T, class F>
void each_vector(int64_t count, const F& f) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) f(j, Whole{});
  if (j < count) f(j, Part{count - j});
}

template <class T>
T* row(const View& v, int64_t i) {
  return static_cast<T*>(v.data) + i * v.stride[0];
}

template <class T>
T* row(const View& v, int64_t i, int64_t k) {
  return static_cast<T*>(v.data) + i * v.stride[0] + k * v.stride[1];
}

f32v square_root(f32v x) {
#if defined(__AVX512F__)
  return (f32v)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (f32v)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (f32v)_mm_sqrt_ps((__m128)x);
#else
  for (int l = 0; l < Format<f32v>::kLanes; ++l) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}

f64v square_root(f64v x) {
#if defined(__AVX512F__)
  return (f64v)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (f64v)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (f64v)_mm_sqrt_pd((__m128d)x);
#else
  for (int l = 0; l < Format<f64v>::kLanes; ++l) x[l] = __builtin_sqrt(x[l]);
  return x;
#endif
}

// (z + 4) e^(z^2/2) P(Z < -z) for standard normal Z and z >= 0, as a polynomial in (z - 4) / (z + 4), highest power
// first: interpolated at Chebyshev nodes, relative error 2^-28 and 2^-56.
constexpr float kTail32[] = {0x1.70bf46p-16f, -0x1.cf514ap-20f, -0x1.c8b2f4p-13f, 0x1.1843a8p-13f,
                             0x1.a9c96ap-10f, -0x1.c81f82p-9f,  -0x1.ee0e36p-8f,  0x1.eec4f2p-5f,
                             -0x1.7dff3ep-3f, 0x1.8c6dbep-2f,   -0x1.373e3ap-1f,  0x1.82b4bcp-1f};
constexpr double kTail64[] = {
    0x1.8292fc4ce4d8dp-32, -0x1.022d10f65781fp-33, -0x1.050191fc6cc59p-28, -0x1.4b0e7b2faec7fp-31,
    0x1.732a4715d492dp-26, 0x1.333636f132c58p-26,  -0x1.763c05444062ap-24, -0x1.5739d834ba2a4p-23,
    0x1.24d41d3d291f3p-22, 0x1.1319f819401c7p-20,  -0x1.523a34949647cp-21, -0x1.8d64fb67e71dep-18,
    0x1.80ca21e76e136p-21, 0x1.26d1937af8b1cp-15,  -0x1.001f7d4abe158p-19, -0x1.e4a431b399fb5p-13,
    0x1.17a4aeca067eap-13, 0x1.ab825ff095e6cp-10,  -0x1.c81719d60ddc3p-9,  -0x1.ee2761054e64ap-8,
    0x1.eec4cc3e4db3fp-5,  -0x1.7dff2bff68052p-3,  0x1.8c6dbf2cfc2afp-2,   -0x1.373e3a893c28cp-1,
    0x1.82b4bb8c94dcep-1};

template <class V, class S, int N>
V polynomial(V x, const S (&terms)[N]) {
  V p = splat<V>(terms[0]);
#pragma GCC unroll 32
  for (int k = 1; k < N; ++k) p = p * x + terms[k];
  return p;
}

// P(Z < u), given e^(-u^2/2)
template <class V>
V normal_below(V u, V gauss) {
  using S = ScalarOf<V>;
  const V z = smaller(abs(u), splat<V>(S(40)));  // from here on the Gaussian is 0
  const V r = 1 / (z + 4), s = (z - 4) * r;
  V scaled;
  if constexpr (sizeof(S) == 4) {
    scaled = polynomial(s, kTail32);
  } else {
    scaled = polynomial(s, kTail64);
  }
  const V tail = gauss * (r * scaled);
  return u < 0 ? tail : 1 - tail;
}

// f, f' and f'' at one point
template <class V>
struct Jet {
  V value, first, second;
};

template <class V>
Jet<V> exponential_unit(V u, double alpha, double scale) {
  using S = ScalarOf<V>;
  const Power<V> power_below = power(smaller(u, V{}));
  const V rise = S(scale * alpha) * power_below.value(), zero = {}, one = splat<V>(S(scale));
  const V value = u > 0 ? S(scale) * u : S(scale * alpha) * power_below.expm1();
  return {value, u > 0 ? one : rise, u > 0 ? zero : rise};
}

// The logistic function, from 1 and from 0, and its derivative; e = e^-|u|
template <class V>
struct Logistic {
  V e, value, rest, slope;

  explicit Logistic(V u) : e(power(-abs(u)).value()) {
    const V large = 1 / (1 + e), small = e * large;
    value = u < 0 ? small : large;
    rest = u < 0 ? large : small;
    slope = small * large;
  }
};

template <Activation kind, class V>
Jet<V> jet(V u, [[maybe_unused]] ScalarOf<V> below) {
  using S = ScalarOf<V>;
  const V zero = {}, one = splat<V>(1);
  if constexpr (kind == Activation::identity) {
    return {u, one, zero};
  } else if constexpr (kind == Activation::relu) {
    return {u > 0 ? u : (u <= 0 ? zero : u), u > 0 ? one : (u <= 0 ? zero : u), zero};
  } else if constexpr (kind == Activation::leaky_relu) {
    return {u > 0 ? u : below * u, u > 0 ? one : (u <= 0 ? splat<V>(below) : u), zero};
  } else if constexpr (kind == Activation::elu) {
    return exponential_unit(u, 1, 1);
  } else if constexpr (kind == Activation::selu) {
    return exponential_unit(u, 1.6732632423543772, 1.0507009873554805);
  } else if constexpr (kind == Activation::silu) {
    const Logistic<V> s(u);
    return {u * s.value, s.value + u * s.slope, s.slope * (2 + u * (s.rest - s.value))};
  } else if constexpr (kind == Activation::gelu) {
    const V gauss = power(S(-0.5) * (u * u)).value();
    const V below_u = normal_below(u, gauss), density = S(0.39894228040143267794) * gauss;
    return {u * below_u, below_u + u * density, density * (2 - u * u)};
  } else if constexpr (kind == Activation::softplus) {
    const Logistic<V> s(u);
    return {larger(u, zero) + log1p(s.e), s.value, s.slope};
  } else if constexpr (kind == Activation::tanh) {
    const Power<V> decay = power(-2 * abs(u));
    const V e = decay.value(), r = 1 / (1 + e);
    const V value = copysign(decay.expm1() * r, u), slope = 4 * e * (r * r);
    return {value, slope, -2 * value * slope};
  } else if constexpr (kind == Activation::sigmoid) {
    const Logistic<V> s(u);
    return {s.value, s.slope, s.slope * (s.rest - s.value)};
  } else if constexpr (kind == Activation::exp) {
    const V value = exp(u);
    return {value, value, value};
  } else if constexpr (kind == Activation::sqrt) {
    const V value = square_root(u);
    return {value, S(0.5) / value, S(-0.25) / (value * u)};
  } else {
    const V value = 1 / square_root(u), slope = S(-0.5) * value / u;
    return {value, slope, S(-1.5) * slope / u};
  }
}

// One block of one sample. `first` and `second` have room for whole vectors; `value` and `second` may be null.
template <class T>
using DeriveFn = void (*)(const Activated&, int64_t sample, int64_t begin, int64_t count, T* value, T* first,
                          T* second);

template <class T, Activation kind>
void derive_as(const Activated& op, int64_t sample, int64_t begin, int64_t count, T* value, T* first, T* second) {
  const T* x = row<T>(op.x, sample) + begin;
  const T* scale = static_cast<const T*>(op.scale) + begin;
  const T* shift = static_cast<const T*>(op.shift) + begin;
  each_vector<T>(count, [&](int64_t j, auto size) {
    const auto f = jet<kind>(get(scale + j, size) * get(x + j, size) + get(shift + j, size), T(op.below));
    if (value) put(value + j, f.value, size);
    store(first + j, f.first);
    if (second) store(second + j, f.second);
  });
}

template <class T>
constexpr DeriveFn<T> kDerive[] = {
    derive_as<T, Activation::identity>, derive_as<T, Activation::relu>,     derive_as<T, Activation::leaky_relu>,
    derive_as<T, Activation::elu>,      derive_as<T, Activation::selu>,     derive_as<T, Activation::silu>,
    derive_as<T, Activation::gelu>,     derive_as<T, Activation::softplus>, derive_as<T, Activation::tanh>,
    derive_as<T, Activation::sigmoid>,  derive_as<T, Activation::exp>,      derive_as<T, Activation::sqrt>,
    derive_as<T, Activation::rsqrt>};
static_assert(sizeof(kDerive<float>) / sizeof(kDerive<float>[0]) == kActivations);

template <class T>
void jvp_block(const Activated& op, const View& y, const View& dy, int64_t sample, int64_t begin, int64_t end) {
  const int64_t count = end - begin;
  alignas(64) T slope[kActivationBlock];
  kDerive<T>[int(op.kind)](op, sample, begin, count, row<T>(y, sample) + begin, slope, nullptr);
  const T* scale = static_cast<const T*>(op.scale) + begin;
  each_vector<T>(count, [&](int64_t j, auto size) { store(slope + j, load(slope + j) * get(scale + j, size)); });
  for (int64_t k = 0; k < op.tangents.size[1]; ++k) {
    const T* in = row<T>(op.tangents, sample, k) + begin;
    T* out = row<T>(dy, sample, k) + begin;
    each_vector<T>(count, [&](int64_t j, auto size) { put(out + j, get(in + j, size) * load(slope + j), size); });
  }
}

template <class T>
void jvp_backward_block(const Activated& op, const View& grad_y, const View& grad_dy, const View& x_grad,
                        const View& tangents_grad, int64_t first_sample, int64_t last_sample, int64_t begin,
                        int64_t end, T* sums) {
  using V = VectorOf<T>;
  const int64_t count = end - begin, t = op.tangents.size[1];
  const bool bends = op.kind > Activation::leaky_relu;
  alignas(64) T first[kActivationBlock], second[kActivationBlock], slope[kActivationBlock], dot[kActivationBlock];
  alignas(64) T by_scale[kActivationBlock], by_shift[kActivationBlock];
  const T* scale = static_cast<const T*>(op.scale) + begin;
  each_vector<T>(count, [&](int64_t j, auto) {
    store(by_scale + j, V{});
    store(by_shift + j, V{});
  });
  for (int64_t i = first_sample; i < last_sample; ++i) {
    kDerive<T>[int(op.kind)](op, i, begin, count, static_cast<T*>(nullptr), first, second);
    each_vector<T>(count, [&](int64_t j, auto size) {
      store(slope + j, load(first + j) * get(scale + j, size));
      store(dot + j, V{});
    });
    for (int64_t k = 0; k < t; ++k) {
      const T* in = row<T>(op.tangents, i, k) + begin;
      const T* g = row<T>(grad_dy, i, k) + begin;
      T* out = row<T>(tangents_grad, i, k) + begin;
      if (bends || sums) {
        each_vector<T>(count, [&](int64_t j, auto size) {
          const V grad = get(g + j, size);
          put(out + j, grad * load(slope + j), size);
          store(dot + j, grad * get(in + j, size) + load(dot + j));
        });
      } else {
        each_vector<T>(count, [&](int64_t j, auto size) { put(out + j, get(g + j, size) * load(slope + j), size); });
      }
    }
    const T* x = row<T>(op.x, i) + begin;
    const T* g = row<T>(grad_y, i) + begin;
    T* out = row<T>(x_grad, i) + begin;
    each_vector<T>(count, [&](int64_t j, auto size) {
      const V factor = get(scale + j, size);
      V by_u = load(first + j) * get(g + j, size);
      if (bends) by_u += load(second + j) * factor * load(dot + j);
      put(out + j, factor * by_u, size);
      if (sums) {
        store(by_scale + j, load(by_scale + j) + (get(x + j, size) * by_u + load(first + j) * load(dot + j)));
        store(by_shift + j, load(by_shift + j) + by_u);
      }
    });
  }
  if (!sums) return;
  each_vector<T>(count, [&](int64_t j, auto size) {
    put(sums + j, load(by_scale + j), size);
    put(sums + op.x.size[1] + j, load(by_shift + j), size);
  });
}

void jvp(const Activated& op, const View& y, const View& dy, int64_t sample, int64_t begin, int64_t end) {
  const auto run = op.x.dtype == DType::f64 ? jvp_block<double> : jvp_block<float>;
  run(op, y, dy, sample, begin, end);
}

void jvp_backward(const Activated& op, const View& grad_y, const View& grad_dy, const View& x_grad,
                  const View& tangents_grad, int64_t first, int64_t last, int64_t begin, int64_t end, void* sums) {
  if (op.x.dtype == DType::f64) {
    jvp_backward_block(op, grad_y, grad_dy, x_grad, tangents_grad, first, last, begin, end, static_cast<double*>(sums));
  } else {
    jvp_backward_block(op, grad_y, grad_dy, x_grad, tangents_grad, first, last, begin, end, static_cast<float*>(sums));
  }
}

}  // namespace

const JacobianKernels jacobian = {jvp, jvp_backward};

}  // namespace FL_ISA
}  // namespace fl
