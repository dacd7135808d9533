// Kernels in terms of a few vector operations. Each instruction set includes this file in its own translation
// unit, inside an anonymous namespace, after defining
//
//   F16       16 floats:  zero, load, store, splat, add, fma, sum, load_bf16, load_f16, load_pairs,
//             mul, div, least, most, exp16 (see plain.cpp), add_above (c + step where x > limit),
//             whole (the nearest integer, ties to even), store8 (such integers to int8)
//   I16       16 int32:   zero, dot64 (adds 64 products), sum
//   kRows     outputs and kCols tokens that a register block of `linear` holds at once
//   kOffset   what dot64 adds to the weights (VNNI multiplies unsigned by signed)
//
// Sums run in one order whatever the number of tokens: an output never depends on its neighbours in a batch.

constexpr float kInfinity = __builtin_huge_valf();

// The tanh approximation of GELU, x * sigmoid(2u): 1/2 (1 + tanh u) = sigmoid(2u).
inline F16 gelu16(const F16& x) {
  const F16 cubic = fma(mul(mul(x, x), x), F16::splat(0.044715f), x);
  const F16 power = least(mul(cubic, F16::splat(-2.0f * 0.7978845608f)), F16::splat(87.0f));
  return div(x, add(F16::splat(1.0f), exp16(power)));
}

