#include "logistic.h"

#include <type_traits>

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

// The constants of a grid in the arithmetic of V.
template <class V>
struct Grid {
  using S = ScalarOf<V>;
  explicit Grid(const LogisticGrid& grid)
      : bins(ScalarIntOf<V>(grid.bins)),
        gamma(S(grid.gamma)),
        inverse_gamma(S(1 / grid.gamma)),
        shift(S(grid.shift)),
        floor(S(grid.min_log_scale)),
        log_width(S(__builtin_log(2 / grid.gamma))) {}
  ScalarIntOf<V> bins;
  S gamma, inverse_gamma, shift, floor, log_width;
};

// Where a bin lies: x = 2k - n + 1, and whether it is the first or the last.
template <class V>
struct Bin {
  V x;
  IntOf<V> low, high;
};

template <class V>
Bin<V> bin_at(IntOf<V> k, const Grid<V>& grid) {
  return {__builtin_convertvector(2 * k - (grid.bins - 1), V), k == 0, k == grid.bins - 1};
}

template <class V>
V select(IntOf<V> mask, V a, V b) {
  return mask ? a : b;
}

// The factors of P(k) = weight e^-decay / (near far), and what their derivatives need.
template <class V>
struct Cell {
  V inverse_scale;
  V decay;   // max(alpha, 0) - [inner bin, delta <= 1] log delta
  V weight;  // 1 - e^-delta, divided by delta where delta <= 1; 1 at the ends of the grid
  V near;    // 1 + e^-|alpha|
  V far;     // 1 + e^-beta; 1 at the ends
  V alpha, beta, delta;
  V e_alpha;  // e^-|alpha|
  V e_beta;   // e^-beta; 0 at the ends
  V e_delta;  // e^-delta
  V spread;   // 1 - e^-2|z|; 1 at the ends
  V sign;     // of the derivative with respect to the mean
  IntOf<V> inner, narrow;
};

// `lower`, `centre`, `upper`: the bin's edges and centre minus the mean, in half-widths.
template <class V>
Cell<V> cell_of(const Bin<V>& bin, V lower, V centre, V upper, V log_scale, const Grid<V>& grid) {
  using S = ScalarOf<V>;
  Cell<V> c;
  const V one = splat<V>(1);
  const V lambda = select<V>(log_scale < grid.floor, splat<V>(grid.floor), log_scale);
  c.inverse_scale = exp_fast(-lambda);
  const V h = c.inverse_scale * grid.inverse_gamma;
  const IntOf<V> right = ((centre >= 0) & ~bin.low) | bin.high;
  c.inner = ~(bin.low | bin.high);
  c.sign = select<V>(right, one, -one);
  c.delta = 2 * h;
  c.alpha = select<V>(right, lower, -upper) * h;
  c.beta = select<V>(right, upper, -lower) * h;
  const V z2 = 2 * (abs(centre) * h);

  c.e_alpha = decay(abs(c.alpha)).value;
  const Decay<V> width = decay(c.delta), distance = decay(z2);
  c.e_delta = width.value;
  c.e_beta = select<V>(c.inner, c.e_alpha * select<V>(z2 >= c.delta, width.value, distance.value), V{});
  c.spread = select<V>(c.inner, distance.rest, one);
  c.near = 1 + c.e_alpha;
  c.far = 1 + c.e_beta;

  c.narrow = c.inner & (c.delta <= 1);
  c.weight = select<V>(c.inner, select<V>(c.narrow, mean_decay(c.delta), width.rest), one);
  c.decay = select<V>(c.alpha > 0, c.alpha, V{}) - select<V>(c.narrow, S(grid.log_width) - lambda, V{});
  return c;
}

// d log P / d mean and d log P / d log_scale; `near`, `far` and `weight` come inverted.
template <class V>
struct Slope {
  V mean, log_scale;
};

template <class V>
Slope<V> slope_of(const Cell<V>& c, V near, V far, V weight, V log_scale, const Grid<V>& grid) {
  const V sigma = select<V>(c.alpha >= 0, splat<V>(1), c.e_alpha) * near;
  const V g = sigma * c.spread * far;
  const V loss = c.beta * (c.e_beta * far) + select<V>(c.narrow, c.e_delta, c.delta * c.e_delta) * weight;
  const V scale = c.alpha * sigma - select<V>(c.inner, loss, V{});
  return {c.sign * g * c.inverse_scale, select<V>(log_scale < grid.floor, V{}, scale)};
}

