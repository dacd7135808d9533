// 16 floats in one register; shared by avx512.cpp and amx.cpp.

struct F16 {
  __m512 v;
  static F16 zero() { return {_mm512_setzero_ps()}; }
  static F16 splat(float x) { return {_mm512_set1_ps(x)}; }
  static F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F16 load_bf16(const std::uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static F16 load_f16(const std::uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static void load_pairs(const unsigned char* p, F16& first, F16& second) {
    const __m512i pairs = _mm512_loadu_si512(p);
    first.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    second.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store8(std::int8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
};

inline F16 add(const F16& a, const F16& b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 fma(const F16& a, const F16& b, const F16& c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 mul(const F16& a, const F16& b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 div(const F16& a, const F16& b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 least(const F16& a, const F16& b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 most(const F16& a, const F16& b) { return {_mm512_max_ps(a.v, b.v)}; }

inline F16 exp16(const F16& a) {
  const __m512 x = _mm512_max_ps(_mm512_set1_ps(-87.0f), a.v);  // the second operand where one is NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return {_mm512_scalef_ps(p, n)};
}

inline F16 count_above(const F16& x, const F16& limit, const F16& c) {
  const __mmask16 above = _mm512_cmp_ps_mask(x.v, limit.v, _CMP_GT_OQ);
  return {_mm512_mask_add_ps(c.v, above, c.v, _mm512_set1_ps(1.0f))};
}

inline float largest(const F16& a) { return _mm512_reduce_max_ps(a.v); }
inline F16 whole(const F16& a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }

inline F16 select_less(const F16& a, const F16& b, const F16& x, const F16& y) {
  return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), x.v)};
}

inline F16 pick(const float (&table)[32], const F16& index) {
  const __m512 low = _mm512_loadu_ps(table), high = _mm512_loadu_ps(table + 16);
  return {_mm512_permutex2var_ps(low, _mm512_cvttps_epi32(index.v), high)};
}

inline float sum(const F16& a) { return _mm512_reduce_add_ps(a.v); }

// See kTile4: 32 inputs of one output at a time.
inline void unpack_tile(const std::uint8_t* tile, const std::int8_t* table, std::int8_t* out) {
  static_assert(kGroup == 32 && kDepth == 64);
  const std::uint8_t* scales = tile + kTile8 / 2;
  for (int i = 0; i < 2 * kPanel; ++i) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + 16 * i));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(codes), _mm_srli_epi16(codes, 4), 1);
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + scales[i] * kCodes));
    const __m256i values =
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), _mm256_and_si256(both, _mm256_set1_epi8(15)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i % kPanel * kDepth + i / kPanel * kGroup), values);
  }
}

// ---- attention ----

constexpr int kQueries = 8, kVectors = 2;  // 16 of the 32 registers are sums

struct HalfCell {
  using Scalar = std::uint16_t;
  static constexpr std::size_t kBytes = 64;
  __m512i pairs;
  static HalfCell load(const unsigned char* p) { return {_mm512_loadu_si512(p)}; }
  static void store(const F16& x, std::uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), std::bit_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
  }
  // Integers of -127 to 127 are bfloat16 numbers. n is a multiple of 32.
  static void widen(const std::int8_t* from, std::size_t n, std::ptrdiff_t ahead, std::uint16_t* to) {
    for (std::size_t i = 0; i < n; i += 32) {
      __builtin_prefetch(from + i + ahead);
      const auto* sixteen = reinterpret_cast<const __m128i*>(from + i);
      const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(sixteen)));
      const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(sixteen + 1)));
      _mm512_storeu_si512(to + i, std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
};

inline F16 dot_pair(const HalfCell& cell, const std::uint16_t* pair, const F16& sum) {
  std::int32_t two;
  std::memcpy(&two, pair, sizeof two);
  return {_mm512_dpbf16_ps(sum.v, std::bit_cast<__m512bh>(cell.pairs),
                           std::bit_cast<__m512bh>(_mm512_set1_epi32(two)))};
}
