// NEON with dot products of int8: ARM since 2018 (Cortex-A75 and A55, Neoverse N1, Apple A13 and M1).
#include <arm_neon.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "codebook.h"
#include "kernels.h"

namespace kogpt {

namespace {

constexpr int kRows = 2, kCols = 2, kOffset = 0;  // 16 of the 32 registers are sums
constexpr bool kHalfProducts = false;
constexpr int kQueries = 4, kVectors = 1;  // see attention.inl

#include "neon.inl"

inline I16 dot64(I16 a, const std::int8_t* w, const std::int8_t* x) {
  for (int i = 0; i < 64; i += 16) a.v = vdotq_s32(a.v, vld1q_s8(w + i), vld1q_s8(x + i));
  return a;
}

#include "generic.inl"
#include "tiles.inl"
#include "rows.inl"

}  // namespace

const Kernels kDotprod = {"dotprod",  layer_norm,  prepare_rows, linear_rows,  compress,      expand,
                          store_rows, attend_rows, scratch_rows, quantize_row, search_scales, pack_panel,
                          unpack,     widen,       highest,      scale,        screen,        weigh};

}  // namespace kogpt
