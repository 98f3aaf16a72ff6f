#include "logistic.h"

#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "expect.h"
#include "logistic_means.h"
#include "parallel.h"

namespace fl {
namespace {

// Elements, or pixels, that are computed together: a chunk's sum does not depend on the number of threads.
constexpr int64_t kBlock = 256;

int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

struct alignas(64) Line {
  char bytes[64];
};

DType wide(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

void expect_grid(const LogisticGrid& grid) {
  expect(grid.bins >= 2 && grid.bins <= 65536 && grid.gamma > 0, "core: there is no such grid");
}

void expect_bins(const View& bins) {
  expect((bins.dtype == DType::u8 || bins.dtype == DType::i32) && !bins.cuda, "core: bins must be u8 or i32");
}

void expect_in_range(bool in_range, const char* op, const LogisticGrid& grid) {
  if (!in_range) {
    throw std::invalid_argument(std::string(op) + ": bins must be in 0 to " + std::to_string(grid.bins - 1));
  }
}

void expect_elements(const View& mean, const View& log_scale, const View& out, DType dtype) {
  expect(mean.ndim == 1 && is_floating(mean.dtype), "core: elements must be vectors");
  expect_vector("mean", mean, mean.dtype, out.size[0]);
  expect_vector("log_scale", log_scale, mean.dtype, mean.size[0]);
  expect_vector("out", out, dtype, mean.size[0]);
}

void expect_elements(const View& bins, const View& mean, const View& log_scale) {
  expect_bins(bins);
  expect(bins.ndim == 1 && mean.ndim == 1 && is_floating(mean.dtype), "core: elements must be vectors");
  expect_vector("bins", bins, bins.dtype, mean.size[0]);
  expect_vector("mean", mean, mean.dtype, bins.size[0]);
  expect_vector("log_scale", log_scale, mean.dtype, bins.size[0]);
}

Mixture mixture_of(const View& bins, const View& params, const LogisticGrid& grid) {
  expect_grid(grid);
  expect(bins.ndim == 3 && params.ndim == 3 && is_floating(params.dtype) && !params.cuda && !bins.cuda,
         "core: bins and params must be (n, c, s) and (n, p, s) on the CPU");
  const int64_t channels = bins.size[1], each = grid.coupled ? 10 : 1 + 2 * channels;
  expect(!grid.coupled || channels == 3, "core: coupled channels must be three");
  expect(params.size[0] == bins.size[0] && params.size[2] == bins.size[2] && params.size[1] >= each &&
             params.size[1] % each == 0,
         "core: params do not fit bins");
  return {bins, params, params.size[1] / each, channels, grid};
}

void expect_like_params(const View& grad, const View& params) {
  expect(grad.ndim == 3 && grad.dtype == params.dtype && !grad.cuda && grad.size[0] == params.size[0] &&
             grad.size[1] == params.size[1] && grad.size[2] == params.size[2],
         "core: params_grad must be like params");
}

void expect_modes(const View& out, const LogisticGrid& grid) {
  expect((out.dtype == DType::u8 && grid.bins <= 256) || out.dtype == DType::i32, "core: modes must be u8 or i32");
}

// Calls run(begin, end) for blocks of elements.
template <class F>
void for_elements(int64_t count, int threads, const F& run) {
  parallel_for(blocks_of(count), kBlock * 64, threads,
               [&](int64_t begin, int64_t end) { run(begin * kBlock, end * kBlock < count ? end * kBlock : count); });
}

// Calls run(image, begin, end, block, scratch) for each block of pixels of each image.
template <class F>
void for_blocks(const Mixture& mixture, int threads, const F& run) {
  const int64_t n = mixture.params.size[0], s = mixture.params.size[2], blocks = blocks_of(s);
  const int64_t bytes = (s < kBlock ? s : kBlock) * mixture.params.size[1] * 8;
  const size_t lines = size_t(FL_KERNELS(logistic).scratch(mixture) / 64 + 1);
  std::atomic<bool> out_of_memory{false};
  parallel_for(n * blocks, bytes, threads, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Line[]> scratch(new (std::nothrow) Line[lines]);
    if (!scratch) {
      out_of_memory = true;
      return;
    }
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / blocks, first = block % blocks * kBlock;
      run(image, first, first + kBlock < s ? first + kBlock : s, block, scratch.get());
    }
  });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace

void logistic_log_prob(const View& bins, const View& mean, const View& log_scale, const LogisticGrid& grid,
                       const View& out, int threads) {
  expect_grid(grid);
  expect_elements(bins, mean, log_scale);
  expect_vector("out", out, wide(mean.dtype), bins.size[0]);
  const auto run = FL_KERNELS(logistic).log_prob;
  std::atomic<bool> in_range{true};
  for_elements(bins.size[0], threads, [&](int64_t begin, int64_t end) {
    if (!run(bins, mean, log_scale, grid, out, begin, end)) in_range = false;
  });
  expect_in_range(in_range, "discretized_logistic_log_prob", grid);
}

void logistic_backward(const View& grad, const View& bins, const View& mean, const View& log_scale,
                       const LogisticGrid& grid, const View& mean_grad, const View& log_scale_grad, int threads) {
  expect_grid(grid);
  expect_elements(bins, mean, log_scale);
  expect_vector("grad", grad, wide(mean.dtype), bins.size[0]);
  expect_vector("mean_grad", mean_grad, mean.dtype, bins.size[0]);
  expect_vector("log_scale_grad", log_scale_grad, mean.dtype, bins.size[0]);
  const auto run = FL_KERNELS(logistic).backward;
  for_elements(bins.size[0], threads, [&](int64_t begin, int64_t end) {
    run(grad, bins, mean, log_scale, grid, mean_grad, log_scale_grad, begin, end);
  });
}

void logistic_mixture_log_prob(const View& bins, const View& params, const LogisticGrid& grid, const View& out,
                               int threads) {
  const Mixture mixture = mixture_of(bins, params, grid);
  expect_bins(bins);
  const int64_t n = params.size[0], s = params.size[2], blocks = blocks_of(s);
  const bool each = out.ndim == 2;
  if (each) {
    expect_rows("out", out, wide(params.dtype), n, s);
  } else {
    expect_vector("out", out, wide(params.dtype), n);
  }
  const auto& kernels = FL_KERNELS(logistic);
  std::vector<double> sums(size_t(n * blocks));
  std::atomic<bool> in_range{true};
  for_blocks(mixture, threads, [&](int64_t image, int64_t begin, int64_t end, int64_t block, void* scratch) {
    bool good = true;
    sums[size_t(block)] = kernels.mixture_log_prob(mixture, image, begin, end, each ? &out : nullptr, scratch, good);
    if (!good) in_range = false;
  });
  expect_in_range(in_range, "discretized_logistic_mixture_log_prob", mixture.grid);
  for (int64_t i = 0; !each && i < n; ++i) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += sums[size_t(i * blocks + block)];
    if (out.dtype == DType::f64) {
      static_cast<double*>(out.data)[i] = total;
    } else {
      static_cast<float*>(out.data)[i] = float(total);
    }
  }
}

void logistic_mixture_backward(const View& grad, const View& bins, const View& params, const LogisticGrid& grid,
                               const View& params_grad, int threads) {
  const Mixture mixture = mixture_of(bins, params, grid);
  expect_bins(bins);
  const int64_t n = params.size[0], s = params.size[2];
  if (grad.ndim == 2) {
    expect_rows("grad", grad, wide(params.dtype), n, s);
  } else {
    expect_vector("grad", grad, wide(params.dtype), n);
  }
  expect_like_params(params_grad, params);
  const auto& kernels = FL_KERNELS(logistic);
  for_blocks(mixture, threads, [&](int64_t image, int64_t begin, int64_t end, int64_t, void* scratch) {
    kernels.mixture_backward(mixture, image, begin, end, grad, params_grad, scratch);
  });
}

void logistic_mixture_sample(const View& params, const View& uniforms, const LogisticGrid& grid, const View& out,
                             int threads) {
  const Mixture mixture = mixture_of(out, params, grid);
  const DType dtype = wide(params.dtype);
  expect(out.dtype == DType::u8 ? grid.bins <= 256 : out.dtype == DType::i32 || out.dtype == dtype,
         "core: out must be u8, i32 or of params' precision");
  expect(uniforms.ndim == 3 && uniforms.dtype == dtype && !uniforms.cuda && uniforms.size[0] == params.size[0] &&
             uniforms.size[1] == 1 + mixture.channels && uniforms.size[2] == params.size[2],
         "core: uniforms must be (n, 1 + c, s)");
  const auto& kernels = FL_KERNELS(logistic);
  for_blocks(mixture, threads, [&](int64_t image, int64_t begin, int64_t end, int64_t, void* scratch) {
    kernels.mixture_sample(mixture, image, begin, end, uniforms, out, scratch);
  });
}

void logistic_mean(const View& mean, const View& log_scale, const LogisticGrid& grid, const View& out, int threads) {
  expect_grid(grid);
  expect_elements(mean, log_scale, out, wide(mean.dtype));
  const auto run = FL_KERNELS(logistic_means).mean;
  for_elements(mean.size[0], threads, [&](int64_t begin, int64_t end) { run(mean, log_scale, grid, out, begin, end); });
}

void logistic_mean_backward(const View& grad, const View& mean, const View& log_scale, const LogisticGrid& grid,
                            const View& mean_grad, const View& log_scale_grad, int threads) {
  expect_grid(grid);
  expect_elements(mean, log_scale, mean_grad, mean.dtype);
  expect_vector("grad", grad, wide(mean.dtype), mean.size[0]);
  expect_vector("log_scale_grad", log_scale_grad, mean.dtype, mean.size[0]);
  const auto run = FL_KERNELS(logistic_means).mean_backward;
  for_elements(mean.size[0], threads, [&](int64_t begin, int64_t end) {
    run(grad, mean, log_scale, grid, mean_grad, log_scale_grad, begin, end);
  });
}

void logistic_mode(const View& mean, const View& log_scale, const LogisticGrid& grid, const View& out, int threads) {
  expect_grid(grid);
  expect_modes(out, grid);
  expect_elements(mean, log_scale, out, out.dtype);
  const auto run = FL_KERNELS(logistic_means).mode;
  for_elements(mean.size[0], threads, [&](int64_t begin, int64_t end) { run(mean, log_scale, grid, out, begin, end); });
}

void logistic_mixture_mean(const View& params, const LogisticGrid& grid, const View& out, int threads) {
  const Mixture mixture = mixture_of(out, params, grid);
  expect(out.dtype == wide(params.dtype), "core: out must be of params' precision");
  const auto run = FL_KERNELS(logistic_means).mixture_mean;
  for_blocks(mixture, threads, [&](int64_t image, int64_t begin, int64_t end, int64_t, void* scratch) {
    run(mixture, image, begin, end, out, scratch);
  });
}

void logistic_mixture_mean_backward(const View& grad, const View& params, const LogisticGrid& grid,
                                    const View& params_grad, int threads) {
  const Mixture mixture = mixture_of(grad, params, grid);
  expect(grad.dtype == wide(params.dtype), "core: grad must be of params' precision");
  expect_like_params(params_grad, params);
  const auto run = FL_KERNELS(logistic_means).mixture_mean_backward;
  for_blocks(mixture, threads, [&](int64_t image, int64_t begin, int64_t end, int64_t, void* scratch) {
    run(mixture, image, begin, end, grad, params_grad, scratch);
  });
}

void logistic_mixture_mode(const View& params, const LogisticGrid& grid, const View& out, int threads) {
  const Mixture mixture = mixture_of(out, params, grid);
  expect_modes(out, grid);
  const auto run = FL_KERNELS(logistic_means).mixture_mode;
  for_blocks(mixture, threads, [&](int64_t image, int64_t begin, int64_t end, int64_t, void* scratch) {
    run(mixture, image, begin, end, out, scratch);
  });
}

}  // namespace fl
