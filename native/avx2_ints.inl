// Products of int8 and int4 weights on AVX2; after generic.inl.
//
// A step is two inputs of all 16 outputs of a panel, outputs in the lanes: 32 int8 in the order of the
// outputs, the first 16 widened to one register of 16-bit pairs, the others to a second. The two inputs of a
// token are in all lanes of one more (vpmaddwd). So a step of the weights is read and widened once for all
// tokens, sums need no adding up across lanes, and inputs have 16 bits at no cost.
//
//   int8 tile    (32 steps, 16 outputs, 2 inputs)
//   int4 tile    for each of two groups of 32 inputs (8, 32 bytes): the low four bits are an even step, the
//                high ones the odd step after it, their outputs in the order 0-3, 8-11, 4-7, 12-15, which
//                vpunpcklbw and vpunpckhbw turn into two registers in order; then, for each group, 16 group
//                scales as int8, below zero where the codebook is mirrored

inline __m256i load32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

inline void store32(void* to, __m256i value) { _mm256_store_si256(static_cast<__m256i*>(to), value); }

static_assert(kPanel == 16);
constexpr int kSteps = kDepth / 2;  // of a tile
constexpr std::size_t kStepBytes = kPanel * 4;
constexpr std::size_t kTiles = 4;  // a piece of a panel that stays in the first-level cache: 4 KB in int8
constexpr int kTrains = 24;        // groups of tokens that take turns at a piece of the weights
constexpr int kSeats = 4;          // tokens of one: of six, the compiler spills half of the sums

// f(step of the tile, outputs 0-7, outputs 8-15) for each step of a tile.
struct Tile8 {
  static constexpr std::size_t kBytes = kTile8;

  template <class F>
  static inline void each(const unsigned char* tile, const F& f) {
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      f(i, _mm256_cvtepi8_epi16(load16(tile + 32 * i)), _mm256_cvtepi8_epi16(load16(tile + 32 * i + 16)));
    }
  }
};

// A row of kTable is made where it is used: see table_factor in codebook.h.
struct Tile4 {
  static constexpr std::size_t kBytes = kTile4;

  // Byte `byte` of all 16 factors of the codebook, in both lanes.
  static inline __m256i factors(int byte) {
    alignas(16) std::uint8_t bytes[kCodes];
    for (int i = 0; i < kCodes; ++i)
      bytes[i] = static_cast<std::uint8_t>(static_cast<std::uint32_t>(table_factor(i)) >> 8 * byte);
    return _mm256_broadcastsi128_si256(load16(bytes));
  }

  template <class F>
  static inline void each(const unsigned char* tile, const F& f) {
    const __m256i nibble = _mm256_set1_epi8(15), low = factors(0), high = factors(1);
    for (int group = 0; group < kDepth / kGroup; ++group) {
      const __m256i scales = _mm256_cvtepi8_epi16(load16(tile + kTile8 / 2 + group * kPanel));
      // Each scale twice, for the two inputs of a pair.
      const __m256i even = _mm256_permute4x64_epi64(scales, 0xD8);
      const __m256i first = _mm256_unpacklo_epi16(even, even), second = _mm256_unpackhi_epi16(even, even);
      const auto step = [&](int i, __m256i codes) {
        const __m256i a = _mm256_shuffle_epi8(low, codes), b = _mm256_shuffle_epi8(high, codes);
        f(i, _mm256_mulhrs_epi16(_mm256_unpacklo_epi8(a, b), first),
          _mm256_mulhrs_epi16(_mm256_unpackhi_epi8(a, b), second));
      };
#pragma GCC unroll 2
      for (int i = 0; i < 8; ++i) {
        const __m256i codes = load32(tile + 256 * group + 32 * i);
        step(16 * group + 2 * i, _mm256_and_si256(codes, nibble));
        step(16 * group + 2 * i + 1, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
      }
    }
  }
};

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

// 64 inputs of 16 outputs (16, ld) to the steps of a tile, (32 steps, 16 outputs, 2 inputs).
inline void pack_steps(const std::uint8_t* codes, std::size_t ld, unsigned char* steps) {
  const __m256i apart = _mm256_broadcastsi128_si256(  // of two steps of four outputs
      _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  for (std::size_t side = 0; side < 2; ++side) {
    for (std::size_t half = 0; half < 2; ++half) {
      __m256i lines[8];
      for (std::size_t r = 0; r < 8; ++r) lines[r] = load32(codes + (8 * side + r) * ld + 32 * half);
      transpose(lines);
      unsigned char* to = steps + (16 * half * 32) + 16 * side;
      for (const __m256i line : lines) {  // two steps of eight outputs
        const __m256i two = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(line, apart), 0xD8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(two));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 32), _mm256_extracti128_si256(two, 1));
        to += 64;
      }
    }
  }
}

