#include "logistic_means.h"

#include "logistic_tile.h"

namespace fl {
namespace FL_ISA {
namespace {

// E[clip(Y, -last, last)] of a logistic Y in half-widths of a bin, last = bins - 1, and its derivatives.
template <class V>
struct Clipped {
  V value, by_mean, by_log_scale;
};

// log((1 + near) / (1 + far)) = 2 atanh(s) for s = (near - far) / (2 + near + far) <= 1/3, by its Taylor series
template <class V>
FL_INLINE V twice_atanh(V s) {
  constexpr int terms = std::is_same_v<V, f32v> ? 7 : 16;
  const V z = s * s;
  V p = splat<V>(ScalarOf<V>(2) / (2 * terms + 1));
#pragma GCC unroll 16
  for (int k = terms - 1; k >= 1; --k) p = p * z + ScalarOf<V>(2) / (2 * k + 1);
  return s * (p * z) + (s + s);
}

// With t = |mean| and s the scale, the expectation is min(t, last) - s log((1 + near) / (1 + far)) with the mean's
// sign, where near = e^-(|last - t| / s) and far = e^-((last + t) / s): no two terms that could exceed `last` are
// subtracted. N of them in lockstep, since each alone is one chain of dependent instructions.
template <bool kSlopes, int N, class V>
FL_INLINE void clip(const V (&mean)[N], const V (&log_scale)[N], const V (&inverse_scale)[N], const Grid<V>& grid,
                    Clipped<V> (&result)[N]) {
  using S = ScalarOf<V>;
  constexpr int kPowers = kSlopes ? 3 : 2;
  const S last = S(grid.bins - 1);
  V held[N], scale[N], exponents[kPowers * N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    // Beyond a scale of 1e32 the expectation is 0.
    const V inverse = larger(inverse_scale[j] * grid.inverse_gamma, splat<V>(S(1e-32))), t = abs(mean[j]);
    scale[j] = 1 / inverse;
    held[j] = smaller(splat<V>(last), t);
    exponents[kPowers * j] = -abs(last - t) * inverse;
    exponents[kPowers * j + 1] = (-2 * held[j]) * inverse;
    if constexpr (kSlopes) exponents[kPowers * j + 2] = (-2 * last) * inverse;
  }
  Power<V> power[kPowers * N];
  powers(exponents, power);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    const V reflected = sign_bit(mean[j]);
    const V near = power[kPowers * j].value(), far = near * power[kPowers * j + 1].value();
    const V excess = near * -power[kPowers * j + 1].expm1();
    const V loss = twice_atanh(excess / (2 + (near + far)));
    result[j] = {flip(held[j] - scale[j] * loss, reflected), V{}, V{}};
    if constexpr (kSlopes) {
      const V inverse_edges = 1 / ((1 + near) * (1 + far));
      const V below = abs(mean[j]) > last ? near : splat<V>(1);
      result[j].by_mean = below * inverse_edges * -power[kPowers * j + 2].expm1();
      // gap (near - far) / ((1 + near) (1 + far)) - width far / (1 + far) + loss, times -scale
      const V gap = exponents[kPowers * j], width = exponents[kPowers * j + 1];
      const V slope = gap * (excess * inverse_edges) - width * (far * (1 + near) * inverse_edges) - loss;
      result[j].by_log_scale = log_scale[j] < grid.floor ? V{} : flip(scale[j] * slope, reflected);
    }
  }
}

template <class V>
FL_INLINE V to_grid(V y, const Grid<V>& grid) {
  return (y + grid.shift) * grid.inverse_gamma;
}

template <class V>
FL_INLINE V half_widths(V mean, const Grid<V>& grid) {
  return fma(splat<V>(grid.gamma), mean, splat<V>(-grid.shift));
}

// The bin of [first, last] that holds the mean, the nearest one where none does; 0 for NaN.
template <class V>
FL_INLINE V bin_holding(V mean, ScalarOf<V> first, ScalarOf<V> last, const Grid<V>& grid) {
  using S = ScalarOf<V>;
  const V place = clamp((mean + S(grid.bins)) * S(0.5), 0, S(grid.bins - 1));
  const V k = smaller(larger(whole_part(place), splat<V>(first)), splat<V>(last));
  return k == k ? k : V{};
}

// The likeliest bins of N logistics, whose means count half-widths: the mean's, or the open one on its side.
template <int N, class V>
FL_INLINE void likeliest_bins(const V (&mean)[N], const V (&log_scale)[N], const V (&inverse_scale)[N],
                              const Grid<V>& grid, V (&k)[N]) {
  using S = ScalarOf<V>;
  const S last = S(grid.bins - 1);
  V end[N];
  Place<V> places[2 * N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    k[j] = bin_holding(mean[j], 1, last - 1, grid);
    end[j] = mean[j] > 0 ? splat<V>(last) : V{};
    for (int i = 0; i < 2; ++i) {
      const Bin<V> bin = bin_at<V>(__builtin_convertvector(i == 0 ? k[j] : end[j], IntOf<V>), grid);
      places[2 * j + i] = {bin, mean[j], log_scale[j], inverse_scale[j], 1, 0};
    }
  }
  Cell<V> cells[2 * N];
  cells_of(places, grid, cells);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) k[j] = log_prob_of(cells[2 * j + 1]) > log_prob_of(cells[2 * j]) ? end[j] : k[j];
}

// Vectors of elements in lockstep, means in half-widths.
template <class V>
struct Logistics {
  V mean[kLockstep], log_scale[kLockstep], inverse_scale[kLockstep];
};

// Calls compute(logistics, grid, result) and, for each of its vectors, store(at, count, result of that vector, grid).
template <class T, class R, class F, class G>
void for_logistics(const View& mean, const View& log_scale, const LogisticGrid& of, int64_t begin, int64_t end,
                   const F& compute, const G& store) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const Grid<V> grid(of);
  for (int64_t first = begin; first < end; first += kLockstep * lanes) {
    const auto count = [&](int j) { return clamp_count(end - first - j * lanes, lanes); };
    Logistics<V> some;
    V x[kLockstep];
    for (int j = 0; j < kLockstep; ++j) {
      const int64_t at = first + j * lanes;
      some.mean[j] = half_widths(confined(load_lanes(pointer<T>(mean) + at, 1, count(j))), grid);
      some.log_scale[j] = load_lanes(pointer<T>(log_scale) + at, 1, count(j));
      x[j] = -floored(some.log_scale[j], grid);
    }
    Power<V> inverse_scale[kLockstep];
    powers(x, inverse_scale);
    for (int j = 0; j < kLockstep; ++j) some.inverse_scale[j] = inverse_scale[j].value();
    R result[kLockstep];
    compute(some, grid, result);
    for (int j = 0; j < kLockstep && count(j) > 0; ++j) store(first + j * lanes, count(j), result[j], grid);
  }
}

