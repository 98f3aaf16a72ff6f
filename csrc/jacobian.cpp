#include "jacobian.h"

#include <algorithm>

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

// Samples whose contributions to the gradients of scale and shift are added in the arguments' own precision.
constexpr int64_t kGroup = 16;

int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

void expect_tangents(const char* name, const View& v, const View& x, int64_t t) {
  const bool holds = v.ndim == 3 && v.dtype == x.dtype && !v.cuda && v.size[0] == x.size[0] && v.size[1] == t &&
                     v.size[2] == x.size[1] && (v.stride[2] == 1 || v.size[2] <= 1);
  if (!holds) throw std::invalid_argument(std::string("core: ") + name + " must be (n, t, l) with contiguous rows");
}

// (c,) as (l,), or `missing` everywhere where it is empty
template <class T>
void spread(const View& vector, int64_t inner, double missing, T* out, int64_t l) {
  const int64_t channels = vector.size[0];
  const auto* from = static_cast<const T*>(vector.data);
  if (channels == 0) std::fill(out, out + l, T(missing));
  for (int64_t begin = 0, c = 0; channels > 0 && begin < l; begin += inner, c = c + 1 < channels ? c + 1 : 0) {
    std::fill(out + begin, out + begin + inner, from[c]);
  }
}

void expect_channels(const char* name, const View& v, const View& x, int64_t inner) {
  expect(v.ndim == 1 && inner >= 1 && (v.size[0] == 0 || x.size[1] % (v.size[0] * inner) == 0),
         "core: channels do not fit the elements");
  expect_vector(name, v, x.dtype, v.size[0]);
}

Activated activated(const View& x, const View& tangents, int kind, const View& scale, const View& shift, int64_t inner,
                    double below, const View& scratch) {
  expect(x.ndim == 2 && (x.dtype == DType::f32 || x.dtype == DType::f64), "core: x must be a float matrix");
  expect(kind >= 0 && kind < kActivations, "core: there is no such activation");
  const int64_t l = x.size[1];
  expect_rows("x", x, x.dtype, x.size[0], l);
  expect(tangents.ndim == 3, "core: tangents must be (n, t, l)");
  expect_tangents("tangents", tangents, x, tangents.size[1]);
  expect_channels("scale", scale, x, inner);
  expect_channels("shift", shift, x, inner);
  expect_vector("scratch", scratch, x.dtype, activation_jvp_scratch(0, l));
  const auto fill = [&](auto* memory) {
    spread(scale, inner, 1, memory, l);
    spread(shift, inner, -0.0, memory + l, l);  // -0 + -0 = -0
    return Activated{x, tangents, static_cast<Activation>(kind), below, memory, memory + l};
  };
  return x.dtype == DType::f64 ? fill(static_cast<double*>(scratch.data)) : fill(static_cast<float*>(scratch.data));
}

// Calls run(part, begin, end) for each of the parts of the samples and each block of elements.
template <class F>
void for_blocks(const Activated& op, int64_t samples_in_part, int64_t tensors, int threads, const F& run) {
  const int64_t l = op.x.size[1], blocks = parts(l, kActivationBlock);
  const int64_t width = std::min(l, kActivationBlock) * bytes_of(op.x.dtype);
  const int64_t bytes = samples_in_part * width * tensors * (1 + op.tangents.size[1]);
  parallel_for(parts(op.x.size[0], samples_in_part) * blocks, bytes, threads, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item % blocks * kActivationBlock;
      run(item / blocks, begin, std::min(l, begin + kActivationBlock));
    }
  });
}

// grad[channel] = the sum over groups and over the elements of the channel; sums (groups, 2, l), scale's row first
template <class T>
void add_up(const T* sums, int64_t groups, int64_t l, int64_t inner, const View& grad, int threads) {
  const int64_t channels = grad.size[0];
  auto* to = static_cast<T*>(grad.data);
  const auto sum = [&](int64_t c) {
    double total = 0;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t j = c * inner; j < l; j += channels * inner) {
        for (int64_t i = 0; i < inner; ++i) total += double(sums[2 * g * l + j + i]);
      }
    }
    return total;
  };
  parallel_for(channels, channels > 0 ? groups * l / channels * int64_t(sizeof(T)) : 0, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t c = begin; c < end; ++c) to[c] = T(sum(c));
               });
}

}  // namespace

void activation_jvp(const View& x, const View& tangents, int kind, const View& scale, const View& shift, int64_t inner,
                    double below, const View& scratch, const View& y, const View& dy, int threads) {
  const Activated op = activated(x, tangents, kind, scale, shift, inner, below, scratch);
  expect_rows("y", y, x.dtype, x.size[0], x.size[1]);
  expect_tangents("dy", dy, x, tangents.size[1]);
  const auto run = FL_KERNELS(jacobian).jvp;
  for_blocks(op, 1, 2, threads,
             [&](int64_t sample, int64_t begin, int64_t end) { run(op, y, dy, sample, begin, end); });
}

int64_t activation_jvp_scratch(int64_t n, int64_t l) { return 2 * l * (1 + parts(n, kGroup)); }

void activation_jvp_backward(const View& grad_y, const View& grad_dy, const View& x, const View& tangents, int kind,
                             const View& scale, const View& shift, int64_t inner, double below, const View& scratch,
                             const View& x_grad, const View& tangents_grad, const View& scale_grad,
                             const View& shift_grad, int threads) {
  const Activated op = activated(x, tangents, kind, scale, shift, inner, below, scratch);
  const int64_t n = x.size[0], l = x.size[1];
  for (const View* v : {&grad_y, &x_grad}) expect_rows("a gradient", *v, x.dtype, n, l);
  for (const View* v : {&grad_dy, &tangents_grad}) expect_tangents("a gradient", *v, x, tangents.size[1]);
  expect_channels("scale_grad", scale_grad, x, inner);
  expect_channels("shift_grad", shift_grad, x, inner);
  expect_vector("scratch", scratch, x.dtype, activation_jvp_scratch(n, l));
  const auto backward = [&](auto* sums) {
    const bool summed = scale_grad.size[0] + shift_grad.size[0] > 0;
    const int64_t part = summed ? kGroup : 1;
    const auto run = FL_KERNELS(jacobian).jvp_backward;
    for_blocks(op, part, 3, threads, [&](int64_t group, int64_t begin, int64_t end) {
      const int64_t first = group * part;
      run(op, grad_y, grad_dy, x_grad, tangents_grad, first, std::min(n, first + part), begin, end,
          summed ? sums + 2 * group * l + begin : nullptr);
    });
    add_up(sums, parts(n, kGroup), l, inner, scale_grad, threads);
    add_up(sums + l, parts(n, kGroup), l, inner, shift_grad, threads);
  };
  if (x.dtype == DType::f64) {
    backward(static_cast<double*>(scratch.data) + 2 * l);
  } else {
    backward(static_cast<float*>(scratch.data) + 2 * l);
  }
}

}  // namespace fl