template <class V>
IntOf<V> load_bins(const View& v, int64_t at, int64_t stride, int64_t count) {
  constexpr int64_t lanes = Format<V>::kLanes;
  ScalarIntOf<V> k[lanes] = {};
  const auto fill = [&](const auto* from) {
    if (stride == 1 && count == lanes) {
      for (int64_t l = 0; l < lanes; ++l) k[l] = from[l];
    } else {
      for (int64_t l = 0; l < count; ++l) k[l] = from[l * stride];
    }
  };
  if (v.dtype == DType::u8) {
    fill(static_cast<const uint8_t*>(v.data) + at);
  } else {
    fill(static_cast<const int32_t*>(v.data) + at);
  }
  IntOf<V> result;
  std::memcpy(&result, k, sizeof result);
  return result;
}

template <class T>
VectorOf<T> load_lanes(const T* from, int64_t stride, int64_t count) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  if (stride == 1) return count == lanes ? load(from) : load_some(from, count);
  T some[lanes] = {};
  for (int64_t l = 0; l < count; ++l) some[l] = from[l * stride];
  return load(some);
}

template <class T>
void store_lanes(T* to, int64_t stride, int64_t count, VectorOf<T> v) {
  constexpr int64_t lanes = Format<VectorOf<T>>::kLanes;
  if (stride == 1) {
    if (count == lanes) return store(to, v);
    return store_some(to, v, count);
  }
  T some[lanes];
  store(some, v);
  for (int64_t l = 0; l < count; ++l) to[l * stride] = some[l];
}

template <class T>
T* pointer(const View& v) {
  return static_cast<T*>(v.data);
}

template <class V>
bool any(IntOf<V> mask) {
  for (int l = 0; l < Format<V>::kLanes; ++l) {
    if (mask[l] != 0) return true;
  }
  return false;
}

template <class V>
Cell<V> cell_at(const Bin<V>& bin, V mean, V log_scale, const Grid<V>& grid) {
  const auto edge = [&](ScalarOf<V> offset) { return fma(splat<V>(-grid.gamma), mean, bin.x + (grid.shift + offset)); };
  return cell_of(bin, edge(-1), edge(0), edge(1), log_scale, grid);
}

// Relative accuracy down to log P = -0: log1p where P is near 1.
template <class V>
V log_prob_of(const Cell<V>& c) {
  const V excess = c.e_alpha + c.e_beta + c.e_alpha * c.e_beta;
  const V share = c.weight / (1 + excess);
  const V missing = (select<V>(c.inner, c.e_delta, V{}) + excess) / (1 + excess);
  const IntOf<V> likely = ~c.narrow & (share >= ScalarOf<V>(0.5));
  return select<V>(likely, log1p(-missing), log(share)) - c.decay;
}

template <class T>
bool log_prob_elements(const View& bins, const View& mean, const View& log_scale, const LogisticGrid& of,
                       const View& out, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  const Grid<V> grid(of);
  IntOf<V> wrong = {};
  for (int64_t j = begin; j < end; j += Format<V>::kLanes) {
    const int64_t count = end - j < Format<V>::kLanes ? end - j : Format<V>::kLanes;
    const IntOf<V> k = load_bins<V>(bins, j, 1, count);
    wrong |= (k < 0) | (k >= grid.bins);
    const V m = load_lanes(pointer<T>(mean) + j, 1, count), ls = load_lanes(pointer<T>(log_scale) + j, 1, count);
    store_lanes(pointer<ScalarOf<V>>(out) + j, 1, count, log_prob_of(cell_at(bin_at<V>(k, grid), m, ls, grid)));
  }
  return !any<V>(wrong);
}

