#include "spline.h"

#include "simd.h"
#include "transpose.h"

namespace fl {
namespace FL_ISA {
namespace {

constexpr int kMaxCount = kMaxDegree + 1;  // control points that a place on a curve depends on

template <class T>
const T* row(const View& v, int64_t i) {
  return static_cast<const T*>(v.data) + (v.size[0] == 1 ? 0 : i) * v.stride[0];
}

template <class T>
T* cube(const View& v, int64_t i) {
  return static_cast<T*>(v.data) + i * v.size[1] * v.size[2];
}

// One vector, or one number where V is T.
template <class V, class T>
V get(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
void put(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// Places `begin` to `end` of a block of kSamples: place s depends on the control points from first[s] on, by
// weights[j * kSamples + s]. Those up to last[s] depend on the same points, and share what is loaded: all between two
// knots where t is sorted.
template <class T>
struct Places {
  const T* weights;
  const int32_t* first;
  const int32_t* last;
  int64_t begin, end;
};

// Number of knots between the ends that are at most x; 0 for NaN.
template <class T>
int32_t span_of(T x, const T* inner, int64_t size) {
  const T* from = inner;
  while (size > 0) {
    const int64_t half = size / 2;
    if (from[half] <= x) {
      from += half + 1;
      size -= half + 1;
    } else {
      size = half;
    }
  }
  return int32_t(from - inner);
}

// Clamped, and distinct between the ends.
template <class T>
bool are_proper(const T* knots, int64_t k, int degree) {
  bool proper = true;
  for (int64_t i = 1; i <= degree; ++i) proper &= (knots[i] == knots[0]) & (knots[k + i] == knots[k]);
  for (int64_t i = degree + 1; i <= k; ++i) proper &= knots[i] > knots[i - 1];
  return proper;
}

// The recursion of fastlatent/ops/spline over a block of `size` places; false if one lies outside the knots.
template <class T>
bool weigh_block(const T* t, int64_t size, const T* knots, int64_t k, int degree, int order, T* weights,
                 int32_t* first) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const T low = knots[0], high = knots[k];
  const T* inner = knots + degree + 1;
  bool inside = true;
  int32_t span = 0;
  for (int64_t s = 0; s < size; s += lanes) {
    T place[lanes];
    T near[2 * kMaxDegree][lanes];
    for (int64_t l = 0; l < lanes; ++l) {
      const T x = s + l < size ? t[s + l] : low;
      inside &= !((x < low) | (x > high));
      if (!(knots[degree + span] <= x && x < inner[span])) span = span_of(x, inner, k - degree - 1);
      place[l] = x;
      first[s + l] = span;
      for (int q = 0; q < 2 * degree; ++q) near[q][l] = knots[span + 1 + q];
    }
    const V x = load(place);
    V w[kMaxCount];
    w[0] = x - x + 1;  // NaN for NaN, at every order
    for (int r = 1; r <= degree; ++r) {
      V saved = {};
      for (int j = 0; j < r; ++j) {
        const V left = load(near[degree - r + j]), right = load(near[degree + j]);
        const V part = w[j] / (right - left);
        if (r <= degree - order) {
          w[j] = saved + (right - x) * part;
          saved = (x - left) * part;
        } else {
          w[j] = saved - T(r) * part;
          saved = T(r) * part;
        }
      }
      w[r] = saved;
    }
    for (int j = 0; j <= degree; ++j) store(weights + j * kSamples + s, w[j]);
  }
  int32_t* last = first + kSamples;
  for (int64_t s = size - 1; s >= 0; --s) {
    last[s] = s + 1 < size && first[s + 1] == first[s] ? last[s + 1] : int32_t(s);
  }
  return inside;
}

// out[s] = sum_j weight_j in[first[s] + j] in kWide vectors of columns. `count` is the number of control points; kCount
// is it too where it is known, and then they stay in registers. Rows have `width` numbers, and `out` starts at the
// first place.
template <class V, int kCount, int kWide, class T>
void combine(const Places<T>& places, int count, const T* in, T* out, int64_t width) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  for (int64_t s = places.begin; s < places.end;) {
    const int64_t stop = places.last[s] < places.end ? places.last[s] + 1 : places.end;
    const T* points = in + places.first[s] * width;
    V near[kCount + 1][kWide];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) near[j][c] = get<V>(points + j * width + c * lanes);
    }
    for (; s < stop; ++s, out += width) {
      V sum[kWide] = {};
#pragma GCC unroll 4
      for (int j = 0; j < (kCount > 0 ? kCount : count); ++j) {
        const T weight = places.weights[j * kSamples + s];
#pragma GCC unroll 2
        for (int c = 0; c < kWide; ++c) {
          if constexpr (kCount > 0) {
            sum[c] += weight * near[j][c];
          } else {
            sum[c] += weight * get<V>(points + j * width + c * lanes);
          }
        }
      }
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) put(out + c * lanes, sum[c]);
    }
  }
}