void mean(const View& means, const View& log_scale, const LogisticGrid& of, const View& out, int64_t begin,
          int64_t end) {
  with_floating(means.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = VectorOf<T>;
    for_logistics<T, Clipped<V>>(
        means, log_scale, of, begin, end,
        [](const Logistics<V>& y, const Grid<V>& grid, Clipped<V>(&result)[kLockstep]) {
          clip<false>(y.mean, y.log_scale, y.inverse_scale, grid, result);
        },
        [&](int64_t at, int64_t count, const Clipped<V>& y, const Grid<V>& grid) {
          store_lanes(pointer<ScalarOf<V>>(out) + at, 1, count, to_grid(y.value, grid));
        });
  });
}

void mean_backward(const View& grad, const View& means, const View& log_scale, const LogisticGrid& of,
                   const View& mean_grad, const View& log_scale_grad, int64_t begin, int64_t end) {
  with_floating(means.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = VectorOf<T>;
    for_logistics<T, Clipped<V>>(
        means, log_scale, of, begin, end,
        [](const Logistics<V>& y, const Grid<V>& grid, Clipped<V>(&result)[kLockstep]) {
          clip<true>(y.mean, y.log_scale, y.inverse_scale, grid, result);
        },
        [&](int64_t at, int64_t count, const Clipped<V>& y, const Grid<V>& grid) {
          const V g = load_lanes(pointer<ScalarOf<V>>(grad) + at, 1, count);
          store_lanes(pointer<T>(mean_grad) + at, 1, count, g * y.by_mean);
          store_lanes(pointer<T>(log_scale_grad) + at, 1, count, g * (y.by_log_scale * grid.inverse_gamma));
        });
  });
}

