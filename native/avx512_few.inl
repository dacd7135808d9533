// Products of few tokens on AVX-512, as in decoding; after avx512_many.inl.
//
// Reading the weights is what they wait for: each passes by once, in the order in which it lies in memory,
// and all that is done with it is done in registers. A panel of 16 outputs is taken at a time, for one, two
// or four tokens.

// The sums of 16 outputs: v[n] holds 16 partial sums of output n. The tree is that of _mm512_reduce_add_ps.
inline __m512 add_lanes(Line& v, __m512) {
  transpose(v);
  __m512 sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_castsi512_ps(v[i]);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] = _mm512_add_ps(sums[i], sums[i + width]);
  }
  return sums[0];
}

inline __m512i add_lanes(Line& v, __m512i) {
  transpose(v);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] = _mm512_add_epi32(v[i], v[i + width]);
  }
  return v[0];
}

// ---- float32, float16, bfloat16: rows of weights ----

template <Format kFormat>
struct Row {
  static constexpr std::size_t kBytes = kFormat == Format::f32 ? 4 : 2;    // of a weight
  static constexpr std::size_t kStep = kFormat == Format::bf16 ? 32 : 16;  // inputs in a register
  static constexpr std::size_t kInput = kFormat == Format::bf16 ? 2 : 4;   // bytes of an input

  static __m512 dot(__m512 sum, const unsigned char* w, __m512i x) {
    if constexpr (kFormat == Format::bf16) {
      return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(_mm512_loadu_si512(w)),
                              std::bit_cast<__m512bh>(x));
    } else {
      return _mm512_fmadd_ps(load_weight<kFormat>(w, 0).v, _mm512_castsi512_ps(x), sum);
    }
  }
};

// 16 outputs of C tokens. Four rows at a time, while the next four are fetched in the order of memory: four
// streams at once, rows apart, would be read a fifth slower.
template <Format kFormat, int C>
inline void few_rows(const Linear& w, const Acts& acts, int n, int m, bool fetch, const Output& o) {
  using R = Row<kFormat>;
  constexpr int kTogether = 4;
  const auto kp = static_cast<std::size_t>(w.kp), row = kp * R::kBytes, input = kp * R::kInput;
  const unsigned char* weights = static_cast<const unsigned char*>(w.w) + static_cast<std::size_t>(n) * row;
  const unsigned char* x = acts.data + static_cast<std::size_t>(m) * input;
  Line lines[C];
  for (int r0 = 0; r0 < kPanel; r0 += kTogether, weights += kTogether * row) {
    __m512 sums[kTogether][C];
    for (auto& line : sums) {
      for (auto& value : line) value = _mm512_setzero_ps();
    }
    const unsigned char* ahead = weights + kTogether * row;
    for (std::size_t k = 0; k < kp; k += R::kStep) {
      if (fetch) {
        for (std::size_t i = 0; i < kTogether * R::kStep * R::kBytes; i += 64)
          _mm_prefetch(ahead + i, _MM_HINT_T1);
        ahead += kTogether * R::kStep * R::kBytes;
      }
      __m512i inputs[C];
      for (int c = 0; c < C; ++c)
        inputs[c] = _mm512_loadu_si512(x + static_cast<std::size_t>(c) * input + k * R::kInput);
      for (int r = 0; r < kTogether; ++r) {
        for (int c = 0; c < C; ++c) {
          sums[r][c] =
              R::dot(sums[r][c], weights + static_cast<std::size_t>(r) * row + k * R::kBytes, inputs[c]);
        }
      }
    }
    for (int r = 0; r < kTogether; ++r) {
      for (int c = 0; c < C; ++c) lines[c][r0 + r] = _mm512_castps_si512(sums[r][c]);
    }
  }
  for (int c = 0; c < C; ++c) finish(F16{add_lanes(lines[c], __m512{})}, o, m + c, n, w.n);
}

// ---- int8, int4: tiles ----

// int8: sums of R outputs and X rows of inputs, R X = 16.
template <int X>
struct Tiles8 {
  static constexpr int kOutputs = 16 / X;

  __m512i sums[kOutputs][X];

  void clear() {
    for (auto& line : sums) {
      for (auto& value : line) value = _mm512_setzero_si512();
    }
  }

  void add(const unsigned char* tile, const std::int8_t* const (&x)[X], std::size_t k) {
    const __m512i flip = _mm512_set1_epi8(-128);
    __m512i inputs[X];
    for (int c = 0; c < X; ++c) inputs[c] = _mm512_loadu_si512(x[c] + k);
    for (int r = 0; r < kOutputs; ++r) {
      const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(tile + r * kDepth), flip);
      for (int c = 0; c < X; ++c) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], weights, inputs[c]);
    }
  }
};