// 16 outputs, codes (16, kp) and group scales (16, kp / 32), to tiles.
void pack_pairs(Format format, const std::uint8_t* codes, const std::uint8_t* groups, int kp,
                unsigned char* tiles) {
  const auto ld = static_cast<std::size_t>(kp);
  for (int k = 0; k < kp; k += kDepth, tiles += format == Format::i8 ? kTile8 : kTile4) {
    if (format == Format::i8) {
      pack_steps(codes + k, ld, tiles);
      continue;
    }
    unsigned char steps[kTile8];
    pack_steps(codes + k, ld, steps);
    const auto step = [&](int i) {
      const __m256i in_order = load32(steps + 32 * i);
      return _mm256_permute4x64_epi64(in_order, 0xD8);  // outputs 0-3, 8-11, 4-7, 12-15
    };
    for (int i = 0; i < kSteps; i += 2) {
      const __m256i pair = _mm256_or_si256(step(i), _mm256_slli_epi16(step(i + 1), 4));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(tiles + 16 * i), pair);
    }
    for (int i = 0; i < 2 * kPanel; ++i) {
      const int scale = groups[i % kPanel * (kp / kGroup) + k / kGroup + i / kPanel];
      tiles[kTile8 / 2 + i] = static_cast<unsigned char>(scale < 128 ? scale : 128 - scale);
    }
  }
}

// The weights of a tile, (16, 64), as Kernels::unpack promises.
template <class Tile>
void unpack_pairs(const unsigned char* tile, std::int8_t* out) {
  Tile::each(tile, [&](int step, __m256i first, __m256i second) {
    std::int16_t pairs[2 * kPanel];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + kPanel), second);
    for (int i = 0; i < 2 * kPanel; ++i) {
      out[i / 2 * kDepth + 2 * step + i % 2] = static_cast<std::int8_t>(pairs[i]);
    }
  });
}

void unpack(Format format, const std::uint8_t* tile, std::int8_t* out) {
  (format == Format::i8 ? unpack_pairs<Tile8> : unpack_pairs<Tile4>)(tile, out);
}

// ---- activations: trains of up to four tokens, (steps, tokens, 2 inputs) of 16 bits ----

// Tokens of the train whose first is m.
inline int train_length(const Acts& acts, int m) { return std::min(kSeats, acts.m - m); }

inline const unsigned char* train(const Acts& acts, int m) {
  return acts.wide() + static_cast<std::size_t>(m) * static_cast<std::size_t>(acts.kp) * 2;
}

// Tokens [m0, m1); scratch: kp integers of 16 bits and kp / kDepth floats.
void prepare_ints(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  const auto kp = static_cast<std::size_t>(acts.kp);
  auto* integers = reinterpret_cast<std::int16_t*>(scratch);
  auto* maxima = reinterpret_cast<float*>(scratch + 2 * kp);
  for (int m = m0; m < m1; ++m) {
    const float* token = x + static_cast<std::size_t>(m) * ld;
    const Measure measure = measure_token(token, acts.kp, acts.format, maxima);
    acts.token(m).scale = measure.scale;
    const F16 inverse = F16::splat(measure.inverse);
    for (std::size_t i = 0; i < kp; i += 16) {
      if (measure.scale == measure.scale) {
        to_integers(token + i, inverse).store16(integers + i);
      } else {
        std::memset(integers + i, 0, 32);  // no numbers: the scale says so
      }
    }
    const int first = m - m % kSeats;
    const auto stride = static_cast<std::size_t>(train_length(acts, first)) * 4;
    unsigned char* to =
        const_cast<unsigned char*>(train(acts, first)) + static_cast<std::size_t>(m % kSeats) * 4;
    for (std::size_t i = 0; i < kp; i += 2, to += stride) std::memcpy(to, integers + i, 4);
  }
}

// ---- projections ----

// Sums of 16 outputs of a train.
struct IntSums {
  __m256i v[kSeats][2];
};

inline __m256i splat_pair(const unsigned char* x) {
  std::int32_t pair;
  std::memcpy(&pair, x, 4);
  return _mm256_set1_epi32(pair);
}

template <int C>
inline void add_products(__m256i (&sums)[C][2], __m256i first, __m256i second, const unsigned char* x) {
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    const __m256i input = splat_pair(x + 4 * c);
    sums[c][0] = _mm256_add_epi32(sums[c][0], _mm256_madd_epi16(first, input));
    sums[c][1] = _mm256_add_epi32(sums[c][1], _mm256_madd_epi16(second, input));
  }
}

// Asks for the tile that the thread comes to in some microseconds: what the processor fetches by itself is
// nearer.
template <std::size_t kBytes>
inline void fetch_tile(const unsigned char* tile) {
  constexpr std::size_t kAhead = 4096;
  for (std::size_t line = 0; line < kBytes; line += 64) _mm_prefetch(tile + kAhead + line, _MM_HINT_T0);
}

// `count` tiles of one train, added to the sums. Not inlined: the compiler keeps sums in registers only where
// it sees nothing but this loop.
template <class Tile, int C>
[[gnu::noinline]] void add_tiles(IntSums& sums, const unsigned char* tile, const unsigned char* x,
                                 std::size_t count) {
  __m256i local[C][2];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    local[c][0] = sums.v[c][0];
    local[c][1] = sums.v[c][1];
  }
  for (; count > 0; --count, tile += Tile::kBytes, x += kSteps * C * 4) {
    fetch_tile<Tile::kBytes>(tile);
    Tile::each(tile, [&](int step, __m256i first, __m256i second) {
      add_products<C>(local, first, second, x + step * C * 4);
    });
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    sums.v[c][0] = local[c][0];
    sums.v[c][1] = local[c][1];
  }
}