void mode(const View& means, const View& log_scale, const LogisticGrid& of, const View& out, int64_t begin,
          int64_t end) {
  with_floating(means.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = VectorOf<T>;
    for_logistics<T, V>(
        means, log_scale, of, begin, end,
        [](const Logistics<V>& y, const Grid<V>& grid, V(&k)[kLockstep]) {
          likeliest_bins(y.mean, y.log_scale, y.inverse_scale, grid, k);
          for (int j = 0; j < kLockstep; ++j) {
            const V known = y.mean[j] + y.log_scale[j];
            k[j] = known == known ? k[j] : V{};
          }
        },
        [&](int64_t at, int64_t count, V k, const Grid<V>&) { store_bins(out, at, 1, count, k); });
  });
}

// Calls visit(at, pixel, count) for each vector of pixels, `at` in the tile and `pixel` in the image, and
// done(first, pixels) when a tile's are all computed. The tile holds inverse scales and tanh of the coefficients.
template <bool kCoupled, bool kSlopes, class V, class F, class H>
void visit_tiles(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const Tile<V>& tile,
                 const Grid<V>& grid, const F& visit, const H& done) {
  constexpr int64_t lanes = Format<V>::kLanes;
  const unsigned before = flush_subnormals();
  for (int64_t first = begin; first < end; first += tile.width) {
    const int64_t pixels = clamp_count(end - first, tile.width);
    load_tile(mixture.params, image, first, pixels, tile);
    prepare<kCoupled, kSlopes>(tile, grid);
    const int64_t next = first + pixels;
    Ahead ahead(mixture.params, image, next, next + clamp_count(end - next, tile.width), tile.k * tile.width / lanes);
    for (int64_t at = 0; at < pixels; at += lanes) visit(at, first + at, clamp_count(pixels - at, lanes), ahead);
    done(first, pixels);
  }
  restore_subnormals(before);
}

// Of channel c of the N components from i on, given their means in half-widths.
template <bool kSlopes, int N, class V>
FL_INLINE void clip_components(const Tile<V>& tile, int64_t c, int64_t i, int64_t at, const V (&centre)[N],
                               const Grid<V>& grid, Clipped<V> (&y)[N]) {
  V log_scale[N], inverse_scale[N];
  for (int j = 0; j < N; ++j) {
    log_scale[j] = tile.get(tile.log_scale(c, i + j), at);
    inverse_scale[j] = tile.get(tile.inverse_scale(c, i + j), at);
  }
  clip<kSlopes>(centre, log_scale, inverse_scale, grid, y);
}

