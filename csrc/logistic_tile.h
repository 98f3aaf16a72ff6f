// What the kernels of discretized logistics share: bins under a logistic, tiles of a mixture's parameters, and the sum
// over its components.
//
// Include it only from *.simd.cpp files, like simd.h.
#pragma once

#include <type_traits>

#include "logistic.h"
#include "simd.h"

namespace fl {
namespace FL_ISA {

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

// Where a bin lies, in half-widths of a bin. The first and the last reach to infinity: `beyond` is the least distance
// of their far edge, and `side` decides which edge that is.
template <class V>
struct Bin {
  V x;       // 2k - n + 1
  V side;    // -infinity for the first bin, infinity for the last, else 0
  V beyond;  // an exponent at which e^-x is 0 for the first and the last bin, else 0
};

template <class V>
FL_INLINE Bin<V> bin_at(IntOf<V> k, const Grid<V>& grid) {
  using S = ScalarOf<V>;
  const V x = __builtin_convertvector(2 * k - (grid.bins - 1), V);
  const V inf = splat<V>(S(__builtin_inf())), none = {};
  const V side = k == 0 ? -inf : (k == grid.bins - 1 ? inf : none);
  return {x, side, side != 0 ? splat<V>(1000) : none};
}

// The factors of P(k) = weight e^-decay / (near far), and what their derivatives need. Distances are in units of the
// scale; the mean is taken to lie below the bin's centre, as by symmetry it may.
template <class V>
struct Cell {
  V inverse_scale;
  V decay;        // max(alpha, 0) - [delta <= 1] log delta
  V weight;       // 1 - e^-delta, divided by delta where delta <= 1
  V near, far;    // 1 + e^-|alpha|, 1 + e^-beta
  V alpha, beta;  // the two edges
  V delta, z2;    // the width of the bin and twice the distance of its centre; large at the ends of the grid
  V e_alpha, e_beta, e_delta, e_z2;  // e^-|alpha|, e^-beta, ...
  V reflected;                       // the sign bit where the mean in truth lies above
};

template <class V>
FL_INLINE V sign_bit(V x) {
  return bits_as<V>(bits_as<IntOf<V>>(x) & bits_as<IntOf<V>>(splat<V>(-0.0f)));
}

template <class V>
FL_INLINE V flip(V x, V sign) {
  return bits_as<V>(bits_as<IntOf<V>>(x) ^ bits_as<IntOf<V>>(sign));
}

template <class V>
FL_INLINE V floored(V log_scale, const Grid<V>& grid) {
  return larger(log_scale, splat<V>(grid.floor));
}

// NaN beyond the domain, infinities among it; from there on a mean times the grid could overflow.
template <class V>
FL_INLINE V confined(V mean) {
  using S = ScalarOf<V>;
  constexpr S most = sizeof(S) == 4 ? S(0x1p80) : S(0x1p900);
  return abs(mean) <= most ? mean : splat<V>(S(__builtin_nan("")));
}

// What a cell is made of. The mean in half-widths is mean * unit: (m, gamma) gives distances that are rounded once,
// (gamma m, 1) takes a product that was rounded before.
template <class V>
struct Place {
  Bin<V> bin;
  V mean, log_scale, inverse_scale;
  ScalarOf<V> unit, shift;
};

template <int N, class V>
FL_INLINE void cells_of(const Place<V> (&places)[N], const Grid<V>& grid, Cell<V> (&cells)[N]) {
  V exponents[2 * N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    Cell<V>& c = cells[j];
    const Place<V>& place = places[j];
    const V unit = splat<V>(-place.unit), x = place.bin.x + place.shift;
    c.inverse_scale = place.inverse_scale;
    const V h = c.inverse_scale * grid.inverse_gamma, width = h + h;
    const V centre = fma(unit, place.mean, x);
    c.reflected = sign_bit(centre + place.bin.side);
    const V at = flip(x, c.reflected), mean = flip(place.mean, c.reflected);
    c.alpha = fma(unit, mean, at - 1) * h;
    c.beta = fma(unit, mean, at + 1) * h;
    c.delta = larger(width, place.bin.beyond);
    c.z2 = larger(flip(centre, c.reflected) * width, place.bin.beyond);
    exponents[2 * j] = -abs(c.alpha);
    exponents[2 * j + 1] = -smaller(c.delta, c.z2);
  }
  Power<V> power[2 * N];
  powers(exponents, power);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    // beta = |alpha| + min(delta, z2), and max(delta, z2) = 2 |alpha| + min(delta, z2).
    Cell<V>& c = cells[j];
    c.e_alpha = power[2 * j].value();
    const V e_less = power[2 * j + 1].value();
    c.e_beta = c.e_alpha * e_less;
    const V e_more = c.e_alpha * c.e_beta;
    c.e_delta = c.alpha < 0 ? e_more : e_less;
    c.e_z2 = c.alpha < 0 ? e_less : e_more;
    c.near = 1 + c.e_alpha;
    c.far = 1 + c.e_beta;
    c.weight = c.delta <= 1 ? mean_decay(c.delta) : 1 - c.e_delta;
    c.decay = larger(c.alpha, V{}) - (c.delta <= 1 ? grid.log_width - floored(places[j].log_scale, grid) : V{});
  }
}

// d log P / d mean and d log P / d log_scale
template <class V>
struct Slope {
  V mean, log_scale;
};

template <class V>
FL_INLINE Slope<V> slope_of(const Cell<V>& c, V log_scale, const Grid<V>& grid) {
  const V edges = c.near * c.far;
  const V inverse = 1 / (edges * c.weight);
  const V inverse_edges = inverse * c.weight;
  const V near = inverse_edges * c.far, far = inverse_edges * c.near, weight = inverse * edges;
  const V sigma = (c.alpha < 0 ? c.e_alpha : splat<V>(1)) * near;
  const V spread = c.z2 <= 1 ? c.z2 * mean_decay(c.z2) : 1 - c.e_z2;
  // Infinite edges times a power of 0 are 0.
  const ScalarOf<V> farthest = 10000;
  const V loss =
      clamp(c.beta, -farthest, farthest) * (c.e_beta * far) + (c.delta <= 1 ? c.e_delta : c.delta * c.e_delta) * weight;
  return {flip(sigma * spread * far * c.inverse_scale, c.reflected),
          log_scale < grid.floor ? V{} : larger(c.alpha, splat<V>(-farthest)) * sigma - loss};
}

// Vectors that are computed in lockstep where nothing else fills the processor.
constexpr int kLockstep = 2;

inline int64_t clamp_count(int64_t count, int64_t most) { return count < 0 ? 0 : count < most ? count : most; }

template <class V, class B>
FL_INLINE IntOf<V> load_bins_of(const B* from, int64_t stride, int64_t count) {
  constexpr int64_t lanes = Format<V>::kLanes;
  typedef B Some __attribute__((vector_size(lanes * sizeof(B))));
  Some some = {};
  if (stride == 1 && count == lanes) {
    std::memcpy(&some, from, sizeof some);
  } else {
    for (int64_t l = 0; l < count; ++l) some[l] = from[l * stride];
  }
  return __builtin_convertvector(some, IntOf<V>);
}

template <class V>
FL_INLINE IntOf<V> load_bins(const View& v, int64_t at, int64_t stride, int64_t count) {
  if (v.dtype == DType::u8) return load_bins_of<V>(static_cast<const uint8_t*>(v.data) + at, stride, count);
  return load_bins_of<V>(static_cast<const int32_t*>(v.data) + at, stride, count);
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

// Whole numbers, as u8 or i32.
template <class V>
void store_bins(const View& out, int64_t to, int64_t stride, int64_t count, V k) {
  if (out.dtype == DType::u8) {
    for (int64_t l = 0; l < count; ++l) pointer<uint8_t>(out)[to + l * stride] = uint8_t(k[l]);
  } else {
    for (int64_t l = 0; l < count; ++l) pointer<int32_t>(out)[to + l * stride] = int32_t(k[l]);
  }
}

template <class V>
bool any(IntOf<V> mask) {
  for (int l = 0; l < Format<V>::kLanes; ++l) {
    if (mask[l] != 0) return true;
  }
  return false;
}

// Relative accuracy down to log P = -0: from what is missing to 1 where P is near 1.
template <class V>
FL_INLINE V log_prob_of(const Cell<V>& c) {
  const V excess = c.e_alpha + c.e_beta + c.e_alpha * c.e_beta;
  const V inverse = 1 / (1 + excess);
  const V share = c.weight * inverse, missing = (c.e_delta + excess) * inverse;  // share > 0.1
  const auto close = (c.delta > 1) & (share >= ScalarOf<V>(0.5));
  const V kept = 1 - missing, lost = (1 - kept) - missing;
  V f, n;
  split_binary(close ? kept : share, f, n);
  const V log_share = log_reduced(f, n, close ? lost : V{});
  return (share == share ? log_share : share) - c.decay;
}

// The parameters of a run of pixels, widened: one row of `width` pixels for each, the last ones zero where the run is
// shorter. Gradients take the place of the parameters that they belong to. More rows follow for what is computed.
template <class V>
struct Tile {
  using S = ScalarOf<V>;
  static constexpr int64_t kBytes = 49152, kUnit = kLockstep * Format<V>::kLanes;

  explicit Tile(const Mixture& mixture, void* memory = nullptr)
      : k(mixture.components),
        channels(mixture.channels),
        block((mixture.grid.coupled ? 3 : 2) * k),
        parameters(mixture.params.size[1]),
        rows(parameters + channels * k + (mixture.grid.coupled ? 5 : 2) * k + 4 * channels),
        data(static_cast<S*>(memory)) {
    const int64_t units = clamp_count(kBytes / (rows * kUnit * int64_t(sizeof(S))), 64 / kUnit);
    width = kUnit * (units > 0 ? units : 1);
  }
  int64_t bytes() const { return rows * width * int64_t(sizeof(S)); }

  int64_t logit(int64_t i) const { return i; }
  int64_t mean(int64_t c, int64_t i) const { return k + c * block + i; }
  int64_t log_scale(int64_t c, int64_t i) const { return k + c * block + k + i; }
  int64_t coefficient(int64_t j, int64_t i) const { return k + j * block + 2 * k + i; }
  int64_t inverse_scale(int64_t c, int64_t i) const { return parameters + c * k + i; }
  int64_t exponent(int64_t i) const { return parameters + channels * k + i; }
  int64_t weight(int64_t i) const { return exponent(k + i); }
  int64_t slope(int64_t j, int64_t i) const { return exponent((2 + j) * k + i); }  // of coefficient j's tanh
  int64_t chosen(int64_t c) const { return rows - 4 * channels + c; }
  int64_t bin(int64_t c) const { return rows - 3 * (channels - c); }

  V get(int64_t row, int64_t at) const { return load(data + row * width + at); }
  void set(int64_t row, int64_t at, V v) const { store(data + row * width + at, v); }

  int64_t k, channels, block, parameters, rows, width;
  S* data;
};

// Calls visit(row, p) for each parameter p of an image, `row` typed and at pixel `first`.
template <class V, class F>
void for_rows(const View& v, int64_t image, int64_t first, const Tile<V>& tile, const F& visit) {
  with_floating(v.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<VectorOf<T>, V>) {
      T* row = pointer<T>(v) + image * v.stride[0] + first * v.stride[2];
      for (int64_t p = 0; p < tile.parameters; ++p, row += v.stride[1]) visit(row, p);
    }
  });
}

