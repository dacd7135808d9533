// Products of few tokens on AVX2, as in decoding; after avx2_many.inl.
//
// Reading the weights is what they wait for: each passes by once, in the order in which it lies in memory,
// and all that is done with it is done in registers. A panel of 16 outputs is taken at a time, for one, two
// or four tokens.

using Eight = __m256i[8];

// |x| times w with x's sign: unsigned by signed, and two products of at most 127 * 127 fit 16 bits.
inline __m256i add_products_of_4(__m256i sum, __m256i w, __m256i x, __m256i size) {
  const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w, x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

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

inline __m256i add_lanes(Eight& v) {
  transpose(v);
  for (int width = 4; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] = _mm256_add_epi32(v[i], v[i + width]);
  }
  return v[0];
}

// ---- float32, float16, bfloat16: rows of weights ----

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

// ---- int8, int4: tiles ----

// Asks for the tile that the thread comes to in some microseconds: what the processor fetches by itself is
// nearer.
template <std::size_t kBytes>
inline void fetch_tile(const unsigned char* tile) {
  constexpr std::size_t kAhead = 4096;
  for (std::size_t line = 0; line < kBytes; line += 64) _mm_prefetch(tile + kAhead + line, _MM_HINT_T0);
}

// Sums of 16 outputs of C tokens.
template <int C>
struct Sums {
  __m256i v[C][2];
};

// int8, C tokens: R outputs of `count` tiles. Not inlined, see add_steps.
template <int R, int C>
[[gnu::noinline]] void add_tiles8(__m256i (&sums)[R][C], const unsigned char* tile, const std::int8_t* x,
                                  std::size_t ld, std::size_t count) {
  __m256i local[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) local[r][c] = sums[r][c];
  }
  for (std::size_t i = 0; i < 2 * count; ++i) {  // 32 inputs
    const unsigned char* from = tile + i / 2 * kTile8 + i % 2 * 32;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const __m256i input = load32(x + static_cast<std::size_t>(c) * ld + i * 32),
                    size = _mm256_abs_epi8(input);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        local[r][c] = add_products_of_4(local[r][c], load32(from + r * kDepth), input, size);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[r][c] = local[r][c];
  }
}

// `each` calls with a first tile and how many there are.
template <int C, class F>
inline Sums<C> sum_tiles8(const unsigned char* tiles, const std::int8_t* x, std::size_t ld, const F& each) {
  constexpr int kOutputs = 8 / C;
  Eight lines[C][2];
  for (int r0 = 0; r0 < kPanel; r0 += kOutputs) {
    __m256i sums[kOutputs][C] = {};
    each([&](std::size_t i, std::size_t count) {
      add_tiles8<kOutputs, C>(sums, tiles + i * kTile8 + r0 * kDepth, x + i * kDepth, ld, count);
    });
    for (int r = 0; r < kOutputs; ++r) {
      for (int c = 0; c < C; ++c) lines[c][(r0 + r) / 8][(r0 + r) % 8] = sums[r][c];
    }
  }
  Sums<C> out;
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < 2; ++v) out.v[c][v] = add_lanes(lines[c][v]);
  }
  return out;
}

// One token: 16 inputs of two outputs are a register, a lane to an output, so that eight sums hold the whole
// panel and the tiles pass by in order.

struct Inputs16 {
  __m256i x, size;
};

inline Inputs16 inputs16(const std::int8_t* x) {
  const __m256i both = _mm256_broadcastsi128_si256(load16(x));
  return {both, _mm256_abs_epi8(both)};
}

inline __m256i two_lanes(const void* first, const void* second) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(first)), load16(second), 1);
}

inline void add_tile8(__m256i (&sums)[8], const unsigned char* tile, const std::int8_t* x) {
  for (int i = 0; i < kDepth; i += 16) {
    const Inputs16 input = inputs16(x + i);
#pragma GCC unroll 8
    for (int pair = 0; pair < 8; ++pair) {
      const unsigned char* from = tile + 2 * pair * kDepth + i;
      sums[pair] = add_products_of_4(sums[pair], two_lanes(from, from + kDepth), input.x, input.size);
    }
  }
}

// A table register serves both halves of a byte.
inline void add_tile4(__m256i (&sums)[8], const unsigned char* tile, const std::int8_t* table,
                      const std::int8_t* x) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const unsigned char* scales = tile + kTile8 / 2;
  for (int group = 0; group < 2; ++group) {
    const Inputs16 low = inputs16(x + group * kGroup), high = inputs16(x + group * kGroup + 16);
#pragma GCC unroll 8
    for (int pair = 0; pair < 8; ++pair) {
      const unsigned char* two = scales + group * kPanel + 2 * pair;
      const __m256i rows = two_lanes(table + two[0] * kCodes, table + two[1] * kCodes);
      const __m256i codes = load32(tile + (group * 8 + pair) * 32);
      const __m256i first = _mm256_shuffle_epi8(rows, _mm256_and_si256(codes, nibble));
      const __m256i second = _mm256_shuffle_epi8(rows, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
      sums[pair] = add_products_of_4(sums[pair], first, low.x, low.size);
      sums[pair] = add_products_of_4(sums[pair], second, high.x, high.size);
    }
  }
}

