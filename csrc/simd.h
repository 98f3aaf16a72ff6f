// Vectors of one instruction set and the elementary functions on them.
//
// Include it only from *.simd.cpp files: each is compiled once for each instruction set with FL_ISA (its namespace) and
// FL_BYTES (its vector width), and everything here lands in that namespace.
//
// Built on the vector types of GCC and Clang; a comparison yields an integer vector of 0 and -1, and `mask ? a : b`
// selects lanes. Largest error against the exact value over all finite arguments, in units of the last place of the
// result, as asserted by tests/test_simd.py:
//
//            exp  expm1  log  log1p  tanh  sigmoid  softplus
//   float     1     2     1     2      3      3        2
//   double    1     2     1     2      3      3        2
//
// Of the faster ones, where they are defined: value() of power 2, its expm1() 4, mean_decay 2, fma 1 unit without the
// instruction.
//
// Results below the smallest normal number are exact to one unit of the smallest subnormal. Infinities, signed zeros
// and NaN follow C's math library.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "view.h"

// Into the caller: what the function works on stays in registers.
#define FL_INLINE inline __attribute__((always_inline))

namespace fl {
namespace FL_ISA {

typedef float f32v __attribute__((vector_size(FL_BYTES)));
typedef double f64v __attribute__((vector_size(FL_BYTES)));
typedef int32_t i32v __attribute__((vector_size(FL_BYTES)));
typedef int64_t i64v __attribute__((vector_size(FL_BYTES)));
typedef uint32_t u32v __attribute__((vector_size(FL_BYTES)));
typedef uint64_t u64v __attribute__((vector_size(FL_BYTES)));
typedef uint16_t u16v __attribute__((vector_size(FL_BYTES / 2)));

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// For tables of constants: where it is used in a formula, it is computed again at each call.
constexpr double factorial(int k) { return k < 2 ? 1. : k * factorial(k - 1); }

// How one vector type computes: its scalar, its integers, and the constants of its floating-point format.
template <class V>
struct Format;

template <>
struct Format<f32v> {
  using Scalar = float;
  using Int = i32v;
  using Uint = u32v;
  static constexpr int kLanes = FL_BYTES / 4;
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  static constexpr float kExpMin = -104.f, kExpMax = 89.f;
  static constexpr float kTanhOne = 10.f;  // tanh rounds to 1 from here on
  static constexpr float kLn2Hi = 0x1.62e400p-1f, kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kSmallestNormal = 0x1p-126f;
  // 1 / k! for k from 8 down to 2
  static constexpr float kExpTerms[] = {1 / factorial(8), 1 / factorial(7), 1 / factorial(6), 1 / factorial(5),
                                        1 / factorial(4), 1 / factorial(3), 1 / factorial(2)};
  static constexpr float kPowerMin = -88.f, kPowerMax = 88.f;
  // (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, highest power first, within 2^-26.1 of e^r - 1 (scripts/minimax.py)
  static constexpr float kPowerTerms[] = {0x1.6b95c6p-10f, 0x1.12252ep-7f, 0x1.5556f8p-5f, 0x1.5554b4p-3f,
                                          0x1.fffffep-2f};
  static constexpr int kLogTerms = 5;
};

template <>
struct Format<f64v> {
  using Scalar = double;
  using Int = i64v;
  using Uint = u64v;
  static constexpr int kLanes = FL_BYTES / 8;
  static constexpr int kMantissa = 52;
  static constexpr int kBias = 1023;
  static constexpr double kRound = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double kExpMin = -746., kExpMax = 710.;
  static constexpr double kTanhOne = 20.;
  static constexpr double kLn2Hi = 0x1.62e42fee00000p-1, kLn2Lo = 0x1.a39ef35793c76p-33;
  static constexpr double kSmallestNormal = 0x1p-1022;
  // 1 / k! for k from 14 down to 2
  static constexpr double kExpTerms[] = {1 / factorial(14), 1 / factorial(13), 1 / factorial(12), 1 / factorial(11),
                                         1 / factorial(10), 1 / factorial(9),  1 / factorial(8),  1 / factorial(7),
                                         1 / factorial(6),  1 / factorial(5),  1 / factorial(4),  1 / factorial(3),
                                         1 / factorial(2)};
  static constexpr double kPowerMin = -709., kPowerMax = 709.;
  static constexpr auto& kPowerTerms = kExpTerms;
  static constexpr int kLogTerms = 11;
};

template <class V>
using ScalarOf = typename Format<V>::Scalar;
template <class V>
using IntOf = typename Format<V>::Int;
template <class V>
using UintOf = typename Format<V>::Uint;  // wraps around, as the bits of a NaN make integers do
template <class V>
using ScalarIntOf = std::conditional_t<sizeof(ScalarOf<V>) == 4, int32_t, int64_t>;

template <class V>
inline V splat(ScalarOf<V> a) {
  return a - V{};
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
inline V abs(V x) {
  return bits_as<V>(bits_as<IntOf<V>>(x) & ~bits_as<IntOf<V>>(splat<V>(-0.0f)));
}

// |magnitude| with the sign bit of `sign`
template <class V>
inline V copysign(V magnitude, V sign) {
  const auto bit = bits_as<IntOf<V>>(splat<V>(-0.0f));
  return bits_as<V>((bits_as<IntOf<V>>(magnitude) & ~bit) | (bits_as<IntOf<V>>(sign) & bit));
}

// +1 from zero on (either zero), -1 below, NaN for NaN
template <class V>
inline V sign(V x) {
  const V one = splat<V>(1);
  return x >= 0 ? one : (x < 0 ? -one : x);
}

#if !defined(__FMA__) && !defined(__AVX512F__) && !defined(__aarch64__)
// Dekker's product and Knuth's sum: what rounding took from a b and from a b + c is added back.
template <class V>
inline V fma_by_parts(V a, V b, V c) {
  const ScalarOf<V> splitter = ScalarOf<V>((int64_t(1) << (Format<V>::kMantissa / 2 + 1)) + 1);
  const auto high = [&](V x) {
    const V t = splitter * x;
    return t - (t - x);
  };
  const V a1 = high(a), b1 = high(b), a2 = a - a1, b2 = b - b1;
  const V product = a * b, product_error = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
  const V sum = product + c, other = sum - product;
  const V sum_error = (product - (sum - other)) + (c - other);
  return sum + (product_error + sum_error);
}
#endif

// From here on results below the smallest normal number become 0, since some processors compute them a hundred times
// slower; gives what restores the state before. No destructor does that: it would drag in exception handling.
inline unsigned flush_subnormals() {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | _MM_FLUSH_ZERO_ON);
  return before;
#else
  return 0;
#endif
}

inline void restore_subnormals([[maybe_unused]] unsigned before) {
#if defined(__SSE2__)
  _mm_setcsr(before);
#endif
}

// The larger and the smaller of two; NaN where `a` is NaN.
template <class V>
inline V larger(V a, V b) {
  return b > a ? b : a;
}

template <class V>
inline V smaller(V a, V b) {
  return b < a ? b : a;
}

template <class V>
inline V clamp(V x, ScalarOf<V> low, ScalarOf<V> high) {
  x = x < low ? splat<V>(low) : x;
  return x > high ? splat<V>(high) : x;  // NaN compares false and passes
}

// 2^n for integers n held as floats, within the exponents of normal numbers
template <class V>
inline V pow2(IntOf<V> n) {
  return bits_as<V>((bits_as<UintOf<V>>(n) + Format<V>::kBias) << Format<V>::kMantissa);
}

constexpr double kLog2E = 1.44269504088896340736;

// x = n ln 2 + r with |r| <= ln 2 / 2
template <class V>
struct Reduced {
  IntOf<V> n;
  V r;
};

template <class V>
inline Reduced<V> reduce_by_ln2(V x) {
  using F = Format<V>;
  const V shifted = x * ScalarOf<V>(kLog2E) + F::kRound;
  const V n = shifted - F::kRound;
  const IntOf<V> whole = bits_as<IntOf<V>>(shifted) - bits_as<IntOf<V>>(splat<V>(F::kRound));
  return {whole, (x - n * F::kLn2Hi) - n * F::kLn2Lo};
}

// e^r - 1 for |r| <= ln 2 / 2, by its Taylor series
template <class V>
inline V expm1_reduced(V r) {
  using F = Format<V>;
  V p = splat<V>(F::kExpTerms[0]);
#pragma GCC unroll 16
  for (int k = 1; k < int(sizeof(F::kExpTerms) / sizeof(ScalarOf<V>)); ++k) p = p * r + F::kExpTerms[k];
  return r + (r * r) * p;
}

template <class V>
inline V exp(V x) {
  using F = Format<V>;
  const auto [n, r] = reduce_by_ln2(clamp(x, F::kExpMin, F::kExpMax));
  // In two factors: 2^n alone leaves the normal numbers at both ends of the range.
  const IntOf<V> half = n >> 1;
  return ((1 + expm1_reduced(r)) * pow2<V>(half)) * pow2<V>(n - half);
}

template <class V>
inline V expm1(V x) {
  using F = Format<V>;
  const auto [n, r] = reduce_by_ln2(clamp(x, ScalarOf<V>(-F::kMantissa - 5), F::kExpMax));
  // 2 (2^(n-1) p + 2^(n-1) - 1/2): 2^n itself overflows in the last binade.
  const V scale = pow2<V>(n - 1);
  const V result = 2 * (scale * expm1_reduced(r) + (scale - ScalarOf<V>(0.5)));
  return n == 0 ? copysign(expm1_reduced(r), x) : result;
}

// log(1 + f) + n ln 2 + c, where 1 + f lies in [sqrt(1/2), sqrt 2] and c is a small correction:
// 2 atanh(s) with s = f / (2 + f), arranged so that the leading term f is exact
template <class V>
inline V log_reduced(V f, V n, V c) {
  using F = Format<V>;
  const V s = f / (2 + f);
  const V z = s * s;
  V p = splat<V>(ScalarOf<V>(2) / (2 * F::kLogTerms + 1));
#pragma GCC unroll 16
  for (int k = F::kLogTerms - 1; k >= 1; --k) p = p * z + ScalarOf<V>(2) / (2 * k + 1);
  const V half_square = ScalarOf<V>(0.5) * f * f;
  const V tail = half_square - (s * (half_square + z * p) + (n * F::kLn2Lo + c));
  return n * F::kLn2Hi + (f - tail);
}

// x = 2^n (1 + f) for positive normal x, with 1 + f in [sqrt(1/2), sqrt 2)
template <class V>
inline void split_binary(V x, V& f, V& n) {
  using F = Format<V>;
  using I = IntOf<V>;
  using U = UintOf<V>;
  const U one = bits_as<U>(splat<V>(1));
  const U root = bits_as<U>(splat<V>(ScalarOf<V>(0.70710678118654752440)));
  const I exponent = (bits_as<I>(bits_as<U>(x) + (one - root)) >> F::kMantissa) - F::kBias;
  f = bits_as<V>(bits_as<U>(x) - (bits_as<U>(exponent) << F::kMantissa)) - 1;
  n = bits_as<V>(exponent + bits_as<I>(splat<V>(F::kRound))) - F::kRound;
}

// a b + c, rounded once (where the processor can't, to within one unit more)
inline f32v fma(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (f32v)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return fma_by_parts(a, b, c);
#endif
}

inline f64v fma(f64v a, f64v b, f64v c) {
#if defined(__AVX512F__)
  return (f64v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (f64v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (f64v)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return fma_by_parts(a, b, c);
#endif
}

// e^x as scale (1 + rest), where scale is a power of two and |rest| < 0.42
template <class V>
struct Power {
  V scale, rest;

  V value() const { return scale * rest + scale; }
  V expm1() const { return scale == 1 ? rest : value() - 1; }  // to its own precision near 0
};

// e^x of several x <= kPowerMax, 0 below kPowerMin, in about half the time of exp for float: in lockstep, since each
// alone is one chain of dependent instructions.
template <int N, class V>
FL_INLINE void powers(const V (&x)[N], Power<V> (&power)[N]) {
  using F = Format<V>;
  using S = ScalarOf<V>;
  V within[N], n[N], r[N], p[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) within[j] = larger(x[j], splat<V>(F::kPowerMin));
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) n[j] = within[j] * S(kLog2E) + F::kRound;
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    power[j].scale = pow2<V>(bits_as<IntOf<V>>(n[j]));  // its upper bits are shifted out; at kPowerMin it is 0
    n[j] -= F::kRound;
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) r[j] = within[j] - n[j] * F::kLn2Hi;
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) r[j] -= n[j] * F::kLn2Lo;
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) p[j] = splat<V>(F::kPowerTerms[0]);
#pragma GCC unroll 16
  for (int k = 1; k < int(sizeof(F::kPowerTerms) / sizeof(S)); ++k) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) p[j] = p[j] * r[j] + F::kPowerTerms[k];
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) power[j].rest = (p[j] * r[j]) * r[j] + r[j];
}

