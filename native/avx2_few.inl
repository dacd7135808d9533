// Products of floats with few tokens on AVX2, as in decoding; after avx2_many.inl.
//
// Reading the weights is what they wait for: each passes by once, in the order in which it lies in memory,
// and all that is done with it is done in registers. A panel of 16 outputs is taken at a time, for one, two
// or four tokens.

// The sums of 8 outputs: v[n] holds 8 partial sums of output n. The tree is that of FloatStep.
inline __m256 add_lanes(const __m256 (&v)[8]) {
  __m256 halves[4], quarters[2];  // outputs (0, 1), (2, 3) ...; (0, 2 | 1, 3), (4, 6 | 5, 7)
  for (int i = 0; i < 4; ++i) {
    const __m256 even = v[2 * i], odd = v[2 * i + 1];
    halves[i] =
        _mm256_add_ps(_mm256_permute2f128_ps(even, odd, 0x20), _mm256_permute2f128_ps(even, odd, 0x31));
  }
  for (int i = 0; i < 2; ++i) {
    const __m256d one = _mm256_castps_pd(halves[2 * i]), other = _mm256_castps_pd(halves[2 * i + 1]);
    quarters[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(one, other)),
                                _mm256_castpd_ps(_mm256_unpackhi_pd(one, other)));
  }
  const __m256 sums =
      _mm256_add_ps(_mm256_shuffle_ps(quarters[0], quarters[1], 0x88),
                    _mm256_shuffle_ps(quarters[0], quarters[1], 0xDD));  // outputs 0, 2, 4, 6, 1, 3, 5, 7
  return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// 16 outputs of C tokens. A few rows at a time, while the next few are fetched in the order of memory: as
// many streams at once, rows apart, would be read more slowly.
template <Format kFormat, int C>
void few_rows(const Linear& w, const Acts& acts, int n, int m, const Output& o) {
  constexpr int kTogether = C == 4 ? 2 : 4;
  constexpr std::size_t kBytes = kFormat == Format::f32 ? 4 : 2;
  const auto kp = static_cast<std::size_t>(w.kp), row = kp * kBytes;
  const unsigned char* weights = static_cast<const unsigned char*>(w.w) + static_cast<std::size_t>(n) * row;
  const float* x = reinterpret_cast<const float*>(acts.data) + static_cast<std::size_t>(m) * kp;
  __m256 lines[C][2][8];
  for (int r0 = 0; r0 < kPanel; r0 += kTogether, weights += kTogether * row) {
    __m256 sums[kTogether][C];
    for (auto& line : sums) {
      for (auto& value : line) value = _mm256_setzero_ps();
    }
    const unsigned char* ahead = weights + kTogether * row;
    for (std::size_t k = 0; k < kp; k += 8, ahead += kTogether * 8 * kBytes) {
      if (m == 0) {
        for (std::size_t i = 0; i < kTogether * 8 * kBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
      }
      for (int r = 0; r < kTogether; ++r) {
        const __m256 eight = load8<kFormat>(weights + static_cast<std::size_t>(r) * row, k);
        for (int c = 0; c < C; ++c) {
          sums[r][c] =
              _mm256_fmadd_ps(eight, _mm256_loadu_ps(x + static_cast<std::size_t>(c) * kp + k), sums[r][c]);
        }
      }
    }
    for (int r = 0; r < kTogether; ++r) {
      for (int c = 0; c < C; ++c) lines[c][(r0 + r) / 8][(r0 + r) % 8] = sums[r][c];
    }
  }
  for (int c = 0; c < C; ++c) finish(F16{add_lanes(lines[c][0]), add_lanes(lines[c][1])}, o, m + c, n, w.n);
}

template <int C>
inline void few_panel(const Linear& w, const Acts& acts, int n, int m, const Output& o) {
  switch (w.format) {
    case Format::f16: return few_rows<Format::f16, C>(w, acts, n, m, o);
    case Format::bf16: return few_rows<Format::bf16, C>(w, acts, n, m, o);
    default: return few_rows<Format::f32, C>(w, acts, n, m, o);
  }
}

void linear_few(const Linear& w, const Acts& acts, int n0, int n1, const Output& o) {
  for (int n = n0; n < n1; n += kPanel) {
    int m = 0;
    for (; m + 4 <= acts.m; m += 4) few_panel<4>(w, acts, n, m, o);
    for (; m + 2 <= acts.m; m += 2) few_panel<2>(w, acts, n, m, o);
    if (m < acts.m) few_panel<1>(w, acts, n, m, o);
  }
}
