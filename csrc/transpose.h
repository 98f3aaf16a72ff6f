// Transposition in registers. Include it only from *.simd.cpp files, after simd.h.
#pragma once

#include "simd.h"

#if defined(__clang__) || __GNUC__ >= 12
#define FL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntOf<V>{__VA_ARGS__})
#endif

namespace fl {
namespace FL_ISA {

// The numbers of two vectors by turns, within each 16 bytes: those of the lower halves, and of the upper.
template <class V>
FL_INLINE void interleave(V a, V b, V& low, V& high) {
  constexpr int lanes = Format<V>::kLanes;
  if constexpr (sizeof(a[0]) == 8 && lanes == 2) {
    low = FL_SHUFFLE(a, b, 0, 2);
    high = FL_SHUFFLE(a, b, 1, 3);
  } else if constexpr (sizeof(a[0]) == 8 && lanes == 4) {
    low = FL_SHUFFLE(a, b, 0, 4, 2, 6);
    high = FL_SHUFFLE(a, b, 1, 5, 3, 7);
  } else if constexpr (sizeof(a[0]) == 8) {
    low = FL_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    high = FL_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  } else if constexpr (lanes == 4) {
    low = FL_SHUFFLE(a, b, 0, 4, 1, 5);
    high = FL_SHUFFLE(a, b, 2, 6, 3, 7);
  } else if constexpr (lanes == 8) {
    low = FL_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    high = FL_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  } else {
    low = FL_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    high = FL_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
}

// The 16 bytes of two vectors by turns, seen as doubles.
FL_INLINE void interleave_blocks(f64v a, f64v b, f64v& low, f64v& high) {
  [[maybe_unused]] typedef f64v V;
#if FL_BYTES == 16
  low = a, high = b;
#elif FL_BYTES == 32
  low = FL_SHUFFLE(a, b, 0, 1, 4, 5);
  high = FL_SHUFFLE(a, b, 2, 3, 6, 7);
#else
  low = FL_SHUFFLE(a, b, 0, 1, 8, 9, 2, 3, 10, 11);
  high = FL_SHUFFLE(a, b, 4, 5, 12, 13, 6, 7, 14, 15);
#endif
}

// Transposes a square of numbers, a vector for each row: by perfect shuffles of the rows, first within the squares that
// 16 bytes of `side` rows make, then of these squares.
template <class V>
FL_INLINE void transpose(V (&m)[Format<V>::kLanes]) {
  constexpr int lanes = Format<V>::kLanes, side = 16 / sizeof(m[0][0]), blocks = lanes / side;
  V next[lanes];
#pragma GCC unroll 2
  for (int round = 1; round < side; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      const int from = i / (side / 2) * side + i % (side / 2), to = 2 * i;
      interleave(m[from], m[from + side / 2], next[to], next[to + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) m[i] = next[i];
  }
#pragma GCC unroll 2
  for (int round = 1; round < blocks; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      const int from = i, to = i / side * 2 * side + i % side;
      f64v low, high;
      interleave_blocks(bits_as<f64v>(m[from]), bits_as<f64v>(m[from + lanes / 2]), low, high);
      next[to] = bits_as<V>(low);
      next[to + side] = bits_as<V>(high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) m[i] = next[i];
  }
}

}  // namespace FL_ISA
}  // namespace fl

#undef FL_SHUFFLE
