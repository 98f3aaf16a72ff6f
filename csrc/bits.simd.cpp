#include "bits.h"

#include <type_traits>

#include "simd.h"

namespace fl {
namespace FL_ISA {
namespace {

template <class T>
const T* row(const View& v, int64_t i) {
  return static_cast<const T*>(v.data) + i * v.stride[0];
}

template <class T>
T* row_out(const View& v, int64_t i) {
  return static_cast<T*>(v.data) + i * v.stride[0];
}

// 1 - |tanh x|, without cancellation
template <class V>
V distance_to_one(V x) {
  return 2 / (exp(2 * abs(x)) + 1);
}

// Elements whose errors are added in the lanes of one vector before they join a double: bounds the rounding.
constexpr int64_t kErrorBlock = 256;

template <class T, Surrogate kind>
void binarize_rows(const View& x, const View& codes, const View& error, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t d = x.size[1];
  for (int64_t i = begin; i < end; ++i) {
    const T* in = row<T>(x, i);
    T* out = row_out<T>(codes, i);
    double total = 0;
    for (int64_t block = 0; block < d; block += kErrorBlock) {
      const int64_t stop = block + kErrorBlock < d ? block + kErrorBlock : d;
      V part = V{};
      const auto step = [&](V logit) {
        const V code = sign(logit);
        part += kind == Surrogate::tanh ? distance_to_one(logit) : abs(logit - code);
        return code;
      };
      int64_t j = block;
      for (; j + lanes <= stop; j += lanes) store(out + j, step(load(in + j)));
      if (j < stop) {
        // The lanes beyond the row hold logit 0, whose error is exactly 1.
        store_some(out + j, step(load_some(in + j, stop - j)), stop - j);
        total -= double(lanes - (stop - j));
      }
      for (int64_t l = 0; l < lanes; ++l) total += double(part[l]);
    }
    auto* mean = static_cast<ScalarOf<V>*>(error.data) + i * error.stride[0];
    *mean = ScalarOf<V>(total / double(d));
  }
}

template <class T, Surrogate kind>
void binarize_backward_rows(const View& grad, const View& x, const View& out, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t d = x.size[1];
  const auto slope = [](V logit) {
    if constexpr (kind == Surrogate::tanh) {
      const V distance = distance_to_one(logit);
      return distance * (2 - distance);
    } else if constexpr (kind == Surrogate::clip) {
      const V one = splat<V>(1);
      return abs(logit) <= 1 ? one : (logit == logit ? V{} : logit);
    } else {
      return splat<V>(1);
    }
  };
  for (int64_t i = begin; i < end; ++i) {
    const T* g = row<T>(grad, i);
    const T* in = row<T>(x, i);
    T* to = row_out<T>(out, i);
    int64_t j = 0;
    for (; j + lanes <= d; j += lanes) store(to + j, load(g + j) * slope(load(in + j)));
    if (j < d) {
      store_some(to + j, load_some(g + j, d - j) * slope(load_some(in + j, d - j)), d - j);
    }
  }
}

void binarize(const View& x, Surrogate kind, const View& codes, const View& error, int64_t begin, int64_t end) {
  with_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    switch (kind) {
      case Surrogate::identity:  // the same forward pass
      case Surrogate::clip:
        return binarize_rows<T, Surrogate::identity>(x, codes, error, begin, end);
      case Surrogate::tanh:
        return binarize_rows<T, Surrogate::tanh>(x, codes, error, begin, end);
    }
  });
}

void binarize_backward(const View& grad, const View& x, Surrogate kind, const View& out, int64_t begin, int64_t end) {
  with_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    switch (kind) {
      case Surrogate::identity:
        return binarize_backward_rows<T, Surrogate::identity>(grad, x, out, begin, end);
      case Surrogate::clip:
        return binarize_backward_rows<T, Surrogate::clip>(grad, x, out, begin, end);
      case Surrogate::tanh:
        return binarize_backward_rows<T, Surrogate::tanh>(grad, x, out, begin, end);
    }
  });
}

// One bit for each lane of a comparison.
template <class I>
uint64_t bitmask(I mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(mask[0]) == 4) return _mm512_movepi32_mask((__m512i)mask);
  return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  if constexpr (sizeof(mask[0]) == 4) return unsigned(_mm256_movemask_ps((__m256)mask));
  return unsigned(_mm256_movemask_pd((__m256d)mask));
#else
  uint64_t bits = 0;
  for (unsigned l = 0; l < sizeof(mask) / sizeof(mask[0]); ++l) bits |= uint64_t(mask[l] & 1) << l;
  return bits;
#endif
}