// Asks for the tile that the thread comes to in a tenth of a microsecond: what the processor fetches by
// itself is nearer, and a sixth slower in int8. Distances as measured on Zen 5 (notes/log.md).
template <std::size_t kBytes, std::size_t kAhead>
inline void fetch_tile(const unsigned char* tile) {
  for (std::size_t line = 0; line < kBytes; line += 64) _mm_prefetch(tile + kAhead + line, _MM_HINT_T1);
}

template <int X>
inline void sum_tiles8(const unsigned char* tiles, std::size_t steps, const std::int8_t* const (&x)[X],
                       bool fetch, __m512i (&out)[X]) {
  Line lines[X];
  for (int r0 = 0; r0 < kPanel; r0 += Tiles8<X>::kOutputs) {
    Tiles8<X> t;
    t.clear();
    for (std::size_t i = 0; i < steps; ++i) {
      const unsigned char* tile = tiles + i * kTile8;
      if (fetch && r0 == 0) fetch_tile<kTile8, 2048>(tile);
      t.add(tile + r0 * kDepth, x, i * kDepth);
    }
    for (int r = 0; r < Tiles8<X>::kOutputs; ++r) {
      for (int c = 0; c < X; ++c) lines[c][r0 + r] = t.sums[r][c];
    }
  }
  for (int c = 0; c < X; ++c) out[c] = add_lanes(lines[c], __m512i{});
}

// Both planes of C tokens; in int8 nearly all blocks have a high one. The planes of one token share a pass
// over the weights. With more tokens the inputs of both planes would leave the nearest cache.
template <int C>
inline void sum_planes8(const unsigned char* tiles, std::size_t steps, const Acts& acts, int m, bool fetch,
                        __m512i (&low)[C], __m512i (&high)[C]) {
  if constexpr (C == 1) {
    __m512i both[2];
    sum_tiles8<2>(tiles, steps, {acts.low(m), acts.high(m)}, fetch, both);
    low[0] = both[0];
    high[0] = both[1];
  } else {
    const std::int8_t* x[C];
    for (int c = 0; c < C; ++c) x[c] = acts.low(m + c);
    sum_tiles8<C>(tiles, steps, x, fetch, low);
    for (int c = 0; c < C; ++c) x[c] = acts.high(m + c);
    sum_tiles8<C>(tiles, steps, x, false, high);
  }
}

// int4: four registers of four outputs each, a lane of 16 bytes to an output, so that one table register
// serves both halves of a byte. A row of kTable is made where it is used, see table_factor.
inline __m512i codebook_half(int half) {
  alignas(16) std::int16_t entries[8];
  for (int i = 0; i < 8; ++i) entries[i] = static_cast<std::int16_t>(table_factor(8 * half + i));
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(entries)));
}

template <int C>
struct Tiles4 {
  static constexpr int kChains = C <= 2 ? 2 : 1;  // sums of one token and four outputs

  __m512i sums[4][C][kChains];
  __m512i low = codebook_half(0), high = codebook_half(1);

  void clear() {
    for (auto& four : sums) {
      for (auto& token : four) {
        for (auto& value : token) value = _mm512_setzero_si512();
      }
    }
  }

  // 32 group scales as kTable counts them (128 and more: mirrored), to signed words of one group.
  static void widen_scales(const std::uint8_t* from, __m512i (&scales)[2]) {
    const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i size = _mm256_and_si256(stored, _mm256_set1_epi8(127));
    const __m256i values =
        _mm256_mask_sub_epi8(size, _mm256_movepi8_mask(stored), _mm256_setzero_si256(), size);
    scales[0] = _mm512_cvtepi8_epi16(values);
    scales[1] = _mm512_shuffle_i64x2(scales[0], scales[0], 0xEE);
  }

