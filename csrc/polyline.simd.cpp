#include "polyline.h"

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

// Squares added in the lanes of one vector before they join a double: bounds the rounding.
constexpr int64_t kSquares = 4096;

// The sum of all lanes, in pairs.
template <class V>
double total_of(V v) {
  double lane[Format<V>::kLanes];
  for (int l = 0; l < Format<V>::kLanes; ++l) lane[l] = double(v[l]);
#pragma GCC unroll 4
  for (int half = Format<V>::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

// |b - a|^2 over d coordinates
template <class T>
double squared_distance(const T* a, const T* b, int64_t d) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes, chains = 4;
  double total = 0;
  for (int64_t from = 0; from < d; from += kSquares) {
    const int64_t stop = from + kSquares < d ? from + kSquares : d;
    V sum[chains] = {};
    const auto add = [](V chord, V& to) { to += chord * chord; };
    int64_t c = from;
    for (; c + chains * lanes <= stop; c += chains * lanes) {
#pragma GCC unroll 4
      for (int i = 0; i < chains; ++i) add(load(b + c + i * lanes) - load(a + c + i * lanes), sum[i]);
    }
    for (; c + lanes <= stop; c += lanes) add(load(b + c) - load(a + c), sum[0]);
    if (c < stop) add(load_some(b + c, stop - c) - load_some(a + c, stop - c), sum[1]);
    total += total_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  return total;
}

template <class T>
void measure_lines(const View& points, bool energy, const View& out, int64_t begin, int64_t end) {
  const int64_t m = points.size[1], d = points.size[2], step = points.stride[1];
  for (int64_t i = begin; i < end; ++i) {
    const T* p = static_cast<const T*>(points.data) + i * points.stride[0];
    double total = 0;
    for (int64_t s = 0; s + 1 < m; ++s) {
      const double square = squared_distance(p + s * step, p + (s + 1) * step, d);
      total += energy ? square : __builtin_sqrt(square);
    }
    static_cast<T*>(out.data)[i] = T(energy ? total * double(m - 1) : total);
  }
}

// out = force(at) where at(r) is the point r places further on the line than p, at the same coordinates. With kAhead it
// also gives |at(2) - at(1)|^2, while these points are at hand.
template <bool kAhead, class T, class F>
double pull_point(const T* p, int64_t step, int64_t d, T* out, const F& force) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  double total = 0;
  for (int64_t from = 0; from < d; from += kSquares) {
    const int64_t stop = from + kSquares < d ? from + kSquares : d;
    V sum[2] = {};
    const auto pull = [&](const auto& at, V& squares) {
      if constexpr (kAhead) {
        const V chord = at(2) - at(1);
        squares += chord * chord;
      }
      return force(at);
    };
    int64_t c = from;
    for (; c + 2 * lanes <= stop; c += 2 * lanes) {
      store(out + c, pull([&](int64_t r) { return load(p + r * step + c); }, sum[0]));
      store(out + c + lanes, pull([&](int64_t r) { return load(p + r * step + c + lanes); }, sum[1]));
    }
    for (; c + lanes <= stop; c += lanes) {
      store(out + c, pull([&](int64_t r) { return load(p + r * step + c); }, sum[0]));
    }
    if (c < stop) {
      const int64_t rest = stop - c;
      store_some(out + c, pull([&](int64_t r) { return load_some(p + r * step + c, rest); }, sum[1]), rest);
    }
    if constexpr (kAhead) total += total_of(sum[0] + sum[1]);
  }
  return total;
}

template <class T, bool kEnergy>
void pull_lines(const View& grad, const View& points, const View& out, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  const int64_t m = points.size[1], d = points.size[2], step = points.stride[1];
  for (int64_t i = begin; i < end; ++i) {
    const T g = static_cast<const T*>(grad.data)[i];
    const T* p = static_cast<const T*>(points.data) + i * points.stride[0];
    T* to = static_cast<T*>(out.data) + i * m * d;
    if (m == 1 && d > 0) std::memset(to, 0, size_t(d) * sizeof(T));
    if (m <= 1) continue;
    // What a chord is multiplied by.
    const auto weight = [&](double square) {
      if (kEnergy) return T(2 * double(m - 1) * double(g));
      return square == 0 ? T(0) : T(double(g) / __builtin_sqrt(square));
    };
    T before = 0, after = weight(kEnergy ? 1 : squared_distance(p, p + step, d));
    const auto first = [&](const auto& at) -> V { return after * (at(0) - at(1)); };
    const auto inner = [&](const auto& at) -> V {
      const V here = at(0);
      return before * (here - at(-1)) - after * (at(1) - here);
    };
    const auto last = [&](const auto& at) -> V { return before * (at(0) - at(-1)); };
    for (int64_t s = 0; s + 1 < m; ++s, p += step, to += d) {
      const bool ahead = !kEnergy && s + 2 < m;
      double square = 0;
      if (s == 0) {
        square = ahead ? pull_point<!kEnergy>(p, step, d, to, first) : pull_point<false>(p, step, d, to, first);
      } else {
        square = ahead ? pull_point<!kEnergy>(p, step, d, to, inner) : pull_point<false>(p, step, d, to, inner);
      }
      before = after;
      after = weight(square);
    }
    pull_point<false>(p, step, d, to, last);
  }
}

void measure(const View& points, bool energy, const View& out, int64_t begin, int64_t end) {
  if (points.dtype == DType::f64) {
    measure_lines<double>(points, energy, out, begin, end);
  } else {
    measure_lines<float>(points, energy, out, begin, end);
  }
}

void pull(const View& grad, const View& points, bool energy, const View& out, int64_t begin, int64_t end) {
  const bool wide = points.dtype == DType::f64;
  const auto run = wide ? (energy ? pull_lines<double, true> : pull_lines<double, false>)
                        : (energy ? pull_lines<float, true> : pull_lines<float, false>);
  run(grad, points, out, begin, end);
}

}  // namespace

const PolylineKernels polyline = {measure, pull};

}  // namespace FL_ISA
}  // namespace fl
