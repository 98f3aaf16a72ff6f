#include "logistic.h"

#include <type_traits>

#include "simd.h"

#define FL_INLINE inline __attribute__((always_inline))

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
  const V loss = c.beta * (c.e_beta * far) + (c.delta <= 1 ? c.e_delta : c.delta * c.e_delta) * weight;
  return {flip(sigma * spread * far * c.inverse_scale, c.reflected),
          log_scale < grid.floor ? V{} : c.alpha * sigma - loss};
}

// Vectors that are computed in lockstep where nothing else fills the processor.
constexpr int kLockstep = 2;

int64_t clamp_count(int64_t count, int64_t most) { return count < 0 ? 0 : count < most ? count : most; }

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

// Relative accuracy down to log P = -0: log1p where P is near 1.
template <class V>
FL_INLINE V log_prob_of(const Cell<V>& c) {
  const V excess = c.e_alpha + c.e_beta + c.e_alpha * c.e_beta;
  const V share = c.weight / (1 + excess);
  const V missing = (c.e_delta + excess) / (1 + excess);
  return ((c.delta > 1) & (share >= ScalarOf<V>(0.5)) ? log1p(-missing) : log(share)) - c.decay;
}

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
                  load_lanes(pointer<T>(mean) + at, 1, count[j]),
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

// The parameters of a run of pixels, widened: one row of `width` pixels for each, the last ones zero where the run is
// shorter. Gradients take the place of the parameters that they belong to. More rows follow for what is computed.
template <class V>
struct Tile {
  using S = ScalarOf<V>;
  static constexpr int64_t kBytes = 49152, kUnit = kLockstep * Format<V>::kLanes;

