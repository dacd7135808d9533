// Products of many tokens on AVX-512, for avx512.cpp and amx.cpp; after generic.inl.
//
// 64 outputs at a time are packed with outputs in the lanes, (steps, 4, 16 outputs, 4 bytes of inputs), and
// then every token passes by, six at a time: 24 sums, four registers of weights, and 4 bytes of a token in
// all lanes of one more. That is one product a cycle and two loads for five of them, all from near caches:
// the machine's peak.
//
// A float sum of few tokens is 16 sums, lane j over inputs 16 i + j, added as a tree (see add_lanes). Here
// lane j is a pass of its own, chain j, and the tree is the same: an output has the same bits whatever the
// number of tokens. So that a chain finds its inputs in a row, weights and tokens of floats lie chain by
// chain.

constexpr int kPanels = 4;  // of 16 outputs, in a stripe
constexpr int kStripe = kPanels * kPanel;
constexpr int kTokens = 6;
constexpr int kChains = 16;
constexpr int kMany = 24;  // tokens from which packing the weights pays

using Line = __m512i[16];

// 16 x 16 dwords, rows to columns.
inline void transpose(Line& v) {
  Line t;
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// sum + w * x, 16 outputs, 4 bytes of inputs each.
struct FloatStep {
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum dot(Sum sum, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
  }
};

struct HalfStep {
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum dot(Sum sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(w), std::bit_cast<__m512bh>(x));
  }
};

struct IntStep {
  using Sum = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum dot(Sum sum, __m512i w, __m512i x) { return _mm512_dpbusd_epi32(sum, w, x); }
};

template <class Step, int C>
using SumsOf = typename Step::Sum[C][kPanels];

// `steps` steps of C tokens, x + c * ld, added to the sums.
template <class Step, int C>
[[gnu::always_inline]] inline void add_products(SumsOf<Step, C>& sums, const unsigned char* w,
                                                const unsigned char* x, std::size_t ld, std::size_t steps) {
  for (std::size_t i = 0; i < steps; ++i, w += kStripe * 4, x += 4) {
    __m512i weights[kPanels];
#pragma GCC unroll 8
    for (int v = 0; v < kPanels; ++v) weights[v] = _mm512_loadu_si512(w + v * 64);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      std::int32_t four;
      std::memcpy(&four, x + static_cast<std::size_t>(c) * ld, 4);
      const __m512i inputs = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int v = 0; v < kPanels; ++v) sums[c][v] = Step::dot(sums[c][v], weights[v], inputs);
    }
  }
}

// The products, added to the sums or, with kFresh, in place of them. Not inlined: the compiler keeps the sums
// in registers only where it sees nothing but this loop.
template <class Step, int C, bool kFresh>
[[gnu::noinline]] void add_steps(SumsOf<Step, C>& sums, const unsigned char* w, const unsigned char* x,
                                 std::size_t ld, std::size_t steps) {
  SumsOf<Step, C> local;
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanels; ++v) local[c][v] = kFresh ? Step::zero() : sums[c][v];
  }
  add_products<Step, C>(local, w, x, ld, steps);
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanels; ++v) sums[c][v] = local[c][v];
  }
}

template <class Step, int C>
inline void clear(SumsOf<Step, C>& sums) {
  for (auto& line : sums) {
    for (auto& value : line) value = Step::zero();
  }
}

// Sums of chains that wait for their partners in the tree, by level; the last holds all of them.
template <int C>
using Waiting = float[5][C][kPanels][16];

// Chain number i of C tokens, added to the chains that wait for it.
template <class Step, int C>
[[gnu::noinline]] void add_chain(Waiting<C>& waiting, int i, const unsigned char* w, const unsigned char* x,
                                 std::size_t ld, std::size_t steps) {
  __m512 local[C][kPanels];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanels; ++v) local[c][v] = Step::zero();
  }
  add_products<Step, C>(local, w, x, ld, steps);
  int level = 0;
  for (; i >> level & 1; ++level) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
      for (int v = 0; v < kPanels; ++v)
        local[c][v] = _mm512_add_ps(_mm512_load_ps(waiting[level][c][v]), local[c][v]);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanels; ++v) _mm512_store_ps(waiting[level][c][v], local[c][v]);
  }
}