template <class V>
inline Power<V> power(V x) {
  const V each[] = {x};
  Power<V> result[1];
  powers(each, result);
  return result[0];
}

// (1 - e^-x) / x for 0 <= x <= 1, relative error 2^-28.4 before rounding (scripts/minimax.py)
inline f32v mean_decay(f32v x) {
  f32v p = splat<f32v>(0x1.0f30dcp-13f);
  p = p * x + -0x1.553c80p-10f;
  p = p * x + 0x1.0f37e4p-7f;
  p = p * x + -0x1.552df0p-5f;
  p = p * x + 0x1.5553d0p-3f;
  p = p * x + -0x1.fffff6p-2f;
  return p * x + 1;
}

inline f64v mean_decay(f64v x) { return x > 0 ? -expm1(-x) / x : splat<f64v>(1); }

template <class V>
inline V log(V x) {
  using F = Format<V>;
  const auto subnormal = x < F::kSmallestNormal;
  const ScalarOf<V> lift = ScalarOf<V>(int64_t(1) << F::kMantissa);
  V f, n;
  split_binary(subnormal ? x * lift : x, f, n);
  n = subnormal ? n - ScalarOf<V>(F::kMantissa) : n;
  const ScalarOf<V> inf = ScalarOf<V>(__builtin_inf());
  V result = log_reduced(f, n, V{});
  result = x == inf ? x : result;
  result = x == 0 ? splat<V>(-inf) : result;
  return x < 0 ? splat<V>(ScalarOf<V>(__builtin_nan(""))) : (x == x ? result : x);
}