inline std::uint16_t bf16_of(float x) {  // round to nearest, ties to even; the model has no NaN to keep
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int n, float* out) {
  F16 sums = F16::zero();
  const int whole = n / 16 * 16;
  for (int i = 0; i < whole; i += 16) sums = add(sums, F16::load(x + i));
  float total = sum(sums);
  for (int i = whole; i < n; ++i) total += x[i];
  const float mean = total / static_cast<float>(n);
  F16 squares = F16::zero();
  for (int i = 0; i < whole; i += 16) {
    const F16 centred = add(F16::load(x + i), F16::splat(-mean));
    squares = fma(centred, centred, squares);
  }
  float variance = sum(squares);
  for (int i = whole; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / std::sqrt(variance / static_cast<float>(n) + epsilon);
  for (int i = 0; i < n; ++i) out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

void widen(Format from, const void* source, std::size_t n, float* out) {
  const auto* half = static_cast<const std::uint16_t*>(source);
  if (from == Format::f32) {
    std::memcpy(out, source, n * sizeof(float));
    return;
  }
  const std::size_t whole = n / 16 * 16;
  std::uint16_t tail[16] = {};
  if (n > whole) std::memcpy(tail, half + whole, (n - whole) * sizeof(*half));
  for (std::size_t i = 0; i < n; i += 16) {
    const std::uint16_t* from16 = i < whole ? half + i : tail;
    const F16 value = from == Format::bf16 ? F16::load_bf16(from16) : F16::load_f16(from16);
    float sixteen[16];
    value.store(sixteen);
    std::memcpy(out + i, sixteen, (i < whole ? 16 : n - whole) * sizeof(float));
  }
}

// ---- activations ----

inline F16 magnitude(const F16& x) { return most(x, mul(x, F16::splat(-1.0f))); }

// One token of kp inputs in two planes, see Acts; all of both is written. maxima: room for kp / kDepth.
//
// The scale is that of the largest value if this is at most kBulk times the median of the blocks' largest values (of
// 2048 normal values it is 1.4 times that median), else that of kBulk times the median.
Token quantize_token(const float* x, int kp, std::int8_t* low, std::int8_t* high, std::uint64_t* blocks, float* maxima) {
  constexpr float kBulk = 4.0f;
  const int n_blocks = kp / kDepth;
  float highest = 0;
  for (int i = 0; i < n_blocks; ++i) {
    F16 top = F16::zero();
    for (int j = 0; j < kDepth; j += 16) top = most(top, magnitude(F16::load(x + i * kDepth + j)));
    maxima[i] = largest(top);
    highest = maxima[i] > highest ? maxima[i] : highest;
  }
  std::nth_element(maxima, maxima + n_blocks / 2, maxima + n_blocks);
  const float bulk = kBulk * maxima[n_blocks / 2];
  const float reach = highest / (kHighStep + 1);  // of the high plane
  const float unit = highest <= bulk ? highest : bulk > reach ? bulk : reach;
  const F16 inverse = F16::splat(highest > 0 ? kLargest / unit : 0.0f);
  for (int word = 0; word < (kp / kDepth + 63) / 64; ++word) blocks[word] = 0;
  std::memset(high, 0, static_cast<std::size_t>(kp));
  F16 low_sum = F16::zero(), high_sum = F16::zero();
  bool outliers = false;
  for (int i = 0; i < kp; i += kDepth) {
    F16 values[kDepth / 16], top = F16::zero();
    for (int j = 0; j < kDepth / 16; ++j) {
      values[j] = whole(mul(F16::load(x + i + 16 * j), inverse));
      top = most(top, magnitude(values[j]));
    }
    if (highest > unit && largest(top) > kLargest) {
      outliers = true;
      blocks[i / kDepth / 64] |= std::uint64_t{1} << (i / kDepth % 64);
      for (int j = 0; j < kDepth / 16; ++j) {
        const F16 steps = whole(mul(values[j], F16::splat(1.0f / kHighStep)));
        values[j] = fma(steps, F16::splat(-kHighStep), values[j]);
        steps.store8(high + i + 16 * j);
        high_sum = add(high_sum, steps);
      }
    }
    for (int j = 0; j < kDepth / 16; ++j) {
      values[j].store8(low + i + 16 * j);
      low_sum = add(low_sum, values[j]);
    }
  }
  // Sums of whole numbers below 2^24 are exact.
  return {unit / kLargest, static_cast<std::int32_t>(sum(low_sum)), static_cast<std::int32_t>(sum(high_sum)), outliers};
}

void prepare_rows(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  const auto kp = static_cast<std::size_t>(acts.kp);
  for (int m = m0; m < m1; ++m) {
    const float* row = x + static_cast<std::size_t>(m) * ld;
    if (acts.format == Format::i8 || acts.format == Format::i4) {
      acts.token(m) = quantize_token(row, acts.kp, acts.low(m), acts.high(m), acts.blocks(m),
                                     reinterpret_cast<float*>(scratch));
    } else if (acts.format == Format::bf16 && kHalfProducts) {
      auto* out = reinterpret_cast<std::uint16_t*>(acts.data) + static_cast<std::size_t>(m) * kp;
      for (std::size_t i = 0; i < kp; ++i) out[i] = bf16_of(row[i]);
    } else {
      std::memcpy(reinterpret_cast<float*>(acts.data) + static_cast<std::size_t>(m) * kp, row, kp * sizeof(float));
    }
  }
}

// ---- weights ----

// One output: the scale that takes its largest weight to 127.
void quantize_row8(const float* row, int kp, std::int8_t* tile, float* scale) {
  constexpr float kRound = 12582912.0f;  // adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even
  float largest = 0;
  for (int i = 0; i < kp; ++i) largest = std::fabs(row[i]) > largest ? std::fabs(row[i]) : largest;
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  for (int k = 0; k < kp; k += kDepth) {
    std::int8_t* to = tile + k / kDepth * kTile8;
    for (int i = 0; i < kDepth; ++i) {
      to[i] = static_cast<std::int8_t>(static_cast<std::int32_t>((row[k + i] * inverse + kRound) - kRound));
    }
  }
  *scale = largest / 127.0f;
}

// The nearest entry of an int4 table row to each of 32 values: codes, and the weighted squared error.
inline float nearest_codes(const float* x, const float* importance, const std::int8_t* entries, std::int32_t* codes) {
  const bool falling = entries[0] > entries[kCodes - 1];  // a mirrored row is searched upside down
  float rising[kCodes];
  for (int j = 0; j < kCodes; ++j) rising[j] = entries[falling ? kCodes - 1 - j : j];
  F16 errors = F16::zero();
  for (int half = 0; half < kGroup; half += 16) {
    const F16 wanted = F16::load(x + half);
    F16 value = F16::splat(rising[0]), count = F16::zero();
    for (int j = 0; j + 1 < kCodes; ++j) {
      const float step = rising[j + 1] - rising[j], middle = rising[j] + 0.5f * step;
      value = add_above(wanted, middle, step, value);
      count = add_above(wanted, middle, 1.0f, count);
    }
    const F16 error = fma(value, F16::splat(-1.0f), wanted);
    errors = fma(fma(error, F16::load(importance + half), F16::zero()), error, errors);
    float counts[16];
    count.store(counts);
    for (int i = 0; i < 16; ++i) {
      const auto code = static_cast<std::int32_t>(counts[i]);
      codes[half + i] = falling ? kCodes - 1 - code : code;
    }
  }
  return sum(errors);
}

// The group scale with the least error among those that put its largest weight near either end of the codebook.
inline int search_scale(const float* x, const float* importance, const std::int8_t* table, std::int32_t* codes) {
  float largest = 0;
  for (int i = 0; i < kGroup; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
  int best = 0, last = -1;
  float least = kInfinity;
  std::int32_t tried[kGroup];
  for (int step = 0; step <= 10; ++step) {
    int scale = static_cast<int>(largest * (0.75f + 0.05f * static_cast<float>(step)) + 0.5f);
    scale = scale < 1 ? 1 : scale > 127 ? 127 : scale;
    if (scale == last) continue;
    last = scale;
    for (int candidate = scale; candidate < 256; candidate += 128) {
      const float error = nearest_codes(x, importance, table + candidate * kCodes, tried);
      if (error >= least) continue;
      least = error;
      best = candidate;
      std::memcpy(codes, tried, sizeof tried);
    }
  }
  return best;
}

// One output's groups, codes one to a byte: (kp) and scales (kp / 32); see kTile4 for how they are then packed.
float quantize_row4(const float* row, int kp, const float* importance, const std::int8_t* table, std::uint8_t* codes,
                    std::uint8_t* groups) {
  float largest = 0;
  for (int i = 0; i < kp; ++i) largest = std::fabs(row[i]) > largest ? std::fabs(row[i]) : largest;
  const float unit = largest / 120.0f;  // leaves the largest group room to be scaled up
  const float inverse = largest > 0 ? 1.0f / unit : 0.0f;
  for (int k = 0; k < kp; k += kGroup) {
    float x[kGroup];
    std::int32_t found[kGroup];
    for (int i = 0; i < kGroup; ++i) x[i] = row[k + i] * inverse;
    groups[k / kGroup] = static_cast<std::uint8_t>(search_scale(x, importance + k, table, found));
    for (int i = 0; i < kGroup; ++i) codes[k + i] = static_cast<std::uint8_t>(found[i]);
  }
  return unit;
}

// 16 outputs of kp codes and kp / 32 group scales each -> tiles of int4.
void pack_panel(const std::uint8_t* codes, const std::uint8_t* groups, int kp, unsigned char* tiles) {
  constexpr int kGroups = kDepth / kGroup;
  for (int k = 0; k < kp; k += kDepth, tiles += kTile4) {
    for (int n = 0; n < kPanel; ++n) {
      const std::uint8_t* row = codes + n * kp + k;
      unsigned char* to = tiles + n / 2 * kDepth;
      for (int i = 0; i < kDepth; ++i) {
        to[i] = static_cast<unsigned char>(n % 2 == 0 ? row[i] : to[i] | row[i] << 4);
      }
      for (int g = 0; g < kGroups; ++g) {
        tiles[kTile8 / 2 + n * kGroups + g] = groups[n * (kp / kGroup) + k / kGroup + g];
      }
    }
  }
}

// 16 outputs (16, kp) to tiles and scales. importance (kp): how much an error on each input weighs, int4 only.
// scratch: 16 kp codes and 16 kp / 32 group scales.
void quantize_panel(Format format, const float* rows, int kp, const float* importance, const std::int8_t* table,
                    unsigned char* tiles, float* scales, std::uint8_t* scratch) {
  std::uint8_t* groups = scratch + kPanel * kp;
  for (int n = 0; n < kPanel; ++n) {
    const float* row = rows + static_cast<std::size_t>(n) * static_cast<std::size_t>(kp);
    if (format == Format::i8) {
      quantize_row8(row, kp, reinterpret_cast<std::int8_t*>(tiles) + n * kDepth, scales + n);
    } else {
      scales[n] = quantize_row4(row, kp, importance, table, scratch + n * kp, groups + n * (kp / kGroup));
    }
  }
  if (format == Format::i4) pack_panel(scratch, groups, kp, tiles);
}

// ---- projections ----

// 16 outputs of one token to where they go.
inline void finish(F16 value, const Output& o, int m, int n, int n_all) {
  if (o.bias != nullptr) value = add(value, F16::load(o.bias + n));
  if (o.gelu) value = gelu16(value);
  float* out = o.out + static_cast<std::size_t>(m) * o.ld + n;
  if (n_all - n >= kPanel) {
    if (o.accumulate) value = add(F16::load(out), value);
    value.store(out);
    return;
  }
  float values[kPanel];
  value.store(values);
  for (int j = 0; j < n_all - n; ++j) out[j] = o.accumulate ? out[j] + values[j] : values[j];
}

template <Format kFormat>
inline F16 load_weight(const void* w, std::size_t i) {
  if constexpr (kFormat == Format::f32) return F16::load(static_cast<const float*>(w) + i);
  if constexpr (kFormat == Format::f16) return F16::load_f16(static_cast<const std::uint16_t*>(w) + i);
  if constexpr (kFormat == Format::bf16) return F16::load_bf16(static_cast<const std::uint16_t*>(w) + i);
}

// kRows outputs x C tokens in float32.
template <Format kFormat, int C>
inline void float_block(const Linear& w, const Acts& acts, int n, int m, float (*y)[kPanel], int column) {
  const auto kp = static_cast<std::size_t>(w.kp);
  const float* x = reinterpret_cast<const float*>(acts.data) + static_cast<std::size_t>(m) * kp;
  const std::size_t row = static_cast<std::size_t>(n) * kp;
  F16 sums[kRows][C];
  for (auto& line : sums) {
    for (auto& value : line) value = F16::zero();
  }
  for (std::size_t k = 0; k < kp; k += 16) {
    F16 inputs[C];
    for (int c = 0; c < C; ++c) inputs[c] = F16::load(x + static_cast<std::size_t>(c) * kp + k);
    for (int r = 0; r < kRows; ++r) {
      const F16 weight = load_weight<kFormat>(w.w, row + static_cast<std::size_t>(r) * kp + k);
      for (int c = 0; c < C; ++c) sums[r][c] = fma(weight, inputs[c], sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) y[c][column + r] = sum(sums[r][c]);
  }
}

// Adds the products of one block of 64 inputs; `line` is kRows outputs of a tile, x the tokens' planes from there on.
template <int C>
inline void int_step(I16 (&sums)[kRows][C], const std::int8_t* line, const std::int8_t* x, std::size_t kp) {
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) {
      sums[r][c] = dot64(sums[r][c], line + r * kDepth, x + static_cast<std::size_t>(c) * kp);
    }
  }
}

// kRows outputs x C tokens of int8; `tiles` is the panel's (Kp / 64, 16, 64).
template <int C>
inline void int_block(const Linear& w, const std::int8_t* tiles, const Acts& acts, int n, int m,
                      float (*y)[kPanel], int column) {
  const auto kp = static_cast<std::size_t>(w.kp), steps = kp / kDepth;
  const std::int8_t* lines = tiles + column * kDepth;
  I16 sums[kRows][C] = {};
  for (std::size_t i = 0; i < steps; ++i) int_step<C>(sums, lines + i * kTile8, acts.low(m) + i * kDepth, kp);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) y[c][column + r] = static_cast<float>(sum(sums[r][c]) - kOffset * acts.token(m + c).low_sum);
  }
  bool outliers = false;
  for (int c = 0; c < C; ++c) outliers |= acts.token(m + c).outliers;
  if (outliers) {
    I16 high[kRows][C] = {};
    for (int word = 0; word < acts.words(); ++word) {
      std::uint64_t bits = 0;
      for (int c = 0; c < C; ++c) bits |= acts.blocks(m + c)[word];
      for (; bits != 0; bits &= bits - 1) {
        const auto i = static_cast<std::size_t>(64 * word + std::countr_zero(bits));
        int_step<C>(high, lines + i * kTile8, acts.high(m) + i * kDepth, kp);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < C; ++c) {
        const auto steps_of = static_cast<float>(sum(high[r][c]) - kOffset * acts.token(m + c).high_sum);
        y[c][column + r] = std::fma(static_cast<float>(kHighStep), steps_of, y[c][column + r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) y[c][column + r] *= acts.token(m + c).scale * w.scale[n + column + r];
  }
}

// See kTile4. The tables are read 16 bytes at a time by the vector versions.
[[maybe_unused]] void unpack_plain(const std::uint8_t* tile, const std::int8_t* table, std::int8_t* out) {
  const std::uint8_t* scales = tile + kTile8 / 2;
  constexpr int kGroups = kDepth / kGroup;
  for (int n = 0; n < kPanel; ++n) {
    for (int k = 0; k < kDepth; ++k) {
      const int code = tile[n / 2 * kDepth + k] >> (n % 2 * 4) & 15;
      out[n * kDepth + k] = table[scales[n * kGroups + k / kGroup] * kCodes + code];
    }
  }
}

// The int8 tiles of panel n / 16: as stored, or unpacked from int4 into scratch.
inline const std::int8_t* panel_tiles(const Linear& w, int n, unsigned char* scratch) {
  const auto tiles = static_cast<std::size_t>(w.kp / kDepth);
  const auto panel = static_cast<std::size_t>(n / kPanel);
  if (w.format == Format::i8) return static_cast<const std::int8_t*>(w.w) + panel * tiles * kTile8;
  const std::uint8_t* packed = static_cast<const std::uint8_t*>(w.w) + panel * tiles * kTile4;
  auto* out = reinterpret_cast<std::int8_t*>(scratch);
  for (std::size_t i = 0; i < tiles; ++i) unpack_tile(packed + i * kTile4, w.table, out + i * kTile8);
  return out;
}

template <int C>
inline void panel_block(const Linear& w, const std::int8_t* tiles, const Acts& acts, int n, int m, const Output& o) {
  float y[C][kPanel];
  for (int column = 0; column < kPanel; column += kRows) {
    switch (w.format) {
      case Format::f32: float_block<Format::f32, C>(w, acts, n + column, m, y, column); break;
      case Format::f16: float_block<Format::f16, C>(w, acts, n + column, m, y, column); break;
      case Format::bf16:
        if constexpr (kHalfProducts) {
          half_block<C>(w, acts, n + column, m, y, column);
        } else {
          float_block<Format::bf16, C>(w, acts, n + column, m, y, column);
        }
        break;
      default: int_block<C>(w, tiles, acts, n, m, y, column); break;
    }
  }
  for (int c = 0; c < C; ++c) finish(F16::load(y[c]), o, m + c, n, w.n);
}

// Tokens are taken in blocks whose activations stay in the second-level cache while all outputs pass by.
void linear_rows(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  constexpr std::size_t kCacheBytes = 512 * 1024;
  const std::size_t token_bytes = acts_bytes(w.format, 1, static_cast<std::size_t>(w.kp));
  const int fit = static_cast<int>(kCacheBytes / token_bytes) / kCols * kCols;
  const int step = fit < 4 * kCols ? 4 * kCols : fit;
  const bool packed = w.format == Format::i8 || w.format == Format::i4;
  for (int m0 = 0; m0 < acts.m; m0 += step) {
    const int m1 = m0 + step < acts.m ? m0 + step : acts.m;
    for (int n = n0; n < n1; n += kPanel) {
      const std::int8_t* tiles = packed ? panel_tiles(w, n, scratch) : nullptr;
      static_assert(kCols == 2);
      int m = m0;
      for (; m + 2 <= m1; m += 2) panel_block<2>(w, tiles, acts, n, m, o);
      if (m < m1) panel_block<1>(w, tiles, acts, n, m, o);
    }
  }
}

#include "attention.inl"

[[maybe_unused]] std::size_t scratch_rows(int kp, int d) {
  const std::size_t panel = static_cast<std::size_t>(kp) * kPanel, attend = Attention<FloatCell>::scratch_bytes(d);
  return panel > attend ? panel : attend;
}
