// Binary codes: straight-through binarisation, bit packing, second moments. Rows are contiguous, row strides are free.
// fastlatent/ops/bits.py is the definition.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

enum class Surrogate { identity, clip, tanh };

// codes (n, d) = sign(x), error (n,) = mean over d of |t - code|
void binarize(const View& x, int surrogate, const View& codes, const View& error, int threads);
// out (n, d) = grad * dt/dx
void binarize_backward(const View& grad, const View& x, int surrogate, const View& out, int threads);

// (n, d) floating -> (n, ceil(d / 64)) int64; throws std::invalid_argument for an element other than +1 and -1
void pack_bits(const View& codes, const View& words, int threads);
void unpack_bits(const View& words, const View& codes, int threads);

// words (n, ceil(d / 64)) -> ones (d,), agree (d, d), all int64; scratch: int64, binary_moments_scratch(n, d) elements
void binary_moments(const View& words, const View& ones, const View& agree, const View& scratch, int threads);
int64_t binary_moments_scratch(int64_t n, int64_t d);

// What each instruction set provides; `begin` and `end` bound rows, words or blocks.
struct BitsKernels {
  void (*binarize)(const View& x, Surrogate, const View& codes, const View& error, int64_t begin, int64_t end);
  void (*binarize_backward)(const View& grad, const View& x, Surrogate, const View& out, int64_t begin, int64_t end);
  // the first row with an element that is not a code, or -1
  int64_t (*pack)(const View& codes, const View& words, int64_t begin, int64_t end);
  void (*unpack)(const View& words, const View& codes, int64_t begin, int64_t end);
  // Bit columns: column c starts at columns + c * length, `length` words of 64 rows each, zero beyond the last row.
  void (*transpose)(const View& words, uint64_t* columns, int64_t length, int64_t begin, int64_t end);
  // set bits of one column
  int64_t (*count)(const uint64_t* column, int64_t length);
  // differ[i][j] for a block of columns i in [i0, i1) and j in [j0, j1), j >= i rounded down to the tile
  void (*differ)(const uint64_t* columns, int64_t length, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                 int64_t* differ, int64_t stride);
};

FL_DECLARE_KERNELS(BitsKernels, bits)

}  // namespace fl