// 16 outputs of a token from its sums.
inline void finish_ints(__m256i first, __m256i second, const Linear& w, const Acts& acts, int n, int m,
                        const Output& o) {
  const __m256 scale = _mm256_set1_ps(acts.token(m).scale);
  const auto real = [&](__m256i sums, const float* scales) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(scale, _mm256_loadu_ps(scales)));
  };
  finish(F16{real(first, w.scale + n), real(second, w.scale + n + 8)}, o, m, n, w.n);
}

template <class Tile>
inline const unsigned char* tiles_of(const Linear& w, int n) {
  const std::size_t tile = static_cast<std::size_t>(n / kPanel) * static_cast<std::size_t>(w.kp / kDepth);
  return static_cast<const unsigned char*>(w.w) + tile * Tile::kBytes;
}

// Outputs [n0, n1) of the only train: straight from the weights as they lie.
template <class Tile, int C>
void few_ints(const Linear& w, const Acts& acts, int n0, int n1, const Output& o) {
  const auto tiles = static_cast<std::size_t>(w.kp / kDepth);
  for (int n = n0; n < n1; n += kPanel) {
    IntSums sums = {};
    add_tiles<Tile, C>(sums, tiles_of<Tile>(w, n), acts.wide(), tiles);
    for (int c = 0; c < C; ++c) finish_ints(sums.v[c][0], sums.v[c][1], w, acts, n, c, o);
  }
}

// int4 tiles to int8 ones.
void widen_tiles(const unsigned char* tile, std::size_t count, unsigned char* out) {
  for (; count > 0; --count, tile += kTile4, out += kTile8) {
    Tile4::each(tile, [&](int step, __m256i first, __m256i second) {
      const __m256i bytes = _mm256_packs_epi16(first, second);  // outputs 0-3, 8-11, 4-7, 12-15
      store32(out + 32 * step, _mm256_permute4x64_epi64(bytes, 0xD8));
    });
  }
}

// Tokens m0 to m1 of the panel whose first output is n, a train each kSeats.
template <class Tile>
void add_panel(IntSums* sums, const Linear& w, const Acts& acts, int n, int m0, int m1,
               unsigned char* scratch) {
  const auto tiles = static_cast<std::size_t>(w.kp / kDepth);
  const unsigned char* panel = tiles_of<Tile>(w, n);
  for (std::size_t tile = 0; tile < tiles; tile += kTiles) {
    const std::size_t count = std::min(kTiles, tiles - tile);
    const unsigned char* piece = panel + tile * Tile::kBytes;
    if constexpr (Tile::kBytes == kTile4) {
      widen_tiles(piece, count, scratch);
      for (std::size_t i = 0; i < kTiles * kTile4; i += 64)
        _mm_prefetch(piece + count * kTile4 + i, _MM_HINT_T1);
      piece = scratch;
    }
    for (int m = m0; m < m1; m += kSeats, ++sums) {
      const int length = train_length(acts, m);
      const unsigned char* x = train(acts, m) + tile * kDepth * 2 * static_cast<std::size_t>(length);
      auto& of = *sums;
      switch (length) {
        case 1: add_tiles<Tile8, 1>(of, piece, x, count); break;
        case 2: add_tiles<Tile8, 2>(of, piece, x, count); break;
        case 3: add_tiles<Tile8, 3>(of, piece, x, count); break;
        default: add_tiles<Tile8, 4>(of, piece, x, count); break;
      }
    }
    sums -= (m1 - m0 + kSeats - 1) / kSeats;
  }
}

// Outputs [n0, n1) of any number of tokens, kTrains trains at a time: a piece of the weights stays in the
// first-level cache while all of them pass by and the next piece is fetched. scratch: kTiles int8 tiles.
template <class Tile>
void many_ints(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  for (int n = n0; n < n1; n += kPanel) {
    for (int m0 = 0; m0 < acts.m; m0 += kTrains * kSeats) {
      const int m1 = std::min(acts.m, m0 + kTrains * kSeats);
      IntSums sums[kTrains] = {};
      add_panel<Tile>(sums, w, acts, n, m0, m1, scratch);
      for (int m = m0; m < m1; ++m) {
        const auto& of = sums[(m - m0) / kSeats].v[(m - m0) % kSeats];
        finish_ints(of[0], of[1], w, acts, n, m, o);
      }
    }
  }
}

// scratch: kTiles int8 tiles.
template <class Tile>
void linear_ints(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  switch (acts.m) {
    case 1: return few_ints<Tile, 1>(w, acts, n0, n1, o);
    case 2: return few_ints<Tile, 2>(w, acts, n0, n1, o);
    case 3: return few_ints<Tile, 3>(w, acts, n0, n1, o);
    case 4: return few_ints<Tile, 4>(w, acts, n0, n1, o);
    default: return many_ints<Tile>(w, acts, n0, n1, o, scratch);
  }
}