template <class V>
inline V log1p(V x) {
  const V u = 1 + x;
  V f, n;
  split_binary(u, f, n);
  // What rounding 1 + x lost, relative to u.
  const V lost = (x >= 1 ? 1 - (u - x) : x - (u - 1)) / u;
  const ScalarOf<V> inf = ScalarOf<V>(__builtin_inf());
  V result = u == 1 ? x : log_reduced(f, n, lost);
  result = x == inf ? x : result;
  result = x == -1 ? splat<V>(-inf) : result;
  return x < -1 ? splat<V>(ScalarOf<V>(__builtin_nan(""))) : (x == x ? result : x);
}

template <class V>
inline V tanh(V x) {
  const V t = expm1(2 * clamp(abs(x), 0, Format<V>::kTanhOne));
  return copysign(t / (t + 2), x);
}

// 1 / (1 + e^-x)
template <class V>
inline V sigmoid(V x) {
  const V e = exp(-abs(x));
  return (x < 0 ? e : splat<V>(1)) / (1 + e);
}

// log(1 + e^x)
template <class V>
inline V softplus(V x) {
  return (x > 0 ? x : V{}) + log1p(exp(-abs(x)));
}

// Loads and stores: half types widen to float on the way in and round to nearest even on the way out.

inline f32v load(const float* p) {
  f32v v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline f64v load(const double* p) {
  f64v v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline u32v load_u16(const void* p) {
  u16v v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, u32v);
}

inline f32v load(const bf16* p) { return bits_as<f32v>(load_u16(p) << 16); }

inline f32v load(const f16* p) {
  const u32v half = load_u16(p);
  // The exponents differ by 112; the product also normalises subnormal halves.
  const f32v magnitude = bits_as<f32v>((half & 0x7fffu) << 13) * 0x1p112f;
  const u32v special = bits_as<u32v>((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return bits_as<f32v>(bits_as<u32v>(magnitude) | special | (half & 0x8000u) << 16);
}

inline void store(float* p, f32v v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, f64v v) { std::memcpy(p, &v, sizeof v); }

// Stores floats past the caches, to multiples of FL_BYTES; finish_streams() before another thread may read.
inline void stream(float* p, f32v v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline void store_u16(void* p, u32v bits) {
  const u16v v = __builtin_convertvector(bits, u16v);
  std::memcpy(p, &v, sizeof v);
}

inline void store(bf16* p, f32v v) {
  const u32v bits = bits_as<u32v>(v);
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_u16(p, v == v ? rounded : (bits >> 16) | 0x40u);
}

inline void store(f16* p, f32v v) {
  const f32v a = abs(v);
  const u32v bits = bits_as<u32v>(a);
  const u32v normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  // One unit in the last place of [1/2, 1) is the smallest subnormal half, so this addition rounds to it.
  const u32v subnormal = bits_as<u32v>(a + 0.5f) - bits_as<u32v>(splat<f32v>(0.5f));
  const u32v infinity = u32v{} + 0x7c00u, nan = u32v{} + 0x7e00u;
  u32v half = a < 0x1p-14f ? subnormal : normal;
  half = a >= 65520.f ? infinity : half;
  half = a == a ? half : nan;
  store_u16(p, half | ((bits_as<u32v>(v) >> 16) & 0x8000u));
}

template <class T>
using VectorOf = decltype(load(static_cast<const T*>(nullptr)));

template <class T>
inline void stream(T* p, VectorOf<T> v) {
  store(p, v);
}

// The first `count` lanes; the others read as zero and are not written.
template <class T>
inline VectorOf<T> load_some(const T* p, int64_t count) {
  T lanes[Format<VectorOf<T>>::kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store_some(T* p, VectorOf<T> v, int64_t count) {
  T lanes[Format<VectorOf<T>>::kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, count * sizeof(T));
}

// 0, 1, 2, ... in the lanes of an integer vector
template <class I>
inline I lane_index() {
  I v;
  for (int i = 0; i < int(sizeof(I) / sizeof(v[0])); ++i) v[i] = i;
  return v;
}

// Calls f with a null pointer of the C++ type of a floating dtype.
template <class F>
inline void with_floating(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f16:
      return f(static_cast<f16*>(nullptr));
    case DType::bf16:
      return f(static_cast<bf16*>(nullptr));
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    default:
      return f(static_cast<double*>(nullptr));
  }
}

}  // namespace FL_ISA
}  // namespace fl
