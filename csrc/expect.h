// What a kernel needs of its arguments to stay inside their memory. fastlatent.ops speaks to users; these sentences are
// for whoever calls past it.
#pragma once

#include <stdexcept>
#include <string>

#include "view.h"

namespace fl {

inline void expect(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

inline bool is_floating(DType dtype) { return dtype <= DType::f64; }

// A matrix of n rows that are contiguous, on the CPU or, with `cuda`, on a GPU.
inline void expect_rows(const char* name, const View& v, DType dtype, int64_t n, int64_t d, bool cuda = false) {
  const bool holds = v.ndim == 2 && v.dtype == dtype && v.size[0] == n && v.size[1] == d && v.cuda == cuda &&
                     (v.stride[1] == 1 || d <= 1 || n == 0);
  if (!holds) {
    throw std::invalid_argument(std::string("core: ") + name + " must be (" + std::to_string(n) + ", " +
                                std::to_string(d) + ") with contiguous rows, of the dtype and device that go along");
  }
}

// A contiguous (n, m, d) on the CPU.
inline void expect_cube(const char* name, const View& v, DType dtype, int64_t n, int64_t m, int64_t d) {
  const bool holds = v.ndim == 3 && v.dtype == dtype && v.size[0] == n && v.size[1] == m && v.size[2] == d && !v.cuda;
  const bool dense = (v.stride[2] == 1 || d <= 1) && (v.stride[1] == d || m <= 1) && (v.stride[0] == m * d || n <= 1);
  if (!holds || !(dense || n * m * d == 0)) {
    throw std::invalid_argument(std::string("core: ") + name + " must be (" + std::to_string(n) + ", " +
                                std::to_string(m) + ", " + std::to_string(d) +
                                "), contiguous, of the dtype that goes along, on the CPU");
  }
}

// A contiguous vector on the CPU of at least n elements.
inline void expect_vector(const char* name, const View& v, DType dtype, int64_t n) {
  const bool holds = v.ndim == 1 && v.dtype == dtype && v.size[0] >= n && !v.cuda && (v.stride[0] == 1 || n <= 1);
  if (!holds) {
    throw std::invalid_argument(std::string("core: ") + name + " must be a contiguous vector of " + std::to_string(n) +
                                " elements on the CPU");
  }
}

}  // namespace fl