// The transpose: out[first[s] + j] += weight_j in[s], where `in` starts at the first place.
template <class V, int kCount, int kWide, class T>
void distribute(const Places<T>& places, int count, const T* in, T* out, int64_t width) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  for (int64_t s = places.begin; s < places.end;) {
    const int64_t stop = places.last[s] < places.end ? places.last[s] + 1 : places.end;
    T* points = out + places.first[s] * width;
    V sum[kCount + 1][kWide] = {};  // joins `out` at the end, so that runs do not wait for each other's stores
    for (; s < stop; ++s, in += width) {
      V grad[kWide];
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) grad[c] = get<V>(in + c * lanes);
#pragma GCC unroll 4
      for (int j = 0; j < (kCount > 0 ? kCount : count); ++j) {
        const T weight = places.weights[j * kSamples + s];
#pragma GCC unroll 2
        for (int c = 0; c < kWide; ++c) {
          if constexpr (kCount > 0) {
            sum[j][c] += weight * grad[c];
          } else {
            T* to = points + j * width + c * lanes;
            put(to, get<V>(to) + weight * grad[c]);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 2
      for (int c = 0; c < kWide; ++c) {
        T* to = points + j * width + c * lanes;
        put(to, get<V>(to) + sum[j][c]);
      }
    }
  }
}

// Columns from `c` on, in as many pieces of kWide vectors as fit; where they end.
template <class V, int kCount, int kWide, class T>
int64_t columns(bool backward, const Places<T>& places, int count, const T* in, T* out, int64_t width, int64_t c) {
  constexpr int64_t step = kWide * sizeof(V) / sizeof(T);
  for (; c + step <= width; c += step) {
    if (backward) {
      distribute<V, kCount, kWide>(places, count, in + c, out + c, width);
    } else {
      combine<V, kCount, kWide>(places, count, in + c, out + c, width);
    }
  }
  return c;
}

template <int kCount, class T>
void apply_counted(bool backward, const Places<T>& places, int count, const T* in, T* out, int64_t width) {
  using V = VectorOf<T>;
  int64_t c = columns<V, kCount, 2>(backward, places, count, in, out, width, 0);
  c = columns<V, kCount, 1>(backward, places, count, in, out, width, c);
  columns<T, kCount, 1>(backward, places, count, in, out, width, c);
}

// Forward, `in` holds the control points of one curve and `out` receives its points at these places; backward, `in`
// holds gradients at these places, and what they mean for the control points is added to `out`.
template <class T>
void apply(bool backward, const Places<T>& places, int count, const T* in, T* out, int64_t width) {
  switch (count) {
    case 2:
      return apply_counted<2>(backward, places, count, in, out, width);
    case 3:
      return apply_counted<3>(backward, places, count, in, out, width);
    case 4:
      return apply_counted<4>(backward, places, count, in, out, width);
    default:
      return apply_counted<0>(backward, places, count, in, out, width);
  }
}

template <class T>
void zero(T* p, int64_t size) {
  if (size > 0) std::memset(p, 0, size_t(size) * sizeof(T));
}

// Numbers of scratch for one block of places: their weights, then `first` and `last`.
inline int64_t block_size(int degree) { return kSamples * (degree + 3); }

// Places s to s + size of what all curves share, within one block.
template <class T>
Places<T> places_of(const SplineTask& task, int64_t s, int64_t size) {
  const int64_t block = s / kSamples;
  const T* weights = static_cast<const T*>(task.scratch) + block * block_size(task.degree);
  const auto* first = reinterpret_cast<const int32_t*>(weights + kSamples * (task.degree + 1));
  return {weights, first, first + kSamples, s - block * kSamples, s - block * kSamples + size};
}

// As many curves as a vector has lanes, side by side: number i of each curve fills vector i of the tile. Lanes beyond
// the last curve repeat the first.
template <class T>
void tile(const T* from, int64_t stride, int64_t curves, int64_t size, T* tiled) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t at = i + lanes <= size || size < lanes ? i : size - lanes;  // the last one overlaps
    V square[lanes];
    if (curves == lanes && size >= lanes) {
#pragma GCC unroll 16
      for (int64_t l = 0; l < lanes; ++l) square[l] = load(from + l * stride + at);
    } else {
      for (int64_t l = 0; l < lanes; ++l) {
        square[l] = load_some(from + (l < curves ? l : 0) * stride + at, size < lanes ? size : lanes);
      }
    }
    transpose(square);
#pragma GCC unroll 16
    for (int64_t l = 0; l < lanes; ++l) store(tiled + (at + l) * lanes, square[l]);
  }
}

template <class T>
void untile(const T* tiled, int64_t size, T* to, int64_t stride, int64_t curves) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t at = i + lanes <= size || size < lanes ? i : size - lanes;
    V square[lanes];
#pragma GCC unroll 16
    for (int64_t l = 0; l < lanes; ++l) square[l] = load(tiled + (at + l) * lanes);
    transpose(square);
    if (curves == lanes && size >= lanes) {
#pragma GCC unroll 16
      for (int64_t l = 0; l < lanes; ++l) store(to + l * stride + at, square[l]);
    } else {
      for (int64_t l = 0; l < curves; ++l) {
        store_some(to + l * stride + at, square[l], size < lanes ? size : lanes);
      }
    }
  }
}

