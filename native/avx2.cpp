// AVX2, FMA and F16C: x86 since 2013 (Haswell) and 2017 (Zen).
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "codebook.h"
#include "kernels.h"

namespace kogpt {

namespace {

constexpr bool kHalfProducts = false;
constexpr int kQueries = 4, kVectors = 1;  // see attention.inl

struct F16 {
  __m256 a, b;
  static F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static __m256 widen8(const std::uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static F16 load_bf16(const std::uint16_t* p) { return {widen8(p), widen8(p + 8)}; }
  static F16 load_f16(const std::uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static void load_pairs(const unsigned char* p, F16& first, F16& second) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
    second = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
  void store8(std::int8_t* p) const {
    const __m256i pairs =
        _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));  // 0-3, 8-11, 4-7, 12-15
    const __m256i words = _mm256_permute4x64_epi64(pairs, 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  void store16(std::int16_t* p) const {
    const __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(pairs, 0xD8));
  }
};

inline F16 add(const F16& x, const F16& y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }

inline F16 fma(const F16& x, const F16& y, const F16& z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

inline F16 mul(const F16& x, const F16& y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 div(const F16& x, const F16& y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F16 least(const F16& x, const F16& y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F16 most(const F16& x, const F16& y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

inline F16 whole(const F16& x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kNearest), _mm256_round_ps(x.b, kNearest)};
}

inline __m256 exp8(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);  // the second operand where one is NaN
  const __m256i n = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)));
  const __m256 whole = _mm256_cvtepi32_ps(n);
  __m256 r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fmadd_ps(whole, _mm256_set1_ps(2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power = _mm256_add_epi32(_mm256_slli_epi32(n, 23), _mm256_set1_epi32(0x3F800000));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

inline F16 exp16(const F16& x) { return {exp8(x.a), exp8(x.b)}; }

inline F16 count_above(const F16& x, const F16& limit, const F16& c) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return {_mm256_add_ps(c.a, _mm256_and_ps(one, _mm256_cmp_ps(x.a, limit.a, _CMP_GT_OQ))),
          _mm256_add_ps(c.b, _mm256_and_ps(one, _mm256_cmp_ps(x.b, limit.b, _CMP_GT_OQ)))};
}

inline float largest(const F16& x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline F16 select_less(const F16& a, const F16& b, const F16& x, const F16& y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}

// Eight of 32 entries: bits 3 and 4 of an index, moved to the sign, choose among the four registers of the
// table.
inline __m256 pick8(const float (&table)[32], __m256 index) {
  const __m256i at = _mm256_cvttps_epi32(index);
  const auto entries = [&](int i) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8 * i), at); };
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)),
               bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(at, 27));
  return _mm256_blendv_ps(_mm256_blendv_ps(entries(0), entries(1), bit3),
                          _mm256_blendv_ps(entries(2), entries(3), bit3), bit4);
}

inline F16 pick(const float (&table)[32], const F16& index) {
  return {pick8(table, index.a), pick8(table, index.b)};
}

inline float sum(const F16& x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#include "generic.inl"
#include "avx2_ints.inl"
#include "avx2_many.inl"
#include "avx2_few.inl"

inline bool is_packed(Format format) { return format == Format::i8 || format == Format::i4; }

void prepare(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  if (is_packed(acts.format)) return prepare_ints(x, ld, m0, m1, acts, scratch);
  if (acts.m >= kMany) return prepare_stripes(x, ld, m0, m1, acts);
  prepare_rows(x, ld, m0, m1, acts, scratch);
}

void linear(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  if (w.format == Format::i8) return linear_ints<Tile8>(w, acts, n0, n1, o, scratch);
  if (w.format == Format::i4) return linear_ints<Tile4>(w, acts, n0, n1, o, scratch);
  if (acts.m >= kMany) return linear_stripes(w, acts, n0, n1, o, scratch);
  linear_few(w, acts, n0, n1, o);
}

std::size_t scratch_bytes(int kp, int d) {
  const std::size_t rows = scratch_rows(kp, d),
                    stripe = static_cast<std::size_t>(kp) * kPanel * sizeof(float);
  return std::max({rows, stripe, kTiles * kTile8});
}

}  // namespace

const Kernels kAvx2 = {"avx2",     layer_norm,  prepare,       linear,       compress,      expand,
                       store_rows, attend_rows, scratch_bytes, quantize_row, search_scales, pack_pairs,
                       unpack,     widen,       highest,       scale,        screen,        weigh};

}  // namespace kogpt