template <class T>
int64_t pack_rows(const View& codes, const View& words, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t d = codes.size[1];
  for (int64_t i = begin; i < end; ++i) {
    const T* in = row<T>(codes, i);
    auto* out = row_out<uint64_t>(words, i);
    IntOf<V> wrong = {};
    for (int64_t j = 0; j < d; j += 64) {
      uint64_t word = 0;
      const int64_t stop = j + 64 < d ? j + 64 : d;
      int64_t k = j;
      for (; k + lanes <= stop; k += lanes) {
        const V v = load(in + k);
        wrong |= abs(v) != 1;
        word |= bitmask(v > 0) << (k - j);
      }
      if (k < stop) {
        const V v = load_some(in + k, stop - k);
        wrong |= (abs(v) != 1) & (lane_index<IntOf<V>>() < ScalarIntOf<V>(stop - k));
        word |= bitmask(v > 0) << (k - j);
      }
      out[j / 64] = word;
    }
    if (bitmask(wrong) != 0) return i;
  }
  return -1;
}

int64_t pack(const View& codes, const View& words, int64_t begin, int64_t end) {
  int64_t wrong = -1;
  with_floating(codes.dtype, [&](auto* type) {
    wrong = pack_rows<std::remove_pointer_t<decltype(type)>>(codes, words, begin, end);
  });
  return wrong;
}

// +1 where the lane's bit is set, -1 elsewhere
template <class V>
V codes_of(uint64_t bits) {
  using I = IntOf<V>;
  const V one = splat<V>(1);
  const I chosen = (I{} + ScalarIntOf<V>(bits & ((uint64_t(1) << Format<V>::kLanes) - 1))) >> lane_index<I>();
  return (chosen & 1) != 0 ? one : -one;
}

template <class T>
void unpack_rows(const View& words, const View& codes, int64_t begin, int64_t end) {
  using V = VectorOf<T>;
  constexpr int64_t lanes = Format<V>::kLanes;
  const int64_t d = codes.size[1];
  for (int64_t i = begin; i < end; ++i) {
    const auto* in = row<uint64_t>(words, i);
    T* out = row_out<T>(codes, i);
    int64_t j = 0;
    for (; j + lanes <= d; j += lanes) store(out + j, codes_of<V>(in[j / 64] >> (j % 64)));
    if (j < d) store_some(out + j, codes_of<V>(in[j / 64] >> (j % 64)), d - j);
  }
}

void unpack(const View& words, const View& codes, int64_t begin, int64_t end) {
  with_floating(codes.dtype,
                [&](auto* type) { unpack_rows<std::remove_pointer_t<decltype(type)>>(words, codes, begin, end); });
}

// Transposes a 64 x 64 bit matrix in place: swap halves, then quarters, and so on (Warren, Hacker's Delight, 7-3).
void transpose_64(uint64_t* m) {
  uint64_t mask = 0x00000000ffffffffu;
  for (int half = 32; half != 0; half >>= 1, mask ^= mask << half) {
    for (int base = 0; base < 64; base += 2 * half) {
      for (int k = base; k < base + half; ++k) {
        const uint64_t swap = ((m[k] >> half) ^ m[k + half]) & mask;
        m[k] ^= swap << half;
        m[k + half] ^= swap;
      }
    }
  }
}

// Blocks of 512 rows: each column then receives one whole cache line.
void transpose(const View& words, uint64_t* columns, int64_t length, int64_t begin, int64_t end) {
  const int64_t n = words.size[0];
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t w = 0; w < words.size[1]; ++w) {
      alignas(64) uint64_t lines[64][8];
      for (int64_t part = 0; part < 8; ++part) {
        alignas(64) uint64_t square[64];
        const int64_t first = block * 512 + part * 64;
        for (int64_t k = 0; k < 64; ++k) square[k] = first + k < n ? row<uint64_t>(words, first + k)[w] : 0;
        transpose_64(square);
        for (int64_t c = 0; c < 64; ++c) lines[c][part] = square[c];
      }
      for (int64_t c = 0; c < 64; ++c) {
        std::memcpy(columns + (w * 64 + c) * length + block * 8, lines[c], 64);
      }
    }
  }
}

// Counts of set bits in each 64-bit lane.
u64v popcount(u64v v) {
#if defined(__AVX512VPOPCNTDQ__)
  return (u64v)_mm512_popcnt_epi64((__m512i)v);
#elif defined(__AVX2__)
  // A table of nibbles, then the bytes of each lane added (Mula, Kurz and Lemire 2018, arXiv:1611.07612, figure 10).
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256((__m256i)v, nibble));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16((__m256i)v, 4), nibble));
  return (u64v)_mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