template <class T>
void backward_elements(const View& grad, const View& bins, const View& mean, const View& log_scale,
                       const LogisticGrid& of, const View& mean_grad, const View& log_scale_grad, int64_t begin,
                       int64_t end) {
  using V = VectorOf<T>;
  const Grid<V> grid(of);
  for (int64_t j = begin; j < end; j += Format<V>::kLanes) {
    const int64_t count = end - j < Format<V>::kLanes ? end - j : Format<V>::kLanes;
    const V m = load_lanes(pointer<T>(mean) + j, 1, count), ls = load_lanes(pointer<T>(log_scale) + j, 1, count);
    const V g = load_lanes(pointer<ScalarOf<V>>(grad) + j, 1, count);
    const Cell<V> c = cell_at(bin_at<V>(load_bins<V>(bins, j, 1, count), grid), m, ls, grid);
    const Slope<V> s = slope_of<V>(c, 1 / c.near, 1 / c.far, 1 / c.weight, ls, grid);
    store_lanes(pointer<T>(mean_grad) + j, 1, count, g * s.mean);
    store_lanes(pointer<T>(log_scale_grad) + j, 1, count, g * s.log_scale);
  }
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

// tanh of the three coefficients of a component and its derivative, with one division
template <class V>
struct Coupling {
  V tau[3], slope[3];
};

template <class V>
Coupling<V> coupling_of(const V (&raw)[3]) {
  Coupling<V> result;
  Decay<V> e[3];
  for (int j = 0; j < 3; ++j) e[j] = decay(2 * abs(raw[j]));
  const V d0 = 1 + e[0].value, d1 = 1 + e[1].value, d2 = 1 + e[2].value;
  const V inverse = 1 / (d0 * d1 * d2);
  const V each[3] = {inverse * (d1 * d2), inverse * (d0 * d2), inverse * (d0 * d1)};
  for (int j = 0; j < 3; ++j) {
    result.tau[j] = copysign(e[j].rest * each[j], raw[j]);
    result.slope[j] = 4 * e[j].value * (each[j] * each[j]);
  }
  return result;
}

// The parameters of one group of pixels, one pixel in each lane.
template <class T>
struct Pixels {
  using V = VectorOf<T>;
  Pixels(const Mixture& mixture, const View& params, int64_t image, int64_t first, int64_t count)
      : k(mixture.components),
        block((mixture.coupled ? 3 : 2) * mixture.components),
        plane(params.stride[1]),
        step(params.stride[2]),
        count(count),
        data(pointer<T>(params) + image * params.stride[0] + first * params.stride[2]) {}

  int64_t logit(int64_t i) const { return i; }
  int64_t mean(int64_t c, int64_t i) const { return k + c * block + i; }
  int64_t log_scale(int64_t c, int64_t i) const { return k + c * block + k + i; }
  int64_t coefficient(int64_t j, int64_t i) const { return k + j * block + 2 * k + i; }

  V operator[](int64_t parameter) const { return load_lanes(data + parameter * plane, step, count); }
  void set(int64_t parameter, V v) const { store_lanes(data + parameter * plane, step, count, v); }

  int64_t k, block, plane, step, count;
  T* data;
};

// One component's cells of all channels, in order, each passed to `visit(c, cell, log_scale)`.
template <class T, class V, class F>
void visit_channels(const Mixture& mixture, const Pixels<T>& pixels, int64_t i, const Bin<V>* bins,
                    const Coupling<V>& coupling, const Grid<V>& grid, const F& visit) {
  for (int64_t c = 0; c < mixture.channels; ++c) {
    const V mean = pixels[pixels.mean(c, i)], log_scale = pixels[pixels.log_scale(c, i)];
    if (!mixture.coupled || c == 0) {
      visit(c, cell_at(bins[c], mean, log_scale, grid), log_scale);
      continue;
    }
    V centre = grid.gamma * mean;
    if (c == 1) {
      centre = fma(coupling.tau[0], bins[0].x, centre);
    } else {
      centre = fma(coupling.tau[2], bins[1].x, fma(coupling.tau[1], bins[0].x, centre));
    }
    const Bin<V>& bin = bins[c];
    visit(c, cell_of(bin, (bin.x - 1) - centre, bin.x - centre, (bin.x + 1) - centre, log_scale, grid), log_scale);
  }
}

template <class T, class V>
Coupling<V> coupling_at(const Mixture& mixture, const Pixels<T>& pixels, int64_t i) {
  if (!mixture.coupled) return {};
  const V raw[3] = {pixels[pixels.coefficient(0, i)], pixels[pixels.coefficient(1, i)],
                    pixels[pixels.coefficient(2, i)]};
  return coupling_of(raw);
}

template <class V>
V larger(V a, V b) {
  return select<V>(b > a, b, a);
}

template <class T>
VectorOf<T> largest_logit(const Pixels<T>& pixels) {
  VectorOf<T> largest = pixels[pixels.logit(0)];
  for (int64_t i = 1; i < pixels.k; ++i) largest = larger(largest, pixels[pixels.logit(i)]);
  return largest;
}

// Scratch of one group: the bins, then for each component its exponent, its weight and its derivatives.
template <class V>
struct Scratch {
  Scratch(void* memory, const Mixture& mixture)
      : bins(static_cast<Bin<V>*>(memory)),
        exponent(reinterpret_cast<V*>(bins + mixture.channels)),
        weight(exponent + mixture.components),
        slopes(weight + mixture.components) {}
  static int64_t bytes(const Mixture& mixture) {
    const int64_t parameters = mixture.channels * (mixture.coupled ? 3 : 2);
    return mixture.channels * sizeof(Bin<V>) + mixture.components * (2 + parameters) * sizeof(V);
  }
  Bin<V>* bins;
  V *exponent, *weight, *slopes;
};

int64_t scratch(const Mixture& mixture) {
  return mixture.params.dtype == DType::f64 ? Scratch<f64v>::bytes(mixture) : Scratch<f32v>::bytes(mixture);
}

template <class V>
IntOf<V> fill_bins(const Mixture& mixture, int64_t image, int64_t first, int64_t count, const Grid<V>& grid,
                   Bin<V>* to) {
  const View& v = mixture.bins;
  IntOf<V> wrong = {};
  for (int64_t c = 0; c < mixture.channels; ++c) {
    const int64_t at = image * v.stride[0] + c * v.stride[1] + first * v.stride[2];
    const IntOf<V> k = load_bins<V>(v, at, v.stride[2], count);
    wrong |= (k < 0) | (k >= grid.bins);
    to[c] = bin_at<V>(k, grid);
  }
  return wrong;
}

// prod_c P_c of one component as weight e^exponent / below, the first two within the range of V for any number of
// channels.
template <class V>
struct Product {
  V exponent, weight, below;

  void multiply(int64_t c, const Cell<V>& cell) {
    exponent -= cell.decay;
    weight *= cell.weight;
    below *= cell.near * cell.far;
    if (c % 16 == 15) {
      exponent += log(weight / below);
      weight = below = splat<V>(1);
    }
  }
};

template <class V>
struct Totals {
  V top;   // the largest logit
  V most;  // the largest exponent
  V z;     // sum of e^(logit - top)
  V sum;   // sum of weight e^(exponent - most)
};

// In linear space around the largest exponent: log sum_i pi_i P_i = most + log(sum) - log(z). Leaves in scratch each
// component's exponent, and its weight times e^(exponent - most); passes every cell to `visit(i, c, cell, log_scale,
// coupling)`.
template <class T, class V, class F>
Totals<V> total_components(const Mixture& mixture, const Pixels<T>& pixels, const Scratch<V>& scratch,
                           const Grid<V>& grid, const F& visit) {
  Totals<V> t = {largest_logit(pixels), splat<V>(-ScalarOf<V>(__builtin_inf())), V{}, V{}};
  for (int64_t i = 0; i < mixture.components; ++i) {
    const V logit = pixels[pixels.logit(i)] - t.top;
    Product<V> product = {logit, splat<V>(1), splat<V>(1)};
    const Coupling<V> coupling = coupling_at<T, V>(mixture, pixels, i);
    visit_channels<T, V>(mixture, pixels, i, scratch.bins, coupling, grid,
                         [&](int64_t c, const Cell<V>& cell, V log_scale) {
                           product.multiply(c, cell);
                           visit(i, c, cell, log_scale, coupling);
                         });
    scratch.exponent[i] = product.exponent;
    scratch.weight[i] = product.weight / product.below;
    t.most = larger(t.most, product.exponent);
    t.z += exp_fast(logit);
  }
  for (int64_t i = 0; i < mixture.components; ++i) {
    scratch.weight[i] *= exp_fast(scratch.exponent[i] - t.most);
    t.sum += scratch.weight[i];
  }
  return t;
}

template <class T>
double mixture_log_prob_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View* out,
                               void* memory, bool& in_range) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const Grid<V> grid(mixture.grid);
  const Scratch<V> scratch(memory, mixture);
  IntOf<V> wrong = {};
  double total = 0;
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t count = end - first < lanes ? end - first : lanes;
    wrong |= fill_bins<V>(mixture, image, first, count, grid, scratch.bins);
    const Pixels<T> pixels(mixture, mixture.params, image, first, count);
    const auto nothing = [](int64_t, int64_t, const Cell<V>&, V, const Coupling<V>&) {};
    const Totals<V> t = total_components<T, V>(mixture, pixels, scratch, grid, nothing);
    const V value = t.most + (log(t.sum) - log(t.z));
    if (out != nullptr) {
      store_lanes(pointer<ScalarOf<V>>(*out) + image * out->stride[0] + first, 1, count, value);
    }
    for (int64_t l = 0; l < count; ++l) total += double(value[l]);
  }
  in_range = in_range && !any<V>(wrong);
  return total;
}