template <class V>
void load_tile(const View& v, int64_t image, int64_t first, int64_t count, const Tile<V>& tile) {
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t step = v.stride[2];
  for_rows(v, image, first, tile, [&](const auto* from, int64_t p) {
    if (step == 1 && count == tile.width) {
      for (int64_t j = 0; j < tile.width; j += lanes) tile.set(p, j, load(from + j));
    } else {
      for (int64_t j = 0; j < tile.width; j += lanes) {
        tile.set(p, j, load_lanes(from + j * step, step, clamp_count(count - j, lanes)));
      }
    }
  });
}

// Whether a row may be written past the caches: of floats that are too many to be found there later.
template <class T>
bool may_stream(const View& v, const T* row) {
  constexpr int64_t kLarge = 4 << 20;
  return std::is_same_v<T, float> && v.size[0] * v.size[1] * v.size[2] > kLarge / int64_t(sizeof(T)) &&
         reinterpret_cast<uintptr_t>(row) % FL_BYTES == 0;
}

template <class V>
void store_tile(const View& v, int64_t image, int64_t first, int64_t count, const Tile<V>& tile) {
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t step = v.stride[2];
  for_rows(v, image, first, tile, [&](auto* to, int64_t p) {
    if (step == 1 && count == tile.width && may_stream(v, to)) {
      for (int64_t j = 0; j < tile.width; j += lanes) stream(to + j, tile.get(p, j));
    } else {
      for (int64_t j = 0; j < count; j += lanes) {
        store_lanes(to + j * step, step, clamp_count(count - j, lanes), tile.get(p, j));
      }
    }
  });
}

