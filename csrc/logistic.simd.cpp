#include "logistic_tile.h"

namespace fl {
namespace FL_ISA {
namespace {

// Calls visit(at, count, cell, log_scale, grid) for each vector of elements; returns whether all bins are in range.
template <class T, class F>
bool visit_elements(const View& bins, const View& mean, const View& log_scale, const LogisticGrid& of, int64_t begin,
                    int64_t end, const F& visit) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const Grid<V> grid(of);
  IntOf<V> wrong = {};
  for (int64_t first = begin; first < end; first += kLockstep * lanes) {
    Place<V> place[kLockstep];
    V x[kLockstep];
    int64_t count[kLockstep];
    for (int j = 0; j < kLockstep; ++j) {
      const int64_t at = first + j * lanes;
      count[j] = clamp_count(end - at, lanes);
      const IntOf<V> k = load_bins<V>(bins, at, 1, count[j]);
      wrong |= (k < 0) | (k >= grid.bins);
      place[j] = {bin_at<V>(k, grid),
                  confined(load_lanes(pointer<T>(mean) + at, 1, count[j])),
                  load_lanes(pointer<T>(log_scale) + at, 1, count[j]),
                  V{},
                  grid.gamma,
                  grid.shift};
      x[j] = -floored(place[j].log_scale, grid);
    }
    Power<V> inverse_scale[kLockstep];
    powers(x, inverse_scale);
    for (int j = 0; j < kLockstep; ++j) place[j].inverse_scale = inverse_scale[j].value();
    Cell<V> cell[kLockstep];
    cells_of(place, grid, cell);
    for (int j = 0; j < kLockstep && count[j] > 0; ++j) {
      visit(first + j * lanes, count[j], cell[j], place[j].log_scale, grid);
    }
  }
  return !any<V>(wrong);
}

template <class T>
bool log_prob_elements(const View& bins, const View& mean, const View& log_scale, const LogisticGrid& grid,
                       const View& out, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  return visit_elements<T>(bins, mean, log_scale, grid, begin, end,
                           [&](int64_t at, int64_t count, const Cell<V>& cell, V, const Grid<V>&) {
                             store_lanes(pointer<ScalarOf<V>>(out) + at, 1, count, log_prob_of(cell));
                           });
}

template <class T>
void backward_elements(const View& grad, const View& bins, const View& mean, const View& log_scale,
                       const LogisticGrid& of, const View& mean_grad, const View& log_scale_grad, int64_t begin,
                       int64_t end) {
  using V = VectorOf<T>;
  visit_elements<T>(bins, mean, log_scale, of, begin, end,
                    [&](int64_t at, int64_t count, const Cell<V>& cell, V ls, const Grid<V>& grid) {
                      const V g = load_lanes(pointer<ScalarOf<V>>(grad) + at, 1, count);
                      const Slope<V> slope = slope_of<V>(cell, ls, grid);
                      store_lanes(pointer<T>(mean_grad) + at, 1, count, g * slope.mean);
                      store_lanes(pointer<T>(log_scale_grad) + at, 1, count, g * slope.log_scale);
                    });
}

bool log_prob(const View& bins, const View& mean, const View& log_scale, const LogisticGrid& grid, const View& out,
              int64_t begin, int64_t end) {
  bool in_range = true;
  with_floating(mean.dtype, [&](auto* type) {
    in_range = log_prob_elements<std::remove_pointer_t<decltype(type)>>(bins, mean, log_scale, grid, out, begin, end);
  });
  return in_range;
}

void backward(const View& grad, const View& bins, const View& mean, const View& log_scale, const LogisticGrid& grid,
              const View& mean_grad, const View& log_scale_grad, int64_t begin, int64_t end) {
  with_floating(mean.dtype, [&](auto* type) {
    backward_elements<std::remove_pointer_t<decltype(type)>>(grad, bins, mean, log_scale, grid, mean_grad,
                                                             log_scale_grad, begin, end);
  });
}

int64_t scratch(const Mixture& mixture) {
  return with_vector(mixture, [&](auto v) { return Tile<decltype(v)>(mixture).bytes(); });
}

template <class V>
bool load_bin_rows(const View& v, int64_t image, int64_t first, int64_t count, const Grid<V>& grid,
                   const Tile<V>& tile) {
  constexpr int64_t lanes = Format<V>::kLanes;
  IntOf<V> wrong = {};
  for (int64_t c = 0; c < tile.channels; ++c) {
    for (int64_t j = 0; j < count; j += lanes) {
      const int64_t at = image * v.stride[0] + c * v.stride[1] + (first + j) * v.stride[2];
      const IntOf<V> k = load_bins<V>(v, at, v.stride[2], clamp_count(count - j, lanes));
      wrong |= (k < 0) | (k >= grid.bins);
      const Bin<V> bin = bin_at<V>(k, grid);
      tile.set(tile.bin(c), j, bin.x);
      tile.set(tile.bin(c) + 1, j, bin.side);
      tile.set(tile.bin(c) + 2, j, bin.beyond);
    }
  }
  return !any<V>(wrong);
}

// Calls visit(at, pixel, count, totals, z) for each vector of pixels of a tile, `at` in the tile and `pixel` in the
// image, and done(first, pixels) when the tile's are all computed. Returns whether all bins are in range.
template <bool kCoupled, bool kSlopes, class V, class F, class H>
bool visit_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const Tile<V>& tile,
                  const F& visit, const H& done) {
  constexpr int64_t lanes = Format<V>::kLanes;
  const unsigned mode = flush_subnormals();
  const Grid<V> grid(mixture.grid);
  bool in_range = true;
  for (int64_t first = begin; first < end; first += tile.width) {
    const int64_t pixels = clamp_count(end - first, tile.width);
    load_tile(mixture.params, image, first, pixels, tile);
    in_range = load_bin_rows(mixture.bins, image, first, pixels, grid, tile) && in_range;
    prepare<kCoupled, kSlopes>(tile, grid);
    const int64_t next = first + pixels;
    Ahead ahead(mixture.params, image, next, next + clamp_count(end - next, tile.width), tile.k * tile.width / lanes);
    for (int64_t at = 0; at < pixels; at += lanes) {
      const int64_t count = clamp_count(pixels - at, lanes);
      const V z = exponentiate_logits(tile, at);
      visit(at, first + at, count, total_components<kCoupled, kSlopes>(tile, grid, at, tile.exponent(0), ahead), z);
    }
    done(first, pixels);
  }
  restore_subnormals(mode);
  return in_range;
}

template <bool kCoupled, class V>
double mixture_log_prob_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View* out,
                               void* memory, bool& in_range) {
  double total = 0;
  const auto visit = [&](int64_t, int64_t pixel, int64_t count, const Totals<V>& t, V z) {
    const V value = t.most + (log(t.sum) - log(z));
    if (out != nullptr) {
      store_lanes(pointer<ScalarOf<V>>(*out) + image * out->stride[0] + pixel, 1, count, value);
    }
    for (int64_t l = 0; l < count; ++l) total += double(value[l]);
  };
  const bool good = visit_pixels<kCoupled, false>(mixture, image, begin, end, Tile<V>(mixture, memory), visit,
                                                  [](int64_t, int64_t) {});
  in_range = in_range && good;
  return total;
}