  explicit Tile(const Mixture& mixture, void* memory = nullptr)
      : k(mixture.components),
        channels(mixture.channels),
        block((mixture.coupled ? 3 : 2) * k),
        parameters(mixture.params.size[1]),
        rows(parameters + channels * k + (mixture.coupled ? 5 : 2) * k + 3 * channels),
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

int64_t scratch(const Mixture& mixture) {
  return with_vector(mixture, [&](auto v) { return Tile<decltype(v)>(mixture).bytes(); });
}

template <class V>
bool load_bins(const View& v, int64_t image, int64_t first, int64_t count, const Grid<V>& grid, const Tile<V>& tile) {
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
  for (int j = 0; j < 3; ++j) x[j] = -2 * abs(raw[j]);
  powers(x, power);
  for (int j = 0; j < 3; ++j) value[j] = power[j].value();
  const V d0 = 1 + value[0], d1 = 1 + value[1], d2 = 1 + value[2];
  const V inverse = 1 / (d0 * d1 * d2);
  const V each[3] = {inverse * (d1 * d2), inverse * (d0 * d2), inverse * (d0 * d1)};
  for (int j = 0; j < 3; ++j) {
    result.tau[j] = copysign(power[j].expm1() * each[j], raw[j]);
    result.slope[j] = 4 * value[j] * (each[j] * each[j]);
  }
  return result;
}

// Fills the rows of the inverse scales, and puts tanh in the place of the coefficients.
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
  V z;     // sum of the e^(logit - largest logit)
  V sum;   // sum of weight e^(exponent - most)
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

// In linear space around the largest exponent: log sum_i pi_i P_i = most + log(sum) - log(z). Leaves e^(logit - largest
// logit) in the places of the logits and weight e^(exponent - most) in the rows of the weights; with kSlopes also
// d log P_i in the places of the other parameters.
template <bool kCoupled, bool kSlopes, class V>
FL_INLINE Totals<V> total_components(const Tile<V>& tile, const Grid<V>& grid, int64_t at, Ahead& ahead) {
  Totals<V> t = {splat<V>(-ScalarOf<V>(__builtin_inf())), exponentiate_logits(tile, at), V{}};
  for (int64_t i = 0; i < tile.k; ++i) {
    Product<V> product = {tile.get(tile.exponent(i), at), splat<V>(1), splat<V>(1)};
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
  for (int64_t i = 0; i < tile.k; ++i) {
    const V weight = tile.get(tile.weight(i), at) * power(tile.get(tile.exponent(i), at) - t.most).value();
    tile.set(tile.weight(i), at, weight);
    t.sum += weight;
  }
  return t;
}

// Calls visit(at, pixel, count, totals) for each vector of pixels of a tile, `at` in the tile and `pixel` in the image,
// and done(first, pixels) when the tile's are all computed. Returns whether all bins are in range.
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
    in_range = load_bins(mixture.bins, image, first, pixels, grid, tile) && in_range;
    prepare<kCoupled, kSlopes>(tile, grid);
    const int64_t next = first + pixels;
    Ahead ahead(mixture.params, image, next, next + clamp_count(end - next, tile.width), tile.k * tile.width / lanes);
    for (int64_t at = 0; at < pixels; at += lanes) {
      const int64_t count = clamp_count(pixels - at, lanes);
      visit(at, first + at, count, total_components<kCoupled, kSlopes>(tile, grid, at, ahead));
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
  const auto visit = [&](int64_t, int64_t pixel, int64_t count, const Totals<V>& t) {
    const V value = t.most + (log(t.sum) - log(t.z));
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
  const auto visit = [&](int64_t at, int64_t pixel, int64_t count, const Totals<V>& t) {
    const V g = grad.ndim == 1 ? splat<V>(*upstream) : load_lanes(upstream + pixel, 1, count);
    const V to_share = g / t.sum, to_prior = g / t.z;
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

template <class F>
void with_kind(const Mixture& mixture, const F& f) {
  with_vector(mixture, [&](auto v) {
    if (mixture.coupled) return f(std::true_type(), v);
    return f(std::false_type(), v);
  });
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
V whole_part(V x) {  // floor, for |x| < 2^22
  const V nearest = (x + Format<V>::kRound) - Format<V>::kRound;
  return nearest > x ? nearest - 1 : nearest;
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
      V raw[3] = {}, valid[3] = {};
      for (int64_t j = 0; mixture.coupled && j < 3; ++j) {
        raw[j] = own(tile.coefficient(j, 0));
        valid[j] = raw[j] == raw[j] ? raw[j] : V{};
      }
      Coupling<V> coupling = coupling_of(valid);  // which shares a reciprocal, and so would share a NaN
      for (int j = 0; j < 3; ++j) coupling.tau[j] = raw[j] == raw[j] ? coupling.tau[j] : raw[j];
      V drawn[2] = {};
      for (int64_t c = 0; c < mixture.channels; ++c) {
        V centre = fma(splat<V>(grid.gamma), own(tile.mean(c, 0)), splat<V>(-grid.shift));
        if (mixture.coupled && c == 1) centre = fma(coupling.tau[0], drawn[0], centre);
        if (mixture.coupled && c == 2) {
          centre = fma(coupling.tau[2], drawn[1], fma(coupling.tau[1], drawn[0], centre));
        }
        const V log_scale = smaller(floored(own(tile.log_scale(c, 0)), grid), splat<V>(Format<V>::kPowerMax));
        const V scale = power(log_scale).value();
        // In half-widths of a bin, from the centre of the grid.
        V y = clamp(fma(grid.gamma * scale, logit_of(uniform(1 + c)), centre), -last, last);
        y = threshold == threshold ? y : threshold;
        const int64_t to = image * out.stride[0] + c * out.stride[1] + first * out.stride[2];
        if (discrete) {
          V k = clamp(whole_part((y + S(grid.bins)) * S(0.5)), 0, last);
          y = 2 * k - last;
          k = k == k ? k : V{};
          for (int64_t l = 0; l < count; ++l) {
            if (out.dtype == DType::u8) {
              pointer<uint8_t>(out)[to + l * out.stride[2]] = uint8_t(k[l]);
            } else {
              pointer<int32_t>(out)[to + l * out.stride[2]] = int32_t(k[l]);
            }
          }
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
