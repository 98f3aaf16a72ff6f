#include "gram.h"

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

// Columns of the Jacobian are taken in panels of so many rows: d columns fit a second-level cache, and the tail of a
// sum costs little.
template <class T>
int64_t panel_rows(int64_t d) {
  const int64_t fit = (int64_t(1) << 17) / (int64_t(sizeof(T)) * (d > 0 ? d : 1)) / 64 * 64;
  return fit < 64 ? 64 : (fit > 1024 ? 1024 : fit);
}

// A line of the cache: columns a power of two apart would push each other out of it.
constexpr int64_t kPadding = 16;

inline float total(f32v v) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter parts[FL_BYTES / 16];
  std::memcpy(parts, &v, sizeof v);
  for (int k = 1; k < FL_BYTES / 16; ++k) parts[0] += parts[k];
  return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

inline double total(f64v v) {
  typedef double Half __attribute__((vector_size(16)));
  Half parts[FL_BYTES / 16];
  std::memcpy(parts, &v, sizeof v);
  for (int k = 1; k < FL_BYTES / 16; ++k) parts[0] += parts[k];
  return parts[0][0] + parts[0][1];
}

// out[s d + t] += <a_s, b_t> for R x C pairs of columns, which lie `stride` apart
template <int R, int C, class T>
void tile(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t count, T* out, int64_t d) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  V sum[R][C] = {};
  const auto add = [&](int64_t k, auto get) {
    V left[R];
#pragma GCC unroll 4
    for (int s = 0; s < R; ++s) left[s] = get(a + s * a_stride + k);
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) {
      const V right = get(b + t * b_stride + k);
#pragma GCC unroll 4
      for (int s = 0; s < R; ++s) sum[s][t] += left[s] * right;
    }
  };
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) add(k, [](const T* p) { return load(p); });
  if (k < count) add(k, [&](const T* p) { return load_some(p, count - k); });
  for (int s = 0; s < R; ++s) {
    for (int t = 0; t < C; ++t) out[s * d + t] += total(sum[s][t]);
  }
}

constexpr int64_t kTileRows = 3, kTileColumns = 4;  // twelve sums, three factors and one more fill sixteen registers

template <class T>
using Tile = void (*)(const T*, int64_t, const T*, int64_t, int64_t, T*, int64_t);

template <class T>
constexpr Tile<T> kTiles[kTileRows][kTileColumns] = {{tile<1, 1, T>, tile<1, 2, T>, tile<1, 3, T>, tile<1, 4, T>},
                                                     {tile<2, 1, T>, tile<2, 2, T>, tile<2, 3, T>, tile<2, 4, T>},
                                                     {tile<3, 1, T>, tile<3, 2, T>, tile<3, 3, T>, tile<3, 4, T>}};

// to[i * stride + r] = from[r * down + i * across]
template <class T>
void gather_columns(const T* from, int64_t down, int64_t across, int64_t rows, int64_t d, T* to, int64_t stride) {
  int64_t done_rows = 0, done_columns = 0;
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4) {
    if (across == 1) {
      done_rows = rows / 4 * 4;
      done_columns = d / 4 * 4;
    }
    for (int64_t r = 0; r < done_rows; r += 4) {
      for (int64_t i = 0; i < done_columns; i += 4) {
        __m128 lines[4];
        for (int k = 0; k < 4; ++k) lines[k] = _mm_loadu_ps(from + (r + k) * down + i);
        _MM_TRANSPOSE4_PS(lines[0], lines[1], lines[2], lines[3]);
        for (int k = 0; k < 4; ++k) _mm_storeu_ps(to + (i + k) * stride + r, lines[k]);
      }
    }
  }
#endif
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = r < done_rows ? done_columns : 0; i < d; ++i) to[i * stride + r] = from[r * down + i * across];
  }
}

template <class T>
void gram_sample(const View& jacobian, const View* weight, T* out, int64_t sample, T* scratch) {
  const int64_t rows = jacobian.size[1], d = jacobian.size[2], panel = panel_rows<T>(d), stride = panel + kPadding;
  const int64_t down = jacobian.stride[1], across = jacobian.stride[2];
  const T* first = static_cast<const T*>(jacobian.data) + sample * jacobian.stride[0];
  T* weighted = scratch + stride * d;
  for (int64_t k = 0; k < d * d; ++k) out[k] = 0;
  for (int64_t begin = 0; begin < rows; begin += panel) {
    const int64_t count = begin + panel < rows ? panel : rows - begin;
    const T *a = first + begin * down, *b = a;
    int64_t a_stride = across, b_stride = across;
    if (down != 1) {
      gather_columns(a, down, across, count, d, scratch, stride);
      a = b = scratch;
      a_stride = b_stride = stride;
    }
    if (weight) {
      const T* w = static_cast<const T*>(weight->data) + sample * weight->stride[0] + begin;
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t k = 0; k < count; ++k) weighted[i * stride + k] = w[k] * b[i * b_stride + k];
      }
      a = weighted;
      a_stride = stride;
    }
    for (int64_t i = 0; i < d; i += kTileRows) {
      const int64_t high = d - i < kTileRows ? d - i : kTileRows;
      for (int64_t j = i; j < d; j += kTileColumns) {
        const int64_t wide = d - j < kTileColumns ? d - j : kTileColumns;
        kTiles<T>[high - 1][wide - 1](a + i* a_stride, a_stride, b + j* b_stride, b_stride, count, out + i* d + j, d);
      }
    }
  }
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < i; ++j) out[i * d + j] = out[j * d + i];
  }
}

template <class T>
int64_t scratch_of(int64_t d) {
  return 2 * d * (panel_rows<T>(d) + kPadding) * int64_t(sizeof(T));
}

int64_t scratch(const View& jacobian) {
  const int64_t d = jacobian.size[2];
  return jacobian.dtype == DType::f64 ? scratch_of<double>(d) : scratch_of<float>(d);
}

void gram_of(const View& jacobian, const View* weight, const View& out, int64_t sample, void* memory) {
  if (jacobian.dtype == DType::f64) {
    auto* to = static_cast<double*>(out.data) + sample * out.stride[0];
    gram_sample(jacobian, weight, to, sample, static_cast<double*>(memory));
  } else {
    auto* to = static_cast<float*>(out.data) + sample * out.stride[0];
    gram_sample(jacobian, weight, to, sample, static_cast<float*>(memory));
  }
}

}  // namespace

const GramKernels gram = {scratch, gram_of};

}  // namespace FL_ISA
}  // namespace fl
