// Products of a few outputs and tokens at a time, for sets that have no better; after generic.inl and
//
//   I16       16 int32:   zero, dot64 (adds 64 products), sum
//   kRows     outputs and kCols tokens that a register block holds at once
//   kOffset   what dot64 adds to the weights (VNNI multiplies unsigned by signed)

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

// Adds the products of one block of 64 inputs; `line` is kRows outputs of a tile, x the tokens' planes from
// there on.
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
  const auto whole_sum = [&](const I16& lanes, std::int32_t inputs) {
    return static_cast<std::uint32_t>(sum(lanes) - kOffset * inputs);
  };
  std::uint32_t total[kRows][C];  // modulo 2^32; the sum of both planes fits
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) total[r][c] = whole_sum(sums[r][c], acts.token(m + c).low_sum);
  }
  if (has_outliers(acts, m, C)) {
    I16 high[kRows][C] = {};
    outlier_blocks(acts, m, C, [&](std::size_t first, std::size_t count) {
      for (std::size_t i = first; i < first + count; ++i)
        int_step<C>(high, lines + i * kTile8, acts.high(m) + i * kDepth, kp);
    });
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < C; ++c)
        total[r][c] += kHighStep * whole_sum(high[r][c], acts.token(m + c).high_sum);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < C; ++c) {
      y[c][column + r] = static_cast<float>(static_cast<std::int32_t>(total[r][c])) *
                         (acts.token(m + c).scale * w.scale[n + column + r]);
    }
  }
}

template <int C>
inline void panel_block(const Linear& w, const std::int8_t* tiles, const Acts& acts, int n, int m,
                        const Output& o) {
  float y[C][kPanel];
  for (int column = 0; column < kPanel; column += kRows) {
    switch (w.format) {
      case Format::f32: float_block<Format::f32, C>(w, acts, n + column, m, y, column); break;
      case Format::f16: float_block<Format::f16, C>(w, acts, n + column, m, y, column); break;
      case Format::bf16: float_block<Format::bf16, C>(w, acts, n + column, m, y, column); break;
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