#else
  u64v counts;
  for (unsigned l = 0; l < sizeof(v) / 8; ++l) counts[l] = uint64_t(__builtin_popcountll(v[l]));
  return counts;
#endif
}

int64_t sum(u64v counts) {
  int64_t total = 0;
  for (unsigned l = 0; l < sizeof(u64v) / 8; ++l) total += int64_t(counts[l]);
  return total;
}

int64_t count(const uint64_t* column, int64_t length) {
  constexpr int64_t lanes = FL_BYTES / 8;
  u64v counts = {};
  for (int64_t k = 0; k < length; k += lanes) {
    u64v words;
    std::memcpy(&words, column + k, sizeof words);
    counts += popcount(words);
  }
  return sum(counts);
}

constexpr int64_t kTile = 4;

#if defined(__AVX512VPOPCNTDQ__)

// A register tile of 4 x 4 column pairs: eight loads feed sixteen counts.
void differ_tile(const uint64_t* a, const uint64_t* b, int64_t length, int64_t* out, int64_t stride) {
  constexpr int64_t lanes = FL_BYTES / 8;
  u64v count[kTile][kTile] = {};
  for (int64_t k = 0; k < length; k += lanes) {
    u64v left[kTile], right[kTile];
    for (int64_t t = 0; t < kTile; ++t) {
      std::memcpy(&left[t], a + t * length + k, sizeof(u64v));
      std::memcpy(&right[t], b + t * length + k, sizeof(u64v));
    }
#pragma GCC unroll 4
    for (int64_t s = 0; s < kTile; ++s) {
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTile; ++t) count[s][t] += popcount(left[s] ^ right[t]);
    }
  }
  for (int64_t s = 0; s < kTile; ++s) {
    for (int64_t t = 0; t < kTile; ++t) out[s * stride + t] = sum(count[s][t]);
  }
}

#else

// Adds three bits in each position: `low` keeps the sum, the carry is returned.
u64v carry_save(u64v& low, u64v a, u64v b) {
  const u64v half = low ^ a;
  const u64v carry = (low & a) | (half & b);
  low = half ^ b;
  return carry;
}

// Set bits of a ^ b, where counting is dear: a tree of carry-save adders leaves one count for eight vectors (Harley and
// Seal's method in Mula, Kurz and Lemire 2018, section 3).
int64_t differing(const uint64_t* a, const uint64_t* b, int64_t length) {
  constexpr int64_t lanes = FL_BYTES / 8;
  const auto next = [&](int64_t k) {
    u64v left, right;
    std::memcpy(&left, a + k, sizeof left);
    std::memcpy(&right, b + k, sizeof right);
    return left ^ right;
  };
  u64v ones = {}, twos = {}, fours = {}, eights = {}, rest = {};
  int64_t k = 0;
  for (; k + 8 * lanes <= length; k += 8 * lanes) {
    u64v two[4], four[2];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) two[i] = carry_save(ones, next(k + 2 * i * lanes), next(k + (2 * i + 1) * lanes));
    four[0] = carry_save(twos, two[0], two[1]);
    four[1] = carry_save(twos, two[2], two[3]);
    eights += popcount(carry_save(fours, four[0], four[1]));
  }
  for (; k < length; k += lanes) rest += popcount(next(k));
  return sum(8 * eights + 4 * popcount(fours) + 2 * popcount(twos) + popcount(ones) + rest);
}

// In parts of the columns that stay in the first-level cache while all pairs of the tile visit them.
void differ_tile(const uint64_t* a, const uint64_t* b, int64_t length, int64_t* out, int64_t stride) {
  constexpr int64_t part = 384;
  for (int64_t s = 0; s < kTile; ++s) {
    for (int64_t t = 0; t < kTile; ++t) out[s * stride + t] = 0;
  }
  for (int64_t k = 0; k < length; k += part) {
    const int64_t words = k + part < length ? part : length - k;
    for (int64_t s = 0; s < kTile; ++s) {
      for (int64_t t = 0; t < kTile; ++t) {
        out[s * stride + t] += differing(a + s * length + k, b + t * length + k, words);
      }
    }
  }
}

#endif

void differ(const uint64_t* columns, int64_t length, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t* out,
            int64_t stride) {
  for (int64_t i = i0; i < i1; i += kTile) {
    for (int64_t j = j0 > i ? j0 : i; j < j1; j += kTile) {
      differ_tile(columns + i * length, columns + j * length, length, out + i * stride + j, stride);
    }
  }
}

}  // namespace

const BitsKernels bits = {binarize, binarize_backward, pack, unpack, transpose, count, differ};

}  // namespace FL_ISA
}  // namespace fl