template <bool kCoupled, class V>
void mixture_backward_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& grad,
                             const View& params_grad, void* memory) {
  const Tile<V> tile(mixture, memory);
  const auto* upstream = pointer<ScalarOf<V>>(grad) + image * grad.stride[0];
  const auto visit = [&](int64_t at, int64_t pixel, int64_t count, const Totals<V>& t, V z) {
    const V g = grad.ndim == 1 ? splat<V>(*upstream) : load_lanes(upstream + pixel, 1, count);
    const V to_share = g / t.sum, to_prior = g / z;
    for (int64_t i = 0; i < tile.k; ++i) {
      const V share = to_share * tile.get(tile.weight(i), at);
      tile.set(tile.logit(i), at, share - to_prior * tile.get(tile.logit(i), at));
      for (int64_t p = tile.k + i; p < tile.parameters; p += tile.k) tile.set(p, at, share * tile.get(p, at));
    }
  };
  visit_pixels<kCoupled, true>(mixture, image, begin, end, tile, visit, [&](int64_t first, int64_t pixels) {
    store_tile(params_grad, image, first, pixels, tile);
  });
  finish_streams();
}

double mixture_log_prob(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View* out,
                        void* memory, bool& in_range) {
  double total = 0;
  with_kind(mixture, [&](auto coupled, auto v) {
    total = mixture_log_prob_pixels<coupled(), decltype(v)>(mixture, image, begin, end, out, memory, in_range);
  });
  return total;
}