// Calls f with a vector of the precision in which the mixture is computed.
template <class F>
auto with_vector(const Mixture& mixture, const F& f) {
  return mixture.params.dtype == DType::f64 ? f(f64v()) : f(f32v());
}

// Also with whether its channels are coupled, as a type.
template <class F>
void with_kind(const Mixture& mixture, const F& f) {
  with_vector(mixture, [&](auto v) {
    if (mixture.grid.coupled) return f(std::true_type(), v);
    return f(std::false_type(), v);
  });
}

// tanh of the coefficients of a component and its derivative
template <class V>
struct Coupling {
  V tau[3], slope[3];
};

template <class V>
FL_INLINE Coupling<V> coupling_of(const V (&raw)[3]) {
  Coupling<V> result;
  V x[3], value[3];
  Power<V> power[3];
  // They share a reciprocal, and are not to share a NaN.
  for (int j = 0; j < 3; ++j) x[j] = raw[j] == raw[j] ? -2 * abs(raw[j]) : V{};
  powers(x, power);
  for (int j = 0; j < 3; ++j) value[j] = power[j].value();
  const V d0 = 1 + value[0], d1 = 1 + value[1], d2 = 1 + value[2];
  const V inverse = 1 / (d0 * d1 * d2);
  const V each[3] = {inverse * (d1 * d2), inverse * (d0 * d2), inverse * (d0 * d1)};
  for (int j = 0; j < 3; ++j) {
    const V tau = copysign(power[j].expm1() * each[j], raw[j]);
    result.tau[j] = raw[j] == raw[j] ? tau : raw[j];
    result.slope[j] = 4 * value[j] * (each[j] * each[j]);
  }
  return result;
}