constexpr int64_t kTileBytes = 1 << 15;  // each of the two tiles

// Curves with fewer coordinates than a vector has lanes.
template <class T>
void shared_tiles(const SplineTask& task, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes, room = kTileBytes / int64_t(sizeof(T));
  const int count = task.degree + 1;
  const int64_t d = task.points.size[2], m = task.t.size[1], controls = task.knots.size[1] - count;
  alignas(64) T control[room + lanes * lanes], samples[room + lanes * lanes];
  int64_t block = kSamples;
  while (block * d * lanes > room) block /= 2;
  for (int64_t i = begin; i < end; i += lanes) {
    const int64_t curves = end - i < lanes ? end - i : lanes;
    if (task.backward) {
      zero(control, controls * d * lanes);
    } else {
      tile(cube<T>(task.points, i), controls * d, curves, controls * d, control);
    }
    for (int64_t s = 0; s < m; s += block) {
      const Places<T> places = places_of<T>(task, s, m - s < block ? m - s : block);
      if (task.backward) {
        tile(cube<T>(task.points, i) + s * d, m * d, curves, (places.end - places.begin) * d, samples);
        apply(true, places, count, samples, control, d * lanes);
      } else {
        apply(false, places, count, control, samples, d * lanes);
        untile(samples, (places.end - places.begin) * d, cube<T>(task.out, i) + s * d, m * d, curves);
      }
    }
    if (task.backward) untile(control, controls * d, cube<T>(task.out, i), controls * d, curves);
  }
}

// One curve; `places_at(s, size)` yields the places from s on.
template <class T, class F>
void one_curve(const SplineTask& task, int64_t i, const F& places_at) {
  const int count = task.degree + 1;
  const int64_t d = task.points.size[2], m = task.t.size[1], controls = task.knots.size[1] - count;
  const T* in = cube<T>(task.points, i);
  T* out = cube<T>(task.out, i);
  if (task.backward) zero(out, controls * d);
  for (int64_t s = 0; s < m; s += kSamples) {
    const Places<T> places = places_at(s, m - s < kSamples ? m - s : kSamples);
    if (task.backward) {
      apply(true, places, count, in + s * d, out, d);
    } else {
      apply(false, places, count, in, out + s * d, d);
    }
  }
}

template <class T>
void shared_curves(const SplineTask& task, int64_t begin, int64_t end) {
  const int64_t d = task.points.size[2], controls = task.knots.size[1] - task.degree - 1;
  if (d < Format<VectorOf<T>>::kLanes && controls * d * FL_BYTES <= kTileBytes) {
    return shared_tiles<T>(task, begin, end);
  }
  for (int64_t i = begin; i < end; ++i) {
    one_curve<T>(task, i, [&](int64_t s, int64_t size) { return places_of<T>(task, s, size); });
  }
}

template <class T>
int64_t own_curves(const SplineTask& task, int64_t begin, int64_t end) {
  const int64_t k = task.knots.size[1] - task.degree - 1;
  alignas(64) T weights[kMaxCount * kSamples];
  int32_t first[2 * kSamples];
  int64_t wrong = -1;
  for (int64_t i = begin; i < end && wrong < 0; ++i) {
    const T* t = row<T>(task.t, i);
    const T* knots = row<T>(task.knots, i);
    bool proper = are_proper(knots, k, task.degree);
    one_curve<T>(task, i, [&](int64_t s, int64_t size) {
      proper &= weigh_block(t + s, size, knots, k, task.degree, task.order, weights, first);
      return Places<T>{weights, first, first + kSamples, 0, size};
    });
    if (!proper) wrong = i;
  }
  return wrong;
}

template <class T>
bool weigh_all(const SplineTask& task) {
  const int64_t m = task.t.size[1], k = task.knots.size[1] - task.degree - 1;
  const T* t = row<T>(task.t, 0);
  const T* knots = row<T>(task.knots, 0);
  bool proper = are_proper(knots, k, task.degree);
  for (int64_t s = 0; s < m; s += kSamples) {
    T* weights = static_cast<T*>(task.scratch) + s / kSamples * block_size(task.degree);
    auto* first = reinterpret_cast<int32_t*>(weights + kSamples * (task.degree + 1));
    proper &=
        weigh_block(t + s, m - s < kSamples ? m - s : kSamples, knots, k, task.degree, task.order, weights, first);
  }
  return proper;
}

bool weigh(const SplineTask& task) {
  return task.t.dtype == DType::f64 ? weigh_all<double>(task) : weigh_all<float>(task);
}

void shared(const SplineTask& task, int64_t begin, int64_t end) {
  if (task.t.dtype == DType::f64) {
    shared_curves<double>(task, begin, end);
  } else {
    shared_curves<float>(task, begin, end);
  }
}

int64_t own(const SplineTask& task, int64_t begin, int64_t end) {
  return task.t.dtype == DType::f64 ? own_curves<double>(task, begin, end) : own_curves<float>(task, begin, end);
}

}  // namespace

const SplineKernels spline = {weigh, shared, own};

}  // namespace FL_ISA
}  // namespace fl
