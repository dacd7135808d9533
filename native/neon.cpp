// NEON: every 64-bit ARM.
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

// Two products of at most 128 * 127 fit 16 bits.
inline I16 dot64(I16 a, const std::int8_t* w, const std::int8_t* x) {
  for (int i = 0; i < 64; i += 16) {
    const int8x16_t weight = vld1q_s8(w + i), input = vld1q_s8(x + i);
    const int16x8_t pairs = vmull_s8(vget_low_s8(weight), vget_low_s8(input));
    a.v = vpadalq_s16(a.v, vmlal_high_s8(pairs, weight, input));
  }
  return a;
}

#include "generic.inl"
#include "tiles.inl"
#include "rows.inl"

}  // namespace

const Kernels kNeon = {"neon",     layer_norm,  prepare_rows, linear_rows,  compress,      expand,
                       store_rows, attend_rows, scratch_rows, quantize_row, search_scales, pack_panel,
                       unpack,     widen,       highest,      scale,        screen,        weigh};

}  // namespace kogpt