template <class T>
void mixture_backward_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& grad,
                             const View& params_grad, void* memory) {
  using V = VectorOf<T>;
  using S = ScalarOf<V>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const Grid<V> grid(mixture.grid);
  const Scratch<V> scratch(memory, mixture);
  const int64_t per_channel = mixture.coupled ? 3 : 2, each = mixture.channels * per_channel;
  const S* upstream = pointer<S>(grad) + image * grad.stride[0];
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t count = end - first < lanes ? end - first : lanes;
    fill_bins<V>(mixture, image, first, count, grid, scratch.bins);
    const Pixels<T> pixels(mixture, mixture.params, image, first, count);
    const Pixels<T> result(mixture, params_grad, image, first, count);
    const auto differentiate = [&](int64_t i, int64_t c, const Cell<V>& cell, V log_scale,
                                   const Coupling<V>& coupling) {
      const V edges = cell.near * cell.far;
      const V inverse = 1 / (edges * cell.weight);
      const V both = inverse * cell.weight;
      const Slope<V> slope = slope_of<V>(cell, both * cell.far, both * cell.near, inverse * edges, log_scale, grid);
      V* to = scratch.slopes + i * each + c * per_channel;
      to[0] = slope.mean;
      to[1] = slope.log_scale;
      if (!mixture.coupled || c == 0) return;
      // Coefficient 0 reaches channel 1 from channel 0, coefficients 1 and 2 reach channel 2 from 0 and 1.
      V* coefficients = scratch.slopes + i * each + 2;
      const V centre = grid.inverse_gamma * scratch.bins[0].x;
      if (c == 1) {
        coefficients[0] = slope.mean * centre * coupling.slope[0];
      } else {
        coefficients[per_channel] = slope.mean * centre * coupling.slope[1];
        coefficients[2 * per_channel] = slope.mean * (grid.inverse_gamma * scratch.bins[1].x) * coupling.slope[2];
      }
    };
    const Totals<V> t = total_components<T, V>(mixture, pixels, scratch, grid, differentiate);
    const V g = grad.ndim == 1 ? splat<V>(*upstream) : load_lanes(upstream + first, 1, count);
    const V to_share = g / t.sum, to_prior = g / t.z;
    for (int64_t i = 0; i < mixture.components; ++i) {
      const V share = to_share * scratch.weight[i];
      const V prior = to_prior * exp_fast(pixels[pixels.logit(i)] - t.top);
      result.set(result.logit(i), share - prior);
      const V* slopes = scratch.slopes + i * each;
      for (int64_t c = 0; c < mixture.channels; ++c, slopes += per_channel) {
        result.set(result.mean(c, i), share * slopes[0]);
        result.set(result.log_scale(c, i), share * slopes[1]);
        if (mixture.coupled) result.set(result.coefficient(c, i), share * slopes[2]);
      }
    }
  }
}