// The chains of C tokens, and their tree: (j, j + 8), (j, j + 4), (j, j + 2), (0, 1).
template <class Step, int C>
inline void float_stripe(__m512 (&sums)[C][kPanels], const unsigned char* w, const unsigned char* x,
                         std::size_t ld, std::size_t steps) {
  constexpr int kOrder[kChains] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  alignas(64) Waiting<C> waiting;
  for (int i = 0; i < kChains; ++i) {
    const std::size_t at = static_cast<std::size_t>(kOrder[i]) * steps * 4;
    add_chain<Step, C>(waiting, i, w + at * kStripe, x + at, ld, steps);
  }
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < kPanels; ++v) sums[c][v] = _mm512_load_ps(waiting[4][c][v]);
  }
}

// The sums of C tokens from m on, both planes, scaled.
template <int C>
inline void int_stripe(__m512 (&sums)[C][kPanels], const Linear& w, const unsigned char* stripe,
                       const Acts& acts, int n, int m) {
  const auto kp = static_cast<std::size_t>(acts.kp);
  __m512i whole[C][kPanels], total[C][kPanels];
  const auto less_offset = [&](int c, int v, std::int32_t sum) {
    return _mm512_sub_epi32(whole[c][v], _mm512_set1_epi32(128 * sum));
  };
  add_steps<IntStep, C, true>(whole, stripe, reinterpret_cast<const unsigned char*>(acts.low(m)), kp, kp / 4);
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < kPanels; ++v) total[c][v] = less_offset(c, v, acts.token(m + c).low_sum);
  }
  if (has_outliers(acts, m, C)) {
    clear<IntStep, C>(whole);
    outlier_blocks(acts, m, C, [&](std::size_t first, std::size_t count) {
      add_steps<IntStep, C, false>(whole, stripe + first * kDepth * kStripe,
                                   reinterpret_cast<const unsigned char*>(acts.high(m) + first * kDepth), kp,
                                   count * kDepth / 4);
    });
    for (int c = 0; c < C; ++c) {
      for (int v = 0; v < kPanels; ++v) {
        const __m512i steps = less_offset(c, v, acts.token(m + c).high_sum);
        total[c][v] = _mm512_add_epi32(total[c][v], _mm512_mullo_epi32(_mm512_set1_epi32(kHighStep), steps));
      }
    }
  }
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < kPanels; ++v) sums[c][v] = _mm512_cvtepi32_ps(total[c][v]);
  }
  for (int v = 0; v < kPanels && n + v * kPanel < w.n; ++v) {
    const __m512 scale = _mm512_loadu_ps(w.scale + n + v * kPanel);
    for (int c = 0; c < C; ++c) {
      sums[c][v] = _mm512_mul_ps(sums[c][v], _mm512_mul_ps(_mm512_set1_ps(acts.token(m + c).scale), scale));
    }
  }
}

// C tokens from m on, the outputs of a stripe.
template <int C>
void stripe_tokens(const Linear& w, const unsigned char* stripe, const Acts& acts, int n, int m,
                   const Output& o) {
  __m512 sums[C][kPanels];
  const auto kp = static_cast<std::size_t>(acts.kp);
  if (w.format == Format::i8 || w.format == Format::i4) {
    int_stripe<C>(sums, w, stripe, acts, n, m);
  } else if (w.format == Format::bf16) {
    float_stripe<HalfStep, C>(sums, stripe, acts.data + static_cast<std::size_t>(m) * kp * 2, kp * 2,
                              kp / 32);
  } else {
    float_stripe<FloatStep, C>(sums, stripe, acts.data + static_cast<std::size_t>(m) * kp * 4, kp * 4,
                               kp / 16);
  }
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < kPanels && n + v * kPanel < w.n; ++v)
      finish(F16{sums[c][v]}, o, m + c, n + v * kPanel, w.n);
  }
}

void stripe_rest(const Linear& w, const unsigned char* stripe, const Acts& acts, int n, int m,
                 const Output& o) {
  switch (acts.m - m) {
    case 1: return stripe_tokens<1>(w, stripe, acts, n, m, o);
    case 2: return stripe_tokens<2>(w, stripe, acts, n, m, o);
    case 3: return stripe_tokens<3>(w, stripe, acts, n, m, o);
    case 4: return stripe_tokens<4>(w, stripe, acts, n, m, o);
    case 5: return stripe_tokens<5>(w, stripe, acts, n, m, o);
    default: return;
  }
}

