#include "jacobian.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

// Samples whose contributions to the gradients of scale and shift are added in the arguments' own precision.
constexpr int64_t kGroup = 16;

struct alignas(64) Line {
  char bytes[64];
};

int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

void expect_tangents(const char* name, const View& v, const View& x, int64_t t) {
  const bool holds = v.ndim == 3 && v.dtype == x.dtype && !v.cuda && v.size[0] == x.size[0] && v.size[1] == t &&
                     v.size[2] == x.size[1] && (v.stride[2] == 1 || v.size[2] <= 1);
  if (!holds) throw std::invalid_argument(std::string("core: ") + name + " must be (n, t, l) with contiguous rows");
}

Activated activated(const View& x, const View& tangents, int kind, const View& scale, const View& shift, double below) {
  expect(x.ndim == 2 && (x.dtype == DType::f32 || x.dtype == DType::f64), "core: x must be a float matrix");
  expect(kind >= 0 && kind < kActivations, "core: there is no such activation");
  expect_rows("x", x, x.dtype, x.size[0], x.size[1]);
  expect(tangents.ndim == 3, "core: tangents must be (n, t, l)");
  expect_tangents("tangents", tangents, x, tangents.size[1]);
  expect_vector("scale", scale, x.dtype, x.size[1]);
  expect_vector("shift", shift, x.dtype, x.size[1]);
  return {x, tangents, scale, shift, static_cast<Activation>(kind), below};
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

// grad[channel] = the sum over groups and over the elements of the channel; `row` 0 is scale's, 1 shift's.
template <class T>
void add_up(const View& scratch, int64_t groups, int64_t l, int64_t row, int64_t inner, const View& grad, int threads) {
  const int64_t channels = grad.size[0];
  const auto* from = static_cast<const T*>(scratch.data) + row * l;
  auto* to = static_cast<T*>(grad.data);
  parallel_for(channels, channels > 0 ? groups * l / channels * int64_t(sizeof(T)) : 0, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t c = begin; c < end; ++c) {
                   double total = 0;
                   for (int64_t g = 0; g < groups; ++g) {
                     for (int64_t outer = c * inner; outer < l; outer += channels * inner) {
                       for (int64_t i = 0; i < inner; ++i) total += double(from[2 * g * l + outer + i]);
                     }
                   }
                   to[c] = T(total);
                 }
               });
}

}  // namespace

void activation_jvp(const View& x, const View& tangents, int kind, const View& scale, const View& shift, double below,
                    const View& y, const View& dy, int threads) {
  const Activated op = activated(x, tangents, kind, scale, shift, below);
  expect_rows("y", y, x.dtype, x.size[0], x.size[1]);
  expect_tangents("dy", dy, x, tangents.size[1]);
  const auto run = FL_KERNELS(jacobian).jvp;
  for_blocks(op, 1, 2, threads,
             [&](int64_t sample, int64_t begin, int64_t end) { run(op, y, dy, sample, begin, end); });
}

int64_t activation_jvp_scratch(int64_t n, int64_t l) { return parts(n, kGroup) * 2 * l; }

void activation_jvp_backward(const View& grad_y, const View& grad_dy, const View& x, const View& tangents, int kind,
                             const View& scale, const View& shift, double below, const View& x_grad,
                             const View& tangents_grad, const View& scale_grad, const View& shift_grad, int64_t inner,
                             const View& scratch, int threads) {
  const Activated op = activated(x, tangents, kind, scale, shift, below);
  const int64_t n = x.size[0], l = x.size[1];
  for (const View* v : {&grad_y, &x_grad}) expect_rows("a gradient", *v, x.dtype, n, l);
  for (const View* v : {&grad_dy, &tangents_grad}) expect_tangents("a gradient", *v, x, tangents.size[1]);
  const bool summed = scale_grad.ndim != 1 || shift_grad.ndim != 1 || scale_grad.size[0] + shift_grad.size[0] > 0;
  for (const View* v : {&scale_grad, &shift_grad}) {
    expect(v->ndim == 1 && inner >= 1 && (v->size[0] == 0 || l % (v->size[0] * inner) == 0),
           "core: channels do not fit the elements");
    expect_vector("a gradient", *v, x.dtype, v->size[0]);
  }
  if (summed) expect_vector("scratch", scratch, x.dtype, activation_jvp_scratch(n, l));

  const auto run = FL_KERNELS(jacobian).jvp_backward;
  for_blocks(op, kGroup, 3, threads, [&](int64_t group, int64_t begin, int64_t end) {
    void* sums = summed ? static_cast<char*>(scratch.data) + (2 * group * l + begin) * bytes_of(x.dtype) : nullptr;
    const int64_t first = group * kGroup;
    run(op, grad_y, grad_dy, x_grad, tangents_grad, first, std::min(n, first + kGroup), begin, end, sums, l);
  });
  if (!summed) return;
  const int64_t groups = parts(n, kGroup);
  const auto add = x.dtype == DType::f64 ? add_up<double> : add_up<float>;
  add(scratch, groups, l, 0, inner, scale_grad, threads);
  add(scratch, groups, l, 1, inner, shift_grad, threads);
}

void jacobian_gram(const View& jacobian, const View& weight, const View& out, int threads) {
  expect(jacobian.ndim == 3 && !jacobian.cuda && (jacobian.dtype == DType::f32 || jacobian.dtype == DType::f64),
         "core: jacobian must be (n, D, d), float32 or float64, on the CPU");
  const int64_t n = jacobian.size[0], rows = jacobian.size[1], d = jacobian.size[2];
  const bool weighted = weight.ndim == 2;
  if (weighted) expect_rows("weight", weight, jacobian.dtype, n, rows);
  expect(out.ndim == 3 && !out.cuda && out.dtype == jacobian.dtype && out.size[0] == n && out.size[1] == d &&
             out.size[2] == d &&
             (d == 0 || (out.stride[0] == d * d && out.stride[1] == d && out.stride[2] == 1) ||
              (n <= 1 && out.stride[1] == d && out.stride[2] == 1) || d == 1),
         "core: out must be (n, d, d), contiguous");
  const auto& kernels = FL_KERNELS(jacobian);
  const size_t lines = size_t(kernels.gram_scratch(jacobian) / 64 + 1);
  std::atomic<bool> out_of_memory{false};
  const int64_t bytes = rows * d * bytes_of(jacobian.dtype) * (1 + d / 8);
  parallel_for(n, bytes, threads, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Line[]> scratch(new (std::nothrow) Line[lines]);
    if (!scratch) {
      out_of_memory = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) kernels.gram(jacobian, weighted ? &weight : nullptr, out, i, scratch.get());
  });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace fl