void mixture_backward(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& grad,
                      const View& params_grad, void* memory) {
  with_kind(mixture, [&](auto coupled, auto v) {
    mixture_backward_pixels<coupled(), decltype(v)>(mixture, image, begin, end, grad, params_grad, memory);
  });
}

// log(v / (1 - v)), v kept off 0 and 1
template <class V>
V logit_of(V v) {
  const V inside = clamp(v, ScalarOf<V>(0x1p-25), ScalarOf<V>(1 - 0x1p-24));
  return log(inside) - log1p(-inside);
}

template <class V>
struct Drawn {
  V component;
  V threshold;  // NaN where u or a logit is
};

// The smallest component whose cumulated probability exceeds u, for each lane.
template <class V>
Drawn<V> draw_component(const Tile<V>& tile, int64_t at, V u) {
  const V threshold = u * exponentiate_logits(tile, at);
  V sum = {}, passed = {};
  for (int64_t i = 0; i + 1 < tile.k; ++i) {
    sum += tile.get(tile.logit(i), at);
    passed = sum > threshold ? passed : passed + 1;
  }
  return {passed, threshold};
}

template <class V>
void mixture_sample_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& uniforms,
                           const View& out, void* memory) {
  using S = ScalarOf<V>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const Grid<V> grid(mixture.grid);
  const Tile<V> tile(mixture, memory);
  const bool discrete = out.dtype == DType::u8 || out.dtype == DType::i32;
  const S last = S(grid.bins - 1);
  for (int64_t start = begin; start < end; start += tile.width) {
    const int64_t pixels = clamp_count(end - start, tile.width);
    load_tile(mixture.params, image, start, pixels, tile);
    for (int64_t at = 0; at < pixels; at += lanes) {
      const int64_t count = clamp_count(pixels - at, lanes), first = start + at;
      const auto uniform = [&](int64_t c) {
        const auto* from = pointer<S>(uniforms) + image * uniforms.stride[0] + c * uniforms.stride[1];
        return load_lanes(from + first * uniforms.stride[2], uniforms.stride[2], count);
      };
      const auto [component, threshold] = draw_component(tile, at, uniform(0));
      int64_t offset[lanes];
      for (int64_t l = 0; l < lanes; ++l) offset[l] = int64_t(component[l]) * tile.width + at + l;
      const auto own = [&](int64_t parameter) {
        S some[lanes];
        for (int64_t l = 0; l < lanes; ++l) some[l] = tile.data[parameter * tile.width + offset[l]];
        return load(some);
      };
      V raw[3] = {};
      for (int64_t j = 0; mixture.grid.coupled && j < 3; ++j) raw[j] = own(tile.coefficient(j, 0));
      const Coupling<V> coupling = coupling_of(raw);
      V drawn[2] = {};
      for (int64_t c = 0; c < mixture.channels; ++c) {
        V centre = fma(splat<V>(grid.gamma), confined(own(tile.mean(c, 0))), splat<V>(-grid.shift));
        if (mixture.grid.coupled && c == 1) centre = fma(coupling.tau[0], drawn[0], centre);
        if (mixture.grid.coupled && c == 2) {
          centre = fma(coupling.tau[2], drawn[1], fma(coupling.tau[1], drawn[0], centre));
        }
        const V log_scale = smaller(floored(own(tile.log_scale(c, 0)), grid), splat<V>(64));
        const V scale = power(log_scale).value();
        // In half-widths of a bin, from the centre of the grid.
        V y = clamp(fma(grid.gamma * scale, logit_of(uniform(1 + c)), centre), -last, last);
        y = threshold == threshold ? y : threshold;
        const int64_t to = image * out.stride[0] + c * out.stride[1] + first * out.stride[2];
        if (discrete) {
          V k = clamp(whole_part((y + S(grid.bins)) * S(0.5)), 0, last);
          y = 2 * k - last;
          store_bins(out, to, out.stride[2], count, k == k ? k : V{});
        } else {
          store_lanes(pointer<S>(out) + to, out.stride[2], count, (y + grid.shift) * grid.inverse_gamma);
        }
        if (c < 2) drawn[c] = y;
      }
    }
  }
}

void mixture_sample(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& uniforms,
                    const View& out, void* memory) {
  with_vector(mixture,
              [&](auto v) { mixture_sample_pixels<decltype(v)>(mixture, image, begin, end, uniforms, out, memory); });
}

}  // namespace

const LogisticKernels logistic = {log_prob, backward, scratch, mixture_log_prob, mixture_backward, mixture_sample};

}  // namespace FL_ISA
}  // namespace fl
