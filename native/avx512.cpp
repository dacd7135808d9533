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

constexpr int kOffset = 128;  // vpdpbusd multiplies unsigned weights by signed activations
constexpr bool kHalfProducts = true;

#include "avx512.inl"

#include "generic.inl"
#include "tiles.inl"
#include "avx512_many.inl"
#include "avx512_few.inl"

void prepare(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  (acts.m < kMany ? prepare_rows : prepare_stripes)(x, ld, m0, m1, acts, scratch);
}

void linear(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  (acts.m < kMany ? linear_few : linear_stripes)(w, acts, n0, n1, o, scratch);
}

std::size_t scratch_bytes(int kp, int d) {
  const std::size_t rows = scratch_rows(kp, d),
                    stripe = static_cast<std::size_t>(kp) * kStripe * sizeof(float);
  return rows > stripe ? rows : stripe;
}

}  // namespace

const Kernels kAvx512 = {"avx512",   layer_norm,  prepare,       linear,       compress,      expand,
                         store_rows, attend_rows, scratch_bytes, quantize_row, search_scales, pack_panel,
                         unpack,     widen,       highest,       scale,        screen,        weigh};

}  // namespace kogpt