// Of the three coupled channels of N components: green's mean moves by red's, blue's by both.
template <bool kSlopes, int N, class V>
FL_INLINE void clip_colours(const Tile<V>& tile, int64_t i, int64_t at, const Grid<V>& grid, Clipped<V> (&y)[3][N]) {
  for (int c = 0; c < 3; ++c) {
    V centre[N];
    for (int j = 0; j < N; ++j) {
      const V tau[3] = {tile.get(tile.coefficient(0, i + j), at), tile.get(tile.coefficient(1, i + j), at),
                        tile.get(tile.coefficient(2, i + j), at)};
      centre[j] = half_widths(tile.get(tile.mean(c, i + j), at), grid);
      if (c == 1) centre[j] = fma(tau[0], y[0][j].value, centre[j]);
      if (c == 2) centre[j] = fma(tau[2], y[1][j].value, fma(tau[1], y[0][j].value, centre[j]));
    }
    clip_components<kSlopes>(tile, c, i, at, centre, grid, y[c]);
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls f(i, count) for all components, as many of them from i on: kLockstep as long as there are, then one.
template <class V, class F>
FL_INLINE void for_components(const Tile<V>& tile, const F& f) {
  int64_t i = 0;
  for (; i + kLockstep <= tile.k; i += kLockstep) f(i, Count<kLockstep>());
  for (; i < tile.k; ++i) f(i, Count<1>());
}

template <bool kCoupled, class V>
void mixture_mean_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& out,
                         void* memory) {
  const Tile<V> tile(mixture, memory);
  const Grid<V> grid(mixture.grid);
  const auto visit = [&](int64_t at, int64_t pixel, int64_t count, Ahead& ahead) {
    const V inverse_z = 1 / exponentiate_logits(tile, at);
    const auto put = [&](int64_t c, V sum) {
      auto* to = pointer<ScalarOf<V>>(out) + image * out.stride[0] + c * out.stride[1] + pixel * out.stride[2];
      store_lanes(to, out.stride[2], count, to_grid(sum * inverse_z, grid));
    };
    if constexpr (kCoupled) {
      V sum[3] = {};
      for_components(tile, [&](int64_t i, auto count) {
        constexpr int n = decltype(count)::value;
        Clipped<V> y[3][n];
        clip_colours<false>(tile, i, at, grid, y);
        for (int c = 0; c < 3; ++c) {
          for (int j = 0; j < n; ++j) sum[c] += tile.get(tile.logit(i + j), at) * y[c][j].value;
        }
        for (int j = 0; j < n; ++j) ahead.fetch();
      });
      for (int c = 0; c < 3; ++c) put(c, sum[c]);
    } else {
      for (int64_t c = 0; c < tile.channels; ++c) {
        V sum = {};
        for_components(tile, [&](int64_t i, auto count) {
          constexpr int n = decltype(count)::value;
          V centre[n];
          Clipped<V> y[n];
          for (int j = 0; j < n; ++j) centre[j] = half_widths(tile.get(tile.mean(c, i + j), at), grid);
          clip_components<false>(tile, c, i, at, centre, grid, y);
          for (int j = 0; j < n; ++j) sum += tile.get(tile.logit(i + j), at) * y[j].value;
          for (int j = 0; j < n; ++j) ahead.fetch();
        });
        put(c, sum);
      }
    }
  };
  visit_tiles<kCoupled, false>(mixture, image, begin, end, tile, grid, visit, [](int64_t, int64_t) {});
}

// Puts the gradients of component i, except its logit's, in the places of its parameters; sum_c g_c y_c.
template <int N, class V>
FL_INLINE V backward_colours(const Tile<V>& tile, int64_t i, int64_t at, V inverse_z, const V (&g)[3],
                             const Grid<V>& grid, const Clipped<V> (&y)[3][N], int j) {
  const V share = tile.get(tile.logit(i), at) * inverse_z;
  V tau[3], slope[3];
  for (int64_t which = 0; which < 3; ++which) {
    tau[which] = tile.get(tile.coefficient(which, i), at);
    slope[which] = tile.get(tile.slope(which, i), at);
  }
  V by_centre[3], q = {};
  for (int c = 2; c >= 0; --c) {
    V by_value = share * g[c];
    if (c == 1) by_value += by_centre[2] * tau[2];
    if (c == 0) by_value += by_centre[2] * tau[1] + by_centre[1] * tau[0];
    by_centre[c] = by_value * y[c][j].by_mean;
    q += g[c] * y[c][j].value;
    tile.set(tile.mean(c, i), at, by_centre[c] * grid.gamma);
    tile.set(tile.log_scale(c, i), at, by_value * y[c][j].by_log_scale);
  }
  const V red = y[0][j].value, green = y[1][j].value;
  const V by_tau[3] = {by_centre[1] * red, by_centre[2] * red, by_centre[2] * green};
  for (int64_t which = 0; which < 3; ++which) tile.set(tile.coefficient(which, i), at, by_tau[which] * slope[which]);
  return q;
}

// With y_c the component's clipped means, pi its probability and g the gradient of the output: its logit gets
// pi (q - sum_j pi_j q_j), where q = sum_c g_c y_c.
template <bool kCoupled, class V>
void mixture_mean_backward_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& grad,
                                  const View& params_grad, void* memory) {
  const Tile<V> tile(mixture, memory);
  const Grid<V> grid(mixture.grid);
  const auto visit = [&](int64_t at, int64_t pixel, int64_t count, Ahead& ahead) {
    const V inverse_z = 1 / exponentiate_logits(tile, at);
    const auto upstream = [&](int64_t c) {
      const auto* from = pointer<ScalarOf<V>>(grad) + image * grad.stride[0] + c * grad.stride[1];
      return grid.inverse_gamma * load_lanes(from + pixel * grad.stride[2], grad.stride[2], count);
    };
    V middle = {}, g[3] = {};
    for (int64_t c = 0; kCoupled && c < 3; ++c) g[c] = upstream(c);
    for_components(tile, [&](int64_t first, auto count) {
      constexpr int n = decltype(count)::value;
      V q[n] = {};
      if constexpr (kCoupled) {
        Clipped<V> y[3][n];
        clip_colours<true>(tile, first, at, grid, y);
        for (int j = 0; j < n; ++j) q[j] = backward_colours(tile, first + j, at, inverse_z, g, grid, y, j);
      } else {
        for (int64_t c = 0; c < tile.channels; ++c) {
          const V g = upstream(c);
          V centre[n];
          Clipped<V> y[n];
          for (int j = 0; j < n; ++j) centre[j] = half_widths(tile.get(tile.mean(c, first + j), at), grid);
          clip_components<true>(tile, c, first, at, centre, grid, y);
          for (int j = 0; j < n; ++j) {
            const V by_value = g * (tile.get(tile.logit(first + j), at) * inverse_z);
            q[j] += g * y[j].value;
            tile.set(tile.mean(c, first + j), at, by_value * y[j].by_mean * grid.gamma);
            tile.set(tile.log_scale(c, first + j), at, by_value * y[j].by_log_scale);
          }
        }
      }
      for (int j = 0; j < n; ++j) {
        tile.set(tile.weight(first + j), at, q[j]);
        middle += tile.get(tile.logit(first + j), at) * inverse_z * q[j];
        ahead.fetch();
      }
    });
    for (int64_t i = 0; i < tile.k; ++i) {
      const V share = tile.get(tile.logit(i), at) * inverse_z;
      tile.set(tile.logit(i), at, share * (tile.get(tile.weight(i), at) - middle));
    }
  };
  visit_tiles<kCoupled, true>(mixture, image, begin, end, tile, grid, visit, [&](int64_t first, int64_t pixels) {
    store_tile(params_grad, image, first, pixels, tile);
  });
  finish_streams();
}