double mixture_log_prob(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View* out,
                        void* memory, bool& in_range) {
  double total = 0;
  with_floating(mixture.params.dtype, [&](auto* type) {
    total = mixture_log_prob_pixels<std::remove_pointer_t<decltype(type)>>(mixture, image, begin, end, out, memory,
                                                                           in_range);
  });
  return total;
}

void mixture_backward(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& grad,
                      const View& params_grad, void* memory) {
  with_floating(mixture.params.dtype, [&](auto* type) {
    mixture_backward_pixels<std::remove_pointer_t<decltype(type)>>(mixture, image, begin, end, grad, params_grad,
                                                                   memory);
  });
}

// log(v / (1 - v)), v kept off 0 and 1
template <class V>
V logit_of(V v) {
  const V inside = clamp(v, ScalarOf<V>(0x1p-25), ScalarOf<V>(1 - 0x1p-24));
  return log(inside) - log1p(-inside);
}

// What stands at the lane's own component: component[l] of `pixels`, parameter given for component 0.
template <class T>
VectorOf<T> gather(const Pixels<T>& pixels, int64_t parameter, const int64_t* component) {
  T some[Format<VectorOf<T>>::kLanes] = {};
  for (int64_t l = 0; l < pixels.count; ++l) {
    some[l] = pixels.data[(parameter + component[l]) * pixels.plane + l * pixels.step];
  }
  return load(some);
}

