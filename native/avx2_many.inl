// Products of many tokens on AVX2; after generic.inl.
//
// 16 outputs at a time are packed with outputs in the lanes, (steps, 2, 8 outputs, 4 bytes of inputs), and
// then every token passes by, six abreast: 12 sums, two registers of weights, and 4 bytes of a token in all
// lanes of one more. That is two products a cycle, what the processor can do at most. Weights are taken in
// pieces that stay in the first-level cache.
//
// A float sum of few tokens is eight sums, lane j over inputs 8 i + j, added as a tree (see add_lanes). Here
// lane j is a pass of its own, chain j, and the tree is the same: an output has the same bits whatever the
// number of tokens. Integers, two 16-bit inputs to a step, need but one chain: their sums are exact.

constexpr int kMany = 24, kManyInts = 12;  // tokens from which packing the weights pays
constexpr int kTrains = 16;                // groups of tokens that take turns at a piece of the weights
constexpr std::size_t kPiece = 256;        // steps of one: 16 KB
constexpr std::size_t kStepBytes = kPanel * 4;
constexpr std::size_t kTurn = kAbreast * 4;  // bytes of a step of six tokens

static_assert(kPanel == 16);

// sum + w * x, 8 outputs, 4 bytes of inputs each.
struct FloatStep {
  using Sum = __m256;
  static constexpr int kChains = 8, kLevels = 3;
  static constexpr int kOrder[kChains] = {0, 4, 2, 6, 1, 5, 3, 7};  // tree: (j, j + 4), (j, j + 2), (0, 1)
  static Sum load(const void* p) { return _mm256_load_ps(static_cast<const float*>(p)); }
  static void store(void* p, Sum sum) { _mm256_store_ps(static_cast<float*>(p), sum); }
  static Sum splat(const unsigned char* x) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(x)); }
  static Sum dot(Sum sum, Sum w, Sum x) { return _mm256_fmadd_ps(w, x, sum); }
};

struct IntStep {
  using Sum = __m256i;
  static constexpr int kChains = 1, kLevels = 0;
  static constexpr int kOrder[kChains] = {0};
  static Sum load(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, Sum sum) { _mm256_store_si256(static_cast<__m256i*>(p), sum); }
  static Sum splat(const unsigned char* x) {
    std::int32_t pair;
    std::memcpy(&pair, x, 4);
    return _mm256_set1_epi32(pair);
  }
  static Sum dot(Sum sum, Sum w, Sum x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
};

struct alignas(32) Train {  // sums of 16 outputs of six tokens
  float v[kAbreast][kPanel];
};

// `steps` steps of six tokens, added to the sums or, where `fresh`, in place of them. Not inlined: the
// compiler keeps the sums in registers only where it sees nothing but this loop, and its tokens one after the
// other.
template <class Step>
[[gnu::noinline]] void add_steps(Train& sums, const unsigned char* w, const unsigned char* x,
                                 std::size_t steps, bool fresh) {
  typename Step::Sum local[kAbreast][2] = {};
  if (!fresh) {
#pragma GCC unroll 8
    for (std::size_t c = 0; c < kAbreast; ++c) {
      local[c][0] = Step::load(sums.v[c]);
      local[c][1] = Step::load(sums.v[c] + 8);
    }
  }
  for (std::size_t i = 0; i < steps; ++i, w += kStepBytes, x += kTurn) {
    const auto first = Step::load(w), second = Step::load(w + kStepBytes / 2);
#pragma GCC unroll 8
    for (std::size_t c = 0; c < kAbreast; ++c) {
      const auto input = Step::splat(x + 4 * c);
      local[c][0] = Step::dot(local[c][0], first, input);
      local[c][1] = Step::dot(local[c][1], second, input);
      asm volatile("" : "+x"(local[c][0]), "+x"(local[c][1]));
    }
  }
#pragma GCC unroll 8
  for (std::size_t c = 0; c < kAbreast; ++c) {
    Step::store(sums.v[c], local[c][0]);
    Step::store(sums.v[c] + 8, local[c][1]);
  }
}

inline void add_trains(Train& to, const Train& from) {
  for (std::size_t c = 0; c < kAbreast; ++c) add(F16::load(to.v[c]), F16::load(from.v[c])).store(to.v[c]);
}

// The sums of up to kTrains trains, in turn with those that wait for the other half of their tree.
template <class Step>
class Trains {
 public:
  Trains() {
    for (int level = 0; level <= Step::kLevels; ++level) rooms_[level] = memory_[level];
  }

