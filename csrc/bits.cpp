#include "bits.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "expect.h"
#include "parallel.h"

namespace fl {
namespace {

int64_t row_bytes(const View& v) {
  const int64_t width[] = {2, 2, 4, 8, 8, 4, 1};
  return v.size[1] * width[static_cast<int>(v.dtype)];
}

void expect_codes_and_words(const View& codes, const View& words) {
  expect(codes.ndim == 2 && is_floating(codes.dtype), "core: codes must be a floating matrix");
  expect_rows("codes", codes, codes.dtype, codes.size[0], codes.size[1]);
  expect_rows("words", words, DType::i64, codes.size[0], (codes.size[1] + 63) / 64);
}

// Columns are counted in blocks of this many: two blocks of 60,000 rows fit a second-level cache.
constexpr int64_t kBlock = 64;

struct Moments {
  int64_t columns;  // d rounded up to whole blocks
  int64_t length;   // words of 64 rows in a column, a multiple of 8
};

Moments layout(int64_t n, int64_t d) { return {(d + kBlock - 1) / kBlock * kBlock, (n + 511) / 512 * 8}; }

}  // namespace

void binarize(const View& x, int surrogate, const View& codes, const View& error, int threads) {
  expect(x.ndim == 2 && is_floating(x.dtype), "core: x must be a floating matrix");
  expect(surrogate >= 0 && surrogate <= 2, "core: there is no such surrogate");
  expect_rows("x", x, x.dtype, x.size[0], x.size[1]);
  expect_rows("codes", codes, x.dtype, x.size[0], x.size[1]);
  expect_vector("error", error, x.dtype == DType::f64 ? DType::f64 : DType::f32, x.size[0]);
  const auto run = FL_KERNELS(bits).binarize;
  parallel_for(x.size[0], 2 * row_bytes(x), threads, [&](int64_t begin, int64_t end) {
    run(x, static_cast<Surrogate>(surrogate), codes, error, begin, end);
  });
}

void binarize_backward(const View& grad, const View& x, int surrogate, const View& out, int threads) {
  expect(x.ndim == 2 && is_floating(x.dtype), "core: x must be a floating matrix");
  expect(surrogate >= 0 && surrogate <= 2, "core: there is no such surrogate");
  expect_rows("x", x, x.dtype, x.size[0], x.size[1]);
  expect_rows("grad", grad, x.dtype, x.size[0], x.size[1]);
  expect_rows("out", out, x.dtype, x.size[0], x.size[1]);
  const auto run = FL_KERNELS(bits).binarize_backward;
  parallel_for(x.size[0], 3 * row_bytes(x), threads,
               [&](int64_t begin, int64_t end) { run(grad, x, static_cast<Surrogate>(surrogate), out, begin, end); });
}

void pack_bits(const View& codes, const View& words, int threads) {
  expect_codes_and_words(codes, words);
  const auto run = FL_KERNELS(bits).pack;
  const int64_t n = codes.size[0];
  std::atomic<int64_t> wrong{n};
  parallel_for(n, row_bytes(codes), threads, [&](int64_t begin, int64_t end) {
    const int64_t found = run(codes, words, begin, end);
    int64_t least = wrong;
    while (found >= 0 && found < least && !wrong.compare_exchange_weak(least, found)) {
    }
  });
  if (wrong < n) {
    throw std::invalid_argument("pack_bits: codes must be +1 or -1; row " + std::to_string(wrong) +
                                " holds something else");
  }
}

void unpack_bits(const View& words, const View& codes, int threads) {
  expect_codes_and_words(codes, words);
  const auto run = FL_KERNELS(bits).unpack;
  parallel_for(codes.size[0], row_bytes(codes), threads,
               [&](int64_t begin, int64_t end) { run(words, codes, begin, end); });
}

int64_t binary_moments_scratch(int64_t n, int64_t d) {
  const Moments m = layout(n, d);
  return m.columns * m.length + m.columns * m.columns;
}

void binary_moments(const View& words, const View& ones, const View& agree, const View& scratch, int threads) {
  const auto& kernels = FL_KERNELS(bits);
  const int64_t n = words.size[0], d = ones.size[0];
  const Moments m = layout(n, d);
  expect(words.ndim == 2 && ones.ndim == 1, "core: words must be a matrix and ones a vector");
  expect_rows("words", words, DType::i64, n, (d + 63) / 64);
  expect_vector("ones", ones, DType::i64, d);
  expect_rows("agree", agree, DType::i64, d, d);
  expect(agree.stride[0] == d || d <= 1, "core: agree must be contiguous");
  expect_vector("scratch", scratch, DType::i64, binary_moments_scratch(n, d));
  auto* columns = static_cast<uint64_t*>(scratch.data);
  auto* differ = static_cast<int64_t*>(scratch.data) + m.columns * m.length;
  auto* count = static_cast<int64_t*>(ones.data);
  auto* equal = static_cast<int64_t*>(agree.data);

  parallel_for(m.length / 8, 512 * m.columns / 8, threads,
               [&](int64_t begin, int64_t end) { kernels.transpose(words, columns, m.length, begin, end); });
  const int64_t blocks = m.columns / kBlock;
  parallel_for(blocks * blocks, kBlock * m.length * 8, threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t i = b / blocks * kBlock, j = b % blocks * kBlock;
      if (i <= j) kernels.differ(columns, m.length, i, i + kBlock, j, j + kBlock, differ, m.columns);
    }
  });
  parallel_for(d, 16 * d, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      count[i] = kernels.count(columns + i * m.length, m.length);
      for (int64_t j = 0; j < d; ++j) {
        equal[i * d + j] = n - (i <= j ? differ[i * m.columns + j] : differ[j * m.columns + i]);
      }
    }
  });
}

}  // namespace fl