template <class V>
FL_INLINE void set_bin(const Tile<V>& tile, int64_t c, int64_t at, V k, const Grid<V>& grid) {
  const Bin<V> bin = bin_at<V>(__builtin_convertvector(k, IntOf<V>), grid);
  tile.set(tile.bin(c), at, bin.x);
  tile.set(tile.bin(c) + 1, at, bin.side);
  tile.set(tile.bin(c) + 2, at, bin.beyond);
}

// Sets the bins of the j-th candidate: the modes of component j, channel by channel; with one channel the bin that
// holds component j's mean, then the first and the last.
template <bool kCoupled, class V>
FL_INLINE void set_candidate(const Tile<V>& tile, int64_t j, int64_t at, const Grid<V>& grid) {
  using S = ScalarOf<V>;
  const S last = S(grid.bins - 1);
  if (tile.channels == 1 && j >= tile.k) return set_bin(tile, 0, at, j == tile.k ? V{} : splat<V>(last), grid);
  for (int64_t c = 0; c < tile.channels; ++c) {
    V centre = half_widths(tile.get(tile.mean(c, j), at), grid);
    if (kCoupled && c == 1) centre = fma(tile.get(tile.coefficient(0, j), at), tile.get(tile.bin(0), at), centre);
    if (kCoupled && c == 2) {
      centre = fma(tile.get(tile.coefficient(1, j), at), tile.get(tile.bin(0), at), centre);
      centre = fma(tile.get(tile.coefficient(2, j), at), tile.get(tile.bin(1), at), centre);
    }
    if (tile.channels == 1) return set_bin(tile, 0, at, bin_holding(centre, 0, last, grid), grid);
    const V mean[1] = {centre}, log_scale[1] = {tile.get(tile.log_scale(c, j), at)};
    const V inverse_scale[1] = {tile.get(tile.inverse_scale(c, j), at)};
    V k[1];
    likeliest_bins(mean, log_scale, inverse_scale, grid, k);
    set_bin(tile, c, at, k[0], grid);
  }
}