  void add(const unsigned char* tile, const std::int8_t* x, std::size_t ld) {
    const __m512i nibble = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(-128);
    // Word i of four outputs' scales: that of output i / 8.
    const __m512i four =
        _mm512_srli_epi16(_mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15,
                                           14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                          3);
    __m512i scales[2];
    widen_scales(tile + kTile8 / 2, scales);
    for (int group = 0; group < 2; ++group) {
      __m512i inputs[C][2];
      for (int c = 0; c < C; ++c) {
        for (int half = 0; half < 2; ++half) {
          const std::int8_t* from = x + static_cast<std::size_t>(c) * ld + group * kGroup + half * 16;
          inputs[c][half] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        }
      }
      for (int q = 0; q < 4; ++q) {
        const __m512i codes = _mm512_loadu_si512(tile + (group * 4 + q) * 64);
        const __m512i which = _mm512_add_epi16(four, _mm512_set1_epi16(static_cast<std::int16_t>(4 * q)));
        const __m512i scale = _mm512_permutexvar_epi16(which, scales[group]);
        const __m512i table = _mm512_xor_si512(
            flip, _mm512_packs_epi16(_mm512_mulhrs_epi16(low, scale), _mm512_mulhrs_epi16(high, scale)));
        const __m512i first = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, nibble));
        const __m512i second =
            _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
        for (int c = 0; c < C; ++c) {
          sums[q][c][0] = _mm512_dpbusd_epi32(sums[q][c][0], first, inputs[c][0]);
          sums[q][c][kChains - 1] = _mm512_dpbusd_epi32(sums[q][c][kChains - 1], second, inputs[c][1]);
        }
      }
    }
  }

  // The sums of the 16 outputs of token c.
  __m512i outputs(int c) const {
    __m512i v[4];
    for (int q = 0; q < 4; ++q) {
      v[q] = kChains == 2 ? _mm512_add_epi32(sums[q][c][0], sums[q][c][kChains - 1]) : sums[q][c][0];
    }
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    const __m512i turned = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    // Lane l, dword q is output 4 q + l.
    return _mm512_permutexvar_epi32(_mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0),
                                    turned);
  }
};

template <int C, class F>
inline void sum_tiles4(const unsigned char* tiles, const std::int8_t* x, std::size_t ld, bool fetch,
                       __m512i (&out)[C], const F& each) {
  Tiles4<C> t;
  t.clear();
  each([&](std::size_t i) {
    const unsigned char* tile = tiles + i * kTile4;
    if (fetch) fetch_tile<kTile4, 4096>(tile);
    t.add(tile, x + i * kDepth, ld);
  });
  for (int c = 0; c < C; ++c) out[c] = t.outputs(c);
}

// 16 outputs of C tokens.
template <Format kFormat, int C>
inline void few_tiles(const Linear& w, const Acts& acts, int n, int m, bool fetch, const Output& o) {
  const auto kp = static_cast<std::size_t>(w.kp), steps = kp / kDepth;
  constexpr std::size_t kBytes = kFormat == Format::i8 ? kTile8 : kTile4;
  const auto* tiles =
      static_cast<const unsigned char*>(w.w) + static_cast<std::size_t>(n / kPanel) * steps * kBytes;
  const bool outliers = has_outliers(acts, m, C);
  __m512i low[C], high[C];
  if constexpr (kFormat == Format::i8) {
    sum_planes8<C>(tiles, steps, acts, m, fetch, low, high);
  } else {
    sum_tiles4<C>(tiles, acts.low(m), kp, fetch, low, [&](const auto& add) {
      for (std::size_t i = 0; i < steps; ++i) add(i);
    });
    if (outliers) {
      sum_tiles4<C>(tiles, acts.high(m), kp, false, high, [&](const auto& add) {
        outlier_blocks(acts, m, C, [&](std::size_t first, std::size_t count) {
          for (std::size_t i = first; i < first + count; ++i) add(i);
        });
      });
    }
  }
  for (int c = 0; c < C; ++c) {
    const Token& token = acts.token(m + c);
    const auto less_offset = [](__m512i sums, std::int32_t inputs) {
      return _mm512_sub_epi32(sums, _mm512_set1_epi32(kOffset * inputs));
    };
    __m512i total = less_offset(low[c], token.low_sum);
    if (outliers) {
      const __m512i steps = less_offset(high[c], token.high_sum);
      total = _mm512_add_epi32(total, _mm512_mullo_epi32(_mm512_set1_epi32(kHighStep), steps));
    }
    const __m512 y = _mm512_cvtepi32_ps(total);
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(token.scale), _mm512_loadu_ps(w.scale + n));
    finish(F16{_mm512_mul_ps(y, scale)}, o, m + c, n, w.n);
  }
}

template <int C>
inline void few_panel(const Linear& w, const Acts& acts, int n, int m, const Output& o) {
  switch (w.format) {
    case Format::f32: few_rows<Format::f32, C>(w, acts, n, m, m == 0, o); break;
    case Format::f16: few_rows<Format::f16, C>(w, acts, n, m, m == 0, o); break;
    case Format::bf16: few_rows<Format::bf16, C>(w, acts, n, m, m == 0, o); break;
    case Format::i8: few_tiles<Format::i8, C>(w, acts, n, m, m == 0, o); break;
    case Format::i4: few_tiles<Format::i4, C>(w, acts, n, m, m == 0, o); break;
  }
}

void linear_few(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char*) {
  for (int n = n0; n < n1; n += kPanel) {
    int m = 0;
    for (; m + 4 <= acts.m; m += 4) few_panel<4>(w, acts, n, m, o);
    for (; m + 2 <= acts.m; m += 2) few_panel<2>(w, acts, n, m, o);
    if (m < acts.m) few_panel<1>(w, acts, n, m, o);
  }
}
