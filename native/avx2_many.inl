// Products of floats with many tokens on AVX2; after avx2_ints.inl.
//
// 16 outputs at a time are packed with outputs in the lanes, (steps, 2, 8 outputs, an input), and then every
// token passes by, six abreast: 12 sums, two registers of weights, and an input of a token in all lanes of
// one more. That is two products a cycle, what the processor can do at most. Weights are taken in pieces that
// stay in the first-level cache.
//
// A sum of few tokens is eight sums, lane j over inputs 8 i + j, added as a tree (see add_lanes). Here lane j
// is a pass of its own, chain j, and the tree is the same: an output has the same bits whatever the number of
// tokens.

constexpr int kMany = 24;                 // tokens from which packing the weights pays
constexpr std::size_t kFloatPiece = 256;  // steps of weights that stay in the first-level cache: 16 KB
constexpr int kFloatTrains = 16;          // groups of tokens that take turns at a piece of the weights
constexpr int kChains = 8, kLevels = 3;
constexpr int kOrder[kChains] = {0, 4, 2, 6, 1, 5, 3, 7};  // tree: (j, j + 4), (j, j + 2), (0, 1)
constexpr std::size_t kTurn = kAbreast * 4;                // bytes of a step of six tokens

struct alignas(32) Train {  // sums of 16 outputs of six tokens
  float v[kAbreast][kPanel];
};

// `steps` steps of six tokens, added to the sums or, where `fresh`, in place of them. Not inlined: the
// compiler keeps the sums in registers only where it sees nothing but this loop, and its tokens one after the
// other.
[[gnu::noinline]] void add_steps(Train& sums, const unsigned char* w, const unsigned char* x,
                                 std::size_t steps, bool fresh) {
  __m256 local[kAbreast][2] = {};
  if (!fresh) {
#pragma GCC unroll 8
    for (std::size_t c = 0; c < kAbreast; ++c) {
      local[c][0] = _mm256_load_ps(sums.v[c]);
      local[c][1] = _mm256_load_ps(sums.v[c] + 8);
    }
  }
  for (std::size_t i = 0; i < steps; ++i, w += kStepBytes, x += kTurn) {
    const auto* weights = reinterpret_cast<const float*>(w);
    const __m256 first = _mm256_load_ps(weights), second = _mm256_load_ps(weights + 8);
#pragma GCC unroll 8
    for (std::size_t c = 0; c < kAbreast; ++c) {
      const __m256 input = _mm256_broadcast_ss(reinterpret_cast<const float*>(x) + c);
      local[c][0] = _mm256_fmadd_ps(first, input, local[c][0]);
      local[c][1] = _mm256_fmadd_ps(second, input, local[c][1]);
      asm volatile("" : "+x"(local[c][0]), "+x"(local[c][1]));
    }
  }
#pragma GCC unroll 8
  for (std::size_t c = 0; c < kAbreast; ++c) {
    _mm256_store_ps(sums.v[c], local[c][0]);
    _mm256_store_ps(sums.v[c] + 8, local[c][1]);
  }
}

inline void add_trains(Train& to, const Train& from) {
  for (std::size_t c = 0; c < kAbreast; ++c) add(F16::load(to.v[c]), F16::load(from.v[c])).store(to.v[c]);
}

// The sums of up to kFloatTrains trains, in turn with those that wait for the other half of their tree.
class Trains {
 public:
  Trains() {
    for (int level = 0; level <= kLevels; ++level) rooms_[level] = memory_[level];
  }

  // `count` trains through all of a stripe: chains of `steps` steps, pieces of chains, trains. `x` is the
  // first train's.
  Train* run(int count, const unsigned char* stripe, const unsigned char* x, std::size_t steps) {
    for (int i = 0; i < kChains; ++i) {
      const std::size_t at = static_cast<std::size_t>(kOrder[i]) * steps;
      for (std::size_t done = 0; done < steps; done += kFloatPiece) {
        const std::size_t piece = steps - done < kFloatPiece ? steps - done : kFloatPiece;
        const unsigned char* inputs = x + (at + done) * kTurn;
        for (int t = 0; t < count; ++t, inputs += steps * kChains * kTurn) {
          add_steps(rooms_[0][t], stripe + (at + done) * kStepBytes, inputs, piece, done == 0);
        }
      }
      int level = 0;
      for (; i >> level & 1; ++level) {
        for (int t = 0; t < count; ++t) add_trains(rooms_[0][t], rooms_[level + 1][t]);
      }
      if (i + 1 < kChains) std::swap(rooms_[0], rooms_[level + 1]);
    }
    return rooms_[0];
  }

 private:
  Train memory_[kLevels + 1][kFloatTrains];
  Train* rooms_[kLevels + 1];
};