// Fills the rows of the inverse scales, confines the means, and puts tanh in the place of the coefficients.
template <bool kCoupled, bool kSlopes, class V>
void prepare(const Tile<V>& tile, const Grid<V>& grid) {
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t each = tile.k * tile.width;  // a channel's rows of one kind follow each other
  for (int64_t c = 0; c < tile.channels; ++c) {
    for (int64_t at = 0; at < each; at += kLockstep * lanes) {
      V x[kLockstep];
      Power<V> scale[kLockstep];
      for (int j = 0; j < kLockstep; ++j) x[j] = -floored(tile.get(tile.log_scale(c, 0), at + j * lanes), grid);
      powers(x, scale);
      for (int j = 0; j < kLockstep; ++j) tile.set(tile.inverse_scale(c, 0), at + j * lanes, scale[j].value());
      for (int j = 0; j < kLockstep; ++j) {
        tile.set(tile.mean(c, 0), at + j * lanes, confined(tile.get(tile.mean(c, 0), at + j * lanes)));
      }
    }
  }
  for (int64_t at = 0; kCoupled && at < each; at += lanes) {
    const V raw[3] = {tile.get(tile.coefficient(0, 0), at), tile.get(tile.coefficient(1, 0), at),
                      tile.get(tile.coefficient(2, 0), at)};
    const Coupling<V> coupling = coupling_of(raw);
    for (int j = 0; j < 3; ++j) {
      tile.set(tile.coefficient(j, 0), at, coupling.tau[j]);
      if (kSlopes) tile.set(tile.slope(j, 0), at, coupling.slope[j]);
    }
  }
}