// `count` tiles. Not inlined, see add_steps.
template <Format kFormat>
[[gnu::noinline]] void add_tiles(__m256i (&sums)[8], const Linear& w, const unsigned char* tile,
                                 const std::int8_t* x, std::size_t count) {
  __m256i local[8];
  for (int i = 0; i < 8; ++i) local[i] = sums[i];
  for (; count > 0; --count, x += kDepth) {
    if constexpr (kFormat == Format::i8) {
      fetch_tile<kTile8>(tile);
      add_tile8(local, tile, x);
      tile += kTile8;
    } else {
      fetch_tile<kTile4>(tile);
      add_tile4(local, tile, w.table, x);
      tile += kTile4;
    }
  }
  for (int i = 0; i < 8; ++i) sums[i] = local[i];
}

// 8 outputs of which v[n] holds outputs 2 n and 2 n + 1, four partial sums each.
inline __m256i add_pairs(const __m256i* v) {
  const __m256i a = _mm256_hadd_epi32(v[0], v[1]), b = _mm256_hadd_epi32(v[2], v[3]);
  const __m256i sums = _mm256_hadd_epi32(a, b);  // outputs 0, 2, 4, 6, 1, 3, 5, 7
  return _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <Format kFormat, class F>
inline Sums<1> sum_in_order(const Linear& w, const unsigned char* tiles, const std::int8_t* x,
                            const F& each) {
  constexpr std::size_t kBytes = kFormat == Format::i8 ? kTile8 : kTile4;
  __m256i sums[8] = {};
  each([&](std::size_t i, std::size_t count) {
    add_tiles<kFormat>(sums, w, tiles + i * kBytes, x + i * kDepth, count);
  });
  return {{{add_pairs(sums), add_pairs(sums + 4)}}};
}

// 16 outputs of C tokens; `sum` adds up one plane.
template <int C, class F>
inline void few_tiles(const Linear& w, const Acts& acts, int n, int m, const Output& o, const F& sum) {
  const auto steps = static_cast<std::size_t>(w.kp / kDepth);
  const Sums<C> low = sum(acts.low(m), [&](const auto& add) { add(0, steps); });
  Sums<C> high;
  const bool outliers = has_outliers(acts, m, C);
  if (outliers) {
    high = sum(acts.high(m),
               [&](const auto& add) { outlier_blocks(acts, m, C, [&](std::size_t i) { add(i, 1); }); });
  }
  for (int c = 0; c < C; ++c) {
    __m256 y[2];
    for (int v = 0; v < 2; ++v) {
      y[v] =
          real_sums(low.v[c][v], outliers ? &high.v[c][v] : nullptr, acts.token(m + c), w.scale + n + 8 * v);
    }
    finish(F16{y[0], y[1]}, o, m + c, n, w.n);
  }
}

// The only token: straight from the weights as they lie.
template <Format kFormat>
void few_in_order(const Linear& w, const Acts& acts, int n, const Output& o) {
  constexpr std::size_t kBytes = kFormat == Format::i8 ? kTile8 : kTile4;
  const std::size_t panel = static_cast<std::size_t>(n / kPanel) * static_cast<std::size_t>(w.kp / kDepth);
  const unsigned char* tiles = static_cast<const unsigned char*>(w.w) + panel * kBytes;
  few_tiles<1>(w, acts, n, 0, o, [&](const std::int8_t* x, const auto& each) {
    return sum_in_order<kFormat>(w, tiles, x, each);
  });
}

template <int C>
inline void few_panel(const Linear& w, const unsigned char* tiles, const Acts& acts, int n, int m,
                      const Output& o) {
  const auto kp = static_cast<std::size_t>(w.kp);
  switch (w.format) {
    case Format::f32: return few_rows<Format::f32, C>(w, acts, n, m, o);
    case Format::f16: return few_rows<Format::f16, C>(w, acts, n, m, o);
    case Format::bf16: return few_rows<Format::bf16, C>(w, acts, n, m, o);
    default: break;
  }
  few_tiles<C>(w, acts, n, m, o,
               [&](const std::int8_t* x, const auto& each) { return sum_tiles8<C>(tiles, x, kp, each); });
}

// scratch: 16 rows of int8.
void linear_few(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  const bool ints = w.format == Format::i8 || w.format == Format::i4;
  for (int n = n0; n < n1; n += kPanel) {
    if (ints && acts.m == 1) {
      (w.format == Format::i8 ? few_in_order<Format::i8> : few_in_order<Format::i4>)(w, acts, n, o);
      continue;
    }
    const auto* tiles = ints ? reinterpret_cast<const unsigned char*>(panel_tiles(w, n, scratch)) : nullptr;
    int m = 0;
    for (; m + 4 <= acts.m; m += 4) few_panel<4>(w, tiles, acts, n, m, o);
    for (; m + 2 <= acts.m; m += 2) few_panel<2>(w, tiles, acts, n, m, o);
    if (m < acts.m) few_panel<1>(w, tiles, acts, n, m, o);
  }
}
