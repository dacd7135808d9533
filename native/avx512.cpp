// AVX-512 with VNNI and BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "codebook.h"
#include "kernels.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own headers (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace kogpt {

namespace {

constexpr int kRows = 4, kCols = 2;
constexpr int kOffset = 128;  // vpdpbusd multiplies unsigned weights by signed activations
constexpr bool kHalfProducts = true;

#include "avx512.inl"

struct I16 {
  __m512i v;
  static I16 zero() { return {_mm512_setzero_si512()}; }
};

inline I16 dot64(I16 a, const std::int8_t* w, const std::int8_t* x) {
  const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
  return {_mm512_dpbusd_epi32(a.v, weights, _mm512_loadu_si512(x))};
}

inline std::int32_t sum(const I16& a) { return _mm512_reduce_add_epi32(a.v); }

// kRows outputs x C tokens, products of bfloat16 pairs summed in float32.
template <int C>
inline void half_block(const Linear& w, const Acts& acts, int n, int m, float (*y)[kPanel], int column) {
  const auto kp = static_cast<std::size_t>(w.kp);
  const auto* x = reinterpret_cast<const std::uint16_t*>(acts.data) + static_cast<std::size_t>(m) * kp;
  const auto* row = static_cast<const std::uint16_t*>(w.w) + static_cast<std::size_t>(n) * kp;
  __m512 sums[kRows][C];
  for (auto& line : sums) {
    for (auto& value : line) value = _mm512_setzero_ps();
  }
  for (std::size_t k = 0; k < kp; k += 32) {
    for (int r = 0; r < kRows; ++r) {
      const auto weight = std::bit_cast<__m512bh>(_mm512_loadu_si512(row + static_cast<std::size_t>(r) * kp + k));
      for (int c = 0; c < C; ++c) {
        const auto input = std::bit_cast<__m512bh>(_mm512_loadu_si512(x + static_cast<std::size_t>(c) * kp + k));
        sums[r][c] = _mm512_dpbf16_ps(sums[r][c], weight, input);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) y[c][column + r] = _mm512_reduce_add_ps(sums[r][c]);
  }
}

#include "generic.inl"
#include "blocks.inl"
#include "few.inl"

void prepare(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  (acts.m < kMany ? prepare_rows : prepare_stripes)(x, ld, m0, m1, acts, scratch);
}

void linear(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  (acts.m < kMany ? linear_few : linear_stripes)(w, acts, n0, n1, o, scratch);
}

std::size_t scratch_bytes(int kp, int d) {
  const std::size_t rows = scratch_rows(kp, d), stripe = static_cast<std::size_t>(kp) * kStripe * sizeof(float);
  return rows > stripe ? rows : stripe;
}

}  // namespace

const Kernels kAvx512 = {"avx512",    layer_norm,    prepare,        linear,       store_rows,  attend_rows,
                         scratch_bytes, quantize_row, search_scales, pack_panel, unpack_tile, widen};

}  // namespace kogpt