  // `count` trains through all of a stripe: chains of `steps` steps, pieces of chains, trains. `x` is the
  // first train's.
  Train* run(int count, const unsigned char* stripe, const unsigned char* x, std::size_t steps) {
    for (int i = 0; i < Step::kChains; ++i) {
      const std::size_t at = static_cast<std::size_t>(Step::kOrder[i]) * steps;
      for (std::size_t done = 0; done < steps; done += kPiece) {
        const std::size_t piece = steps - done < kPiece ? steps - done : kPiece;
        const unsigned char* inputs = x + (at + done) * kTurn;
        for (int t = 0; t < count; ++t, inputs += steps * Step::kChains * kTurn) {
          add_steps<Step>(rooms_[0][t], stripe + (at + done) * kStepBytes, inputs, piece, done == 0);
        }
      }
      int level = 0;
      for (; i >> level & 1; ++level) {
        for (int t = 0; t < count; ++t) add_trains(rooms_[0][t], rooms_[level + 1][t]);
      }
      if (i + 1 < Step::kChains) std::swap(rooms_[0], rooms_[level + 1]);
    }
    return rooms_[0];
  }

 private:
  Train memory_[Step::kLevels + 1][kTrains];
  Train* rooms_[Step::kLevels + 1];
};

// Sums of both planes, 8 outputs of a token, as real numbers.
inline __m256 real_sums(__m256i low, const __m256i* high, const Token& token, const float* scale) {
  __m256 y = _mm256_cvtepi32_ps(low);
  if (high != nullptr) y = _mm256_fmadd_ps(_mm256_set1_ps(kHighStep), _mm256_cvtepi32_ps(*high), y);
  return _mm256_mul_ps(y, _mm256_mul_ps(_mm256_set1_ps(token.scale), _mm256_loadu_ps(scale)));
}

// 8 x 8 dwords, rows to columns.
inline void transpose(__m256i (&v)[8]) {
  __m256i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}

inline __m256i load32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

// 16 int8 as 16-bit integers: the inputs of eight steps.
inline __m256i widen16(const std::int8_t* from) { return _mm256_cvtepi8_epi16(load16(from)); }

// `count` tokens of one train to its seats from `first` on: line(c, i) is 8 steps of one, which go to steps
// i, i + step and so on, times `along`.
template <class F>
inline void board(int first, int count, std::size_t lines, std::size_t along, std::size_t step,
                  unsigned char* train, const F& line) {
  for (std::size_t i = 0; i < lines; ++i) {
    unsigned char* to = train + i * along * kTurn;
    if (count == static_cast<int>(kAbreast)) {
      __m256i eight[8] = {};
      for (int c = 0; c < static_cast<int>(kAbreast); ++c) eight[c] = line(c, i);
      transpose(eight);
      for (std::size_t j = 0; j < 8; ++j) {
        auto* six = reinterpret_cast<__m128i*>(to + j * step * kTurn);
        _mm_storeu_si128(six, _mm256_castsi256_si128(eight[j]));
        _mm_storel_epi64(six + 1, _mm256_extracti128_si256(eight[j], 1));
      }
      continue;
    }
    for (int c = 0; c < count; ++c) {
      alignas(32) std::uint32_t steps[8];
      IntStep::store(steps, line(c, i));
      for (std::size_t j = 0; j < 8; ++j) {
        std::memcpy(to + j * step * kTurn + static_cast<std::size_t>(first + c) * 4, &steps[j], 4);
      }
    }
  }
}

// The high plane of `count` tokens from m on.
void add_high(Train& sums, const unsigned char* stripe, const Acts& acts, int m, int count) {
  unsigned char inputs[kDepth / 2 * kTurn] = {};
  outlier_blocks(acts, m, count, [&](std::size_t i) {
    board(0, count, kDepth / 16, 8, 1, inputs,
          [&](int c, std::size_t at) { return widen16(acts.high(m + c) + i * kDepth + 16 * at); });
    const std::size_t steps = kDepth / 2;
    add_steps<IntStep>(sums, stripe + i * steps * kStepBytes, inputs, steps, false);
  });
}

// The integers of a train of `count` tokens to the floats that they stand for.
void make_real(Train& sums, const unsigned char* stripe, const Linear& w, const Acts& acts, int n, int m,
               int count) {
  const bool outliers = has_outliers(acts, m, count);
  Train high{};
  if (outliers) add_high(high, stripe, acts, m, count);
  for (int c = 0; c < count; ++c) {
    for (int j = 0; j < kPanel; j += 8) {
      const __m256i more = IntStep::load(high.v[c] + j);
      const __m256i low = IntStep::load(sums.v[c] + j);
      FloatStep::store(sums.v[c] + j,
                       real_sums(low, outliers ? &more : nullptr, acts.token(m + c), w.scale + n + j));
    }
  }
}

// The outputs of a stripe for all tokens.
template <class Step>
void stripe_tokens(const Linear& w, const unsigned char* stripe, const Acts& acts, int n, const Output& o) {
  constexpr bool kInts = std::is_same_v<Step, IntStep>;
  constexpr int kTokens = static_cast<int>(kAbreast);
  const std::size_t steps = static_cast<std::size_t>(w.kp) / (kInts ? 2 : 8);
  const unsigned char* x = kInts ? acts.wide() : acts.data;
  Trains<Step> all;
  for (int m0 = 0; m0 < acts.m; m0 += kTrains * kTokens) {
    const int left = acts.m - m0,
              trains = left < kTrains * kTokens ? (left + kTokens - 1) / kTokens : kTrains;
    Train* sums =
        all.run(trains, stripe, x + static_cast<std::size_t>(m0) * steps * Step::kChains * 4, steps);
    for (int t = 0; t < trains; ++t) {
      const int m = m0 + t * kTokens, count = acts.m - m < kTokens ? acts.m - m : kTokens;
      if constexpr (kInts) make_real(sums[t], stripe, w, acts, n, m, count);
      for (int c = 0; c < count; ++c) finish(F16::load(sums[t].v[c]), o, m + c, n, w.n);
    }
  }
}

// 16 outputs as a stripe: line(output, i) is 8 steps of one output, which go to steps i, i + step and so on,
// times `along`.
template <class F>
inline void pack_stripe(std::size_t lines, std::size_t along, std::size_t step, unsigned char* stripe,
                        const F& line) {
  for (std::size_t i = 0; i < lines; ++i) {
    for (int side = 0; side < 2; ++side) {
      __m256i eight[8];
      for (int r = 0; r < 8; ++r) eight[r] = line(8 * side + r, i);
      transpose(eight);
      unsigned char* to = stripe + i * along * kStepBytes + static_cast<std::size_t>(side) * 32;
      for (std::size_t j = 0; j < 8; ++j) IntStep::store(to + j * step * kStepBytes, eight[j]);
    }
  }
}

void pack_tiles(const std::int8_t* tiles, std::size_t kp, unsigned char* stripe) {
  pack_stripe(kp / 16, 8, 1, stripe, [&](int output, std::size_t i) {
    return widen16(tiles + i / 4 * kTile8 + output * kDepth + i % 4 * 16);
  });
}

template <Format kFormat>
inline __m256 load8(const void* w, std::size_t at) {
  if constexpr (kFormat == Format::f32) return _mm256_loadu_ps(static_cast<const float*>(w) + at);
  const __m128i half = load16(static_cast<const std::uint16_t*>(w) + at);
  if constexpr (kFormat == Format::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

template <Format kFormat>
void pack_rows(const Linear& w, int n, unsigned char* stripe) {
  const auto kp = static_cast<std::size_t>(w.kp);
  pack_stripe(kp / 8, 1, kp / 8, stripe, [&](int output, std::size_t i) {
    return _mm256_castps_si256(load8<kFormat>(w.w, static_cast<std::size_t>(n + output) * kp + 8 * i));
  });
}

// Outputs [n0, n1) for all tokens; scratch: a stripe, 16 kp values of at most 4 bytes, and 16 rows of int8.
void linear_stripes(const Linear& w, const Acts& acts, int n0, int n1, const Output& o,
                    unsigned char* scratch) {
  const auto kp = static_cast<std::size_t>(w.kp);
  for (int n = n0; n < n1; n += kPanel) {
    switch (w.format) {
      case Format::f32: pack_rows<Format::f32>(w, n, scratch); break;
      case Format::f16: pack_rows<Format::f16>(w, n, scratch); break;
      case Format::bf16: pack_rows<Format::bf16>(w, n, scratch); break;
      default:
        pack_tiles(panel_tiles(w, n, scratch + 2 * kp * kPanel), kp, scratch);
        stripe_tokens<IntStep>(w, scratch, acts, n, o);
        continue;
    }
    stripe_tokens<FloatStep>(w, scratch, acts, n, o);
  }
}

// Tokens for linear_stripes: (trains, chains, steps, 6 tokens, 4 bytes).
void prepare_stripes(const float* x, std::size_t ld, int m0, int m1, const Acts& acts,
                     unsigned char* scratch) {
  const auto kp = static_cast<std::size_t>(acts.kp);
  const bool ints = acts.format == Format::i8 || acts.format == Format::i4;
  if (ints) prepare_rows(x, ld, m0, m1, acts, scratch);
  constexpr int kTokens = static_cast<int>(kAbreast);
  for (int m = m0, count; m < m1; m += count) {
    const int first = m % kTokens;
    count = std::min(kTokens - first, m1 - m);
    const auto train = static_cast<std::size_t>(m - first) * kp;
    if (ints) {
      board(first, count, kp / 16, 8, 1, acts.wide() + train * 2,
            [&](int c, std::size_t i) { return widen16(acts.low(m + c) + 16 * i); });
    } else {
      board(first, count, kp / 8, 1, kp / 8, acts.data + train * 4,
            [&](int c, std::size_t i) { return load32(x + static_cast<std::size_t>(m + c) * ld + 8 * i); });
    }
  }
}