template <bool kCoupled, class V>
void mixture_mode_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& out,
                         void* memory) {
  using S = ScalarOf<V>;
  const Tile<V> tile(mixture, memory);
  const Grid<V> grid(mixture.grid);
  const int64_t candidates = tile.channels == 1 ? tile.k + 2 : tile.k;
  const auto visit = [&](int64_t at, int64_t pixel, int64_t count, Ahead& ahead) {
    V top = tile.get(tile.logit(0), at);
    for (int64_t i = 1; i < tile.k; ++i) top = larger(tile.get(tile.logit(i), at), top);
    V best = splat<V>(-S(__builtin_inf())), known = top - top;  // NaN where an infinite logit leaves no probabilities
    for (int64_t p = 0; p < tile.parameters; ++p) {
      const V parameter = tile.get(p, at);
      known = parameter == parameter ? known : parameter;
    }
    for (int64_t j = 0; j < candidates; ++j) {
      set_candidate<kCoupled>(tile, j, at, grid);
      const Totals<V> t = total_components<kCoupled, false>(tile, grid, at, tile.logit(0), ahead);
      const V score = t.most + log(t.sum);
      known = score == score ? known : score;
      for (int64_t c = 0; c < tile.channels; ++c) {
        const V bin = tile.get(tile.bin(c), at);
        tile.set(tile.chosen(c), at, j == 0 ? bin : (score > best ? bin : tile.get(tile.chosen(c), at)));
      }
      best = larger(best, score);
    }
    for (int64_t c = 0; c < tile.channels; ++c) {
      const V k = (tile.get(tile.chosen(c), at) + S(grid.bins - 1)) * S(0.5);
      store_bins(out, image * out.stride[0] + c * out.stride[1] + pixel * out.stride[2], out.stride[2], count,
                 known == known ? k : V{});
    }
  };
  visit_tiles<kCoupled, false>(mixture, image, begin, end, tile, grid, visit, [](int64_t, int64_t) {});
}

void mixture_mean(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& out, void* memory) {
  with_kind(mixture, [&](auto coupled, auto v) {
    mixture_mean_pixels<coupled(), decltype(v)>(mixture, image, begin, end, out, memory);
  });
}

void mixture_mean_backward(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& grad,
                           const View& params_grad, void* memory) {
  with_kind(mixture, [&](auto coupled, auto v) {
    mixture_mean_backward_pixels<coupled(), decltype(v)>(mixture, image, begin, end, grad, params_grad, memory);
  });
}

void mixture_mode(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& out, void* memory) {
  with_kind(mixture, [&](auto coupled, auto v) {
    mixture_mode_pixels<coupled(), decltype(v)>(mixture, image, begin, end, out, memory);
  });
}

}  // namespace

const LogisticMeansKernels logistic_means = {mean,         mean_backward,         mode,
                                             mixture_mean, mixture_mean_backward, mixture_mode};

}  // namespace FL_ISA
}  // namespace fl