template <class V>
V whole_part(V x) {  // floor, for |x| < 2^22
  const V nearest = (x + Format<V>::kRound) - Format<V>::kRound;
  return nearest - select<V>(nearest > x, splat<V>(1), V{});
}

template <class T>
void mixture_sample_pixels(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& uniforms,
                           const View& out) {
  using V = VectorOf<T>;
  using S = ScalarOf<V>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const Grid<V> grid(mixture.grid);
  const bool discrete = out.dtype == DType::u8 || out.dtype == DType::i32;
  const S last = S(grid.bins - 1);
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t count = end - first < lanes ? end - first : lanes;
    const Pixels<T> pixels(mixture, mixture.params, image, first, count);
    const auto uniform = [&](int64_t c) {
      const auto* at = pointer<S>(uniforms) + image * uniforms.stride[0] + c * uniforms.stride[1];
      return load_lanes(at + first * uniforms.stride[2], uniforms.stride[2], count);
    };
    const V top = largest_logit(pixels);
    V z = {};
    for (int64_t i = 0; i < pixels.k; ++i) z += exp_fast(pixels[pixels.logit(i)] - top);
    const V threshold = uniform(0) * z;
    V sum = {}, passed = {};
    for (int64_t i = 0; i + 1 < pixels.k; ++i) {
      sum += exp_fast(pixels[pixels.logit(i)] - top);
      passed += select<V>(sum > threshold, V{}, splat<V>(1));
    }
    int64_t component[lanes];
    for (int64_t l = 0; l < lanes; ++l) component[l] = int64_t(passed[l]);

    Coupling<V> coupling = {};
    if (mixture.coupled) {
      const V raw[3] = {gather(pixels, pixels.coefficient(0, 0), component),
                        gather(pixels, pixels.coefficient(1, 0), component),
                        gather(pixels, pixels.coefficient(2, 0), component)};
      coupling = coupling_of(raw);
    }
    V drawn[2] = {};
    for (int64_t c = 0; c < mixture.channels; ++c) {
      const V mean = gather(pixels, pixels.mean(c, 0), component);
      const V log_scale = gather(pixels, pixels.log_scale(c, 0), component);
      V centre = fma(splat<V>(grid.gamma), mean, splat<V>(-grid.shift));
      if (mixture.coupled && c == 1) centre = fma(coupling.tau[0], drawn[0], centre);
      if (mixture.coupled && c == 2) {
        centre = fma(coupling.tau[2], drawn[1], fma(coupling.tau[1], drawn[0], centre));
      }
      const V scale = exp_fast(select<V>(log_scale < grid.floor, splat<V>(grid.floor), log_scale));
      // In half-widths of a bin, from the centre of the grid.
      V y = fma(grid.gamma * scale, logit_of(uniform(1 + c)), centre);
      const int64_t at = image * out.stride[0] + c * out.stride[1] + first * out.stride[2];
      y = clamp(y, -last, last);
      if (discrete) {
        V k = clamp(whole_part((y + S(grid.bins)) * S(0.5)), 0, last);
        k = select<V>(k == k, k, V{});
        y = 2 * k - last;
        for (int64_t l = 0; l < count; ++l) {
          if (out.dtype == DType::u8) {
            pointer<uint8_t>(out)[at + l * out.stride[2]] = uint8_t(k[l]);
          } else {
            pointer<int32_t>(out)[at + l * out.stride[2]] = int32_t(k[l]);
          }
        }
      } else {
        store_lanes(pointer<S>(out) + at, out.stride[2], count, (y + grid.shift) * grid.inverse_gamma);
      }
      if (c < 2) drawn[c] = y;
    }
  }
}

void mixture_sample(const Mixture& mixture, int64_t image, int64_t begin, int64_t end, const View& uniforms,
                    const View& out) {
  with_floating(mixture.params.dtype, [&](auto* type) {
    mixture_sample_pixels<std::remove_pointer_t<decltype(type)>>(mixture, image, begin, end, uniforms, out);
  });
}

}  // namespace

const LogisticKernels logistic = {log_prob, backward, scratch, mixture_log_prob, mixture_backward, mixture_sample};

}  // namespace FL_ISA
}  // namespace fl