// Asks the memory for the rows of a later tile, some lines at a time: what is asked for all at once stalls the
// processor.
class Ahead {
 public:
  // pixels [first, last) of an image, in about `calls` calls of fetch()
  Ahead(const View& v, int64_t image, int64_t first, int64_t last, int64_t calls)
      : row_(static_cast<const char*>(v.data) + (image * v.stride[0] + first * v.stride[2]) * size_of(v.dtype)),
        step_(v.stride[1] * size_of(v.dtype)),
        bytes_(v.stride[2] == 1 ? (last - first) * size_of(v.dtype) : 0),
        rows_(bytes_ > 0 ? v.size[1] : 0),
        each_((rows_ * ((bytes_ + 63) / 64) + calls - 1) / calls) {}

  void fetch() {
    for (int64_t i = 0; i < each_ && rows_ > 0; ++i) {
      __builtin_prefetch(row_ + at_, 0, 2);
      at_ += 64;
      if (at_ >= bytes_) {
        at_ = 0;
        row_ += step_;
        --rows_;
      }
    }
  }

 private:
  static int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

  const char* row_;
  int64_t step_, bytes_, rows_, each_, at_ = 0;
};

// weight e^exponent / below
template <class V>
struct Product {
  V exponent, weight, below;

  FL_INLINE void multiply(const Cell<V>& cell) {
    exponent -= cell.decay;
    weight *= cell.weight;
    below *= cell.near * cell.far;
  }
  void normalise() {  // before many factors leave the range of V
    exponent += log(weight / below);
    weight = below = splat<V>(1);
  }
};

template <class V>
FL_INLINE Place<V> place_of(const Tile<V>& tile, int64_t c, int64_t i, int64_t at, const Grid<V>& grid) {
  return {{tile.get(tile.bin(c), at), tile.get(tile.bin(c) + 1, at), tile.get(tile.bin(c) + 2, at)},
          tile.get(tile.mean(c, i), at),
          tile.get(tile.log_scale(c, i), at),
          tile.get(tile.inverse_scale(c, i), at),
          grid.gamma,
          grid.shift};
}

// Multiplies `product` with the cells of component i; with kSlopes also puts the derivatives of their log-probabilities
// in the places of the parameters.
template <bool kSlopes, class V>
FL_INLINE void multiply_coupled(const Tile<V>& tile, int64_t i, int64_t at, const Grid<V>& grid, Product<V>& product) {
  const V red = tile.get(tile.bin(0), at), green = tile.get(tile.bin(1), at);
  const V tau[3] = {tile.get(tile.coefficient(0, i), at), tile.get(tile.coefficient(1, i), at),
                    tile.get(tile.coefficient(2, i), at)};
  Place<V> place[3];
  for (int c = 0; c < 3; ++c) {
    place[c] = place_of(tile, c, i, at, grid);
    if (c > 0) {
      place[c].mean *= grid.gamma;
      place[c].unit = 1;
      place[c].shift = 0;
    }
  }
  place[1].mean = fma(tau[0], red, place[1].mean);
  place[2].mean = fma(tau[2], green, fma(tau[1], red, place[2].mean));
  Cell<V> cell[3];
  cells_of(place, grid, cell);
  for (int c = 0; c < 3; ++c) product.multiply(cell[c]);
  if constexpr (kSlopes) {
    Slope<V> slope[3];
    for (int c = 0; c < 3; ++c) slope[c] = slope_of<V>(cell[c], place[c].log_scale, grid);
    for (int c = 0; c < 3; ++c) {
      tile.set(tile.mean(c, i), at, slope[c].mean);
      tile.set(tile.log_scale(c, i), at, slope[c].log_scale);
    }
    // Coefficient 0 reaches green from red, coefficients 1 and 2 reach blue from red and green.
    const V from_red = grid.inverse_gamma * red, from_green = grid.inverse_gamma * green;
    tile.set(tile.coefficient(0, i), at, slope[1].mean * from_red * tile.get(tile.slope(0, i), at));
    tile.set(tile.coefficient(1, i), at, slope[2].mean * from_red * tile.get(tile.slope(1, i), at));
    tile.set(tile.coefficient(2, i), at, slope[2].mean * from_green * tile.get(tile.slope(2, i), at));
  }
}