// `count` tokens (., ld) to seats of a train from `first` on; it is (chains, steps, 6 tokens).
inline void board(const float* x, std::size_t ld, int first, int count, std::size_t kp,
                  unsigned char* train) {
  const std::size_t steps = kp / kChains;
  const auto line = [&](int c, std::size_t i) {
    return load32(x + static_cast<std::size_t>(c) * ld + 8 * i);
  };
  for (std::size_t i = 0; i < steps; ++i) {
    unsigned char* to = train + i * kTurn;
    if (count == static_cast<int>(kAbreast)) {
      __m256i eight[8] = {};
      for (int c = 0; c < static_cast<int>(kAbreast); ++c) eight[c] = line(c, i);
      transpose(eight);
      for (std::size_t j = 0; j < 8; ++j) {
        auto* six = reinterpret_cast<__m128i*>(to + j * steps * kTurn);
        _mm_storeu_si128(six, _mm256_castsi256_si128(eight[j]));
        _mm_storel_epi64(six + 1, _mm256_extracti128_si256(eight[j], 1));
      }
      continue;
    }
    for (int c = 0; c < count; ++c) {
      alignas(32) std::uint32_t chains[8];
      store32(chains, line(c, i));
      for (std::size_t j = 0; j < 8; ++j) {
        std::memcpy(to + j * steps * kTurn + static_cast<std::size_t>(first + c) * 4, &chains[j], 4);
      }
    }
  }
}

// The outputs of a stripe for all tokens.
void stripe_tokens(const Linear& w, const unsigned char* stripe, const Acts& acts, int n, const Output& o) {
  constexpr int kTokens = static_cast<int>(kAbreast);
  const std::size_t steps = static_cast<std::size_t>(w.kp) / kChains;
  Trains all;
  for (int m0 = 0; m0 < acts.m; m0 += kFloatTrains * kTokens) {
    const int left = acts.m - m0,
              trains = left < kFloatTrains * kTokens ? (left + kTokens - 1) / kTokens : kFloatTrains;
    Train* sums =
        all.run(trains, stripe, acts.data + static_cast<std::size_t>(m0) * steps * kChains * 4, steps);
    for (int i = 0; i < std::min(left, kFloatTrains * kTokens); ++i) {
      finish(F16::load(sums[i / kTokens].v[i % kTokens]), o, m0 + i, n, w.n);
    }
  }
}

template <Format kFormat>
inline __m256 load8(const void* w, std::size_t at) {
  if constexpr (kFormat == Format::f32) return _mm256_loadu_ps(static_cast<const float*>(w) + at);
  const __m128i half = load16(static_cast<const std::uint16_t*>(w) + at);
  if constexpr (kFormat == Format::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// 16 outputs from n on as a stripe, (chains, steps, 2, 8 outputs).
template <Format kFormat>
void pack_rows(const Linear& w, int n, unsigned char* stripe) {
  const auto kp = static_cast<std::size_t>(w.kp), steps = kp / kChains;
  for (std::size_t i = 0; i < steps; ++i) {
    for (int side = 0; side < 2; ++side) {
      __m256i eight[8];
      for (int r = 0; r < 8; ++r) {
        const auto at = static_cast<std::size_t>(n + 8 * side + r) * kp + 8 * i;
        eight[r] = _mm256_castps_si256(load8<kFormat>(w.w, at));
      }
      transpose(eight);
      unsigned char* to = stripe + i * kStepBytes + static_cast<std::size_t>(side) * 32;
      for (std::size_t j = 0; j < 8; ++j) store32(to + j * steps * kStepBytes, eight[j]);
    }
  }
}

// Outputs [n0, n1) for all tokens; scratch: a stripe, 16 kp floats.
void linear_stripes(const Linear& w, const Acts& acts, int n0, int n1, const Output& o,
                    unsigned char* scratch) {
  for (int n = n0; n < n1; n += kPanel) {
    switch (w.format) {
      case Format::f16: pack_rows<Format::f16>(w, n, scratch); break;
      case Format::bf16: pack_rows<Format::bf16>(w, n, scratch); break;
      default: pack_rows<Format::f32>(w, n, scratch); break;
    }
    stripe_tokens(w, scratch, acts, n, o);
  }
}

// Tokens for linear_stripes: (trains, chains, steps, 6 tokens).
void prepare_stripes(const float* x, std::size_t ld, int m0, int m1, const Acts& acts) {
  const auto kp = static_cast<std::size_t>(acts.kp);
  constexpr int kTokens = static_cast<int>(kAbreast);
  for (int m = m0, count; m < m1; m += count) {
    const int first = m % kTokens;
    count = std::min(kTokens - first, m1 - m);
    board(x + static_cast<std::size_t>(m) * ld, ld, first, count, kp,
          acts.data + static_cast<std::size_t>(m - first) * kp * 4);
  }
}