// Line i of 64 bytes of 16 outputs, 16 steps of which each is one line now, to where vector v of the stripe
// has them.
inline void place_lines(Line& lines, std::size_t first, std::size_t step, unsigned char* stripe, int v) {
  transpose(lines);
  for (std::size_t j = 0; j < 16; ++j) {
    _mm512_storeu_si512(stripe + (first + j * step) * kStripe * 4 + static_cast<std::size_t>(v) * 64,
                        lines[j]);
  }
}

// 16 outputs from n on, as vector v of a stripe.
void pack_vector(const Linear& w, int n, int v, unsigned char* stripe) {
  const auto kp = static_cast<std::size_t>(w.kp);
  Line lines;
  if (w.format == Format::i8 || w.format == Format::i4) {
    const std::size_t tiles = kp / kDepth, tile0 = static_cast<std::size_t>(n / kPanel) * tiles;
    alignas(64) std::int8_t unpacked[kTile8];
    for (std::size_t i = 0; i < tiles; ++i) {
      const std::int8_t* tile = unpacked;
      if (w.format == Format::i4) {
        unpack_tile(static_cast<const std::uint8_t*>(w.w) + (tile0 + i) * kTile4, w.table, unpacked);
      } else {
        tile = static_cast<const std::int8_t*>(w.w) + (tile0 + i) * kTile8;
      }
      for (int r = 0; r < kPanel; ++r) {  // unsigned, see kOffset
        lines[r] = _mm512_xor_si512(_mm512_loadu_si512(tile + r * kDepth), _mm512_set1_epi8(-128));
      }
      place_lines(lines, i * 16, 1, stripe, v);
    }
    return;
  }
  const std::size_t inputs = w.format == Format::bf16 ? 32 : 16, steps = kp / inputs;
  for (std::size_t i = 0; i < steps; ++i) {
    for (int r = 0; r < kPanel; ++r) {
      const std::size_t at = static_cast<std::size_t>(n + r) * kp + i * inputs;
      if (w.format == Format::f32) lines[r] = _mm512_loadu_si512(static_cast<const float*>(w.w) + at);
      if (w.format == Format::bf16)
        lines[r] = _mm512_loadu_si512(static_cast<const std::uint16_t*>(w.w) + at);
      if (w.format == Format::f16) {
        lines[r] = _mm512_castps_si512(F16::load_f16(static_cast<const std::uint16_t*>(w.w) + at).v);
      }
    }
    place_lines(lines, i, steps, stripe, v);
  }
}

// Outputs [n0, n1) for all tokens; scratch: a stripe, 64 kp values of at most 4 bytes.
void linear_stripes(const Linear& w, const Acts& acts, int n0, int n1, const Output& o,
                    unsigned char* scratch) {
  for (int n = n0; n < n1; n += kStripe) {
    Linear part = w;  // ends with the task
    part.n = n1 < w.n ? n1 : w.n;
    for (int v = 0; v < kPanels && n + v * kPanel < part.n; ++v) pack_vector(w, n + v * kPanel, v, scratch);
    int m = 0;
    for (; m + kTokens <= acts.m; m += kTokens) stripe_tokens<kTokens>(part, scratch, acts, n, m, o);
    stripe_rest(part, scratch, acts, n, m, o);
  }
}

// From lines of 16 dwords to chains, see above.
inline void to_chains(const std::uint32_t* lines, std::size_t steps, std::uint32_t* chains) {
  for (std::size_t i = 0; i < steps; ++i) {
    for (std::size_t j = 0; j < kChains; ++j) chains[j * steps + i] = lines[i * kChains + j];
  }
}

// Tokens for linear_stripes.
void prepare_stripes(const float* x, std::size_t ld, int m0, int m1, const Acts& acts,
                     unsigned char* scratch) {
  if (acts.format == Format::i8 || acts.format == Format::i4)
    return prepare_rows(x, ld, m0, m1, acts, scratch);
  const bool half = acts.format == Format::bf16;
  const auto kp = static_cast<std::size_t>(acts.kp), row_bytes = kp * (half ? 2 : 4);
  for (int m = m0; m < m1; ++m) {
    Acts one = acts;
    one.m = 1;
    one.data = scratch;
    prepare_rows(x + static_cast<std::size_t>(m) * ld, ld, 0, 1, one, nullptr);
    auto* to = reinterpret_cast<std::uint32_t*>(acts.data + static_cast<std::size_t>(m) * row_bytes);
    to_chains(reinterpret_cast<const std::uint32_t*>(scratch), row_bytes / 64, to);
  }
}