template <bool kSlopes, class V>
FL_INLINE void multiply_uncoupled(const Tile<V>& tile, int64_t i, int64_t at, const Grid<V>& grid,
                                  Product<V>& product) {
  for (int64_t c = 0; c < tile.channels; ++c) {
    const Place<V> place[1] = {place_of(tile, c, i, at, grid)};
    Cell<V> cell[1];
    cells_of(place, grid, cell);
    product.multiply(cell[0]);
    if (c % 16 == 15) product.normalise();
    if constexpr (kSlopes) {
      const Slope<V> slope = slope_of<V>(cell[0], place[0].log_scale, grid);
      tile.set(tile.mean(c, i), at, slope.mean);
      tile.set(tile.log_scale(c, i), at, slope.log_scale);
    }
  }
}

template <class V>
struct Totals {
  V most;  // the largest exponent
  V sum;   // of weight e^(exponent - most)
};

// Puts e^(logit - largest logit) in the places of the logits and its exponent in the rows of the exponents; their sum.
template <class V>
FL_INLINE V exponentiate_logits(const Tile<V>& tile, int64_t at) {
  V top = tile.get(tile.logit(0), at), z = {};
  for (int64_t i = 1; i < tile.k; ++i) top = larger(tile.get(tile.logit(i), at), top);
  for (int64_t i = 0; i < tile.k; ++i) {
    const V logit = tile.get(tile.logit(i), at) - top, prior = power(logit).value();
    tile.set(tile.logit(i), at, prior);
    tile.set(tile.exponent(i), at, logit);
    z += prior;
  }
  return z;
}

// In linear space around the largest exponent: log sum_i e^(logit_i) P_i = most + log(sum). The logits are read from
// the rows that start at `logits`. Leaves weight e^(exponent - most) in the rows of the weights; with kSlopes also d
// log P_i in the places of the parameters.
template <bool kCoupled, bool kSlopes, class V>
FL_INLINE Totals<V> total_components(const Tile<V>& tile, const Grid<V>& grid, int64_t at, int64_t logits,
                                     Ahead& ahead) {
  Totals<V> t = {splat<V>(-ScalarOf<V>(__builtin_inf())), V{}};
  for (int64_t i = 0; i < tile.k; ++i) {
    Product<V> product = {tile.get(logits + i, at), splat<V>(1), splat<V>(1)};
    if constexpr (kCoupled) {
      multiply_coupled<kSlopes>(tile, i, at, grid, product);
    } else {
      multiply_uncoupled<kSlopes>(tile, i, at, grid, product);
    }
    tile.set(tile.exponent(i), at, product.exponent);
    tile.set(tile.weight(i), at, product.weight / product.below);
    t.most = larger(product.exponent, t.most);
    ahead.fetch();
  }
  const ScalarOf<V> none = -ScalarOf<V>(__builtin_inf());
  t.most = t.most == none ? V{} : t.most;  // all are 0, and so is their sum
  for (int64_t i = 0; i < tile.k; ++i) {
    const V weight = tile.get(tile.weight(i), at) * power(tile.get(tile.exponent(i), at) - t.most).value();
    tile.set(tile.weight(i), at, weight);
    t.sum += weight;
  }
  return t;
}

template <class V>
V whole_part(V x) {  // floor, for |x| < 2^22
  const V nearest = (x + Format<V>::kRound) - Format<V>::kRound;
  return nearest > x ? nearest - 1 : nearest;
}

}  // namespace FL_ISA
}  // namespace fl
