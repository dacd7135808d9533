// Low-rank updates (LowRank in layout.h), in the vector operations of generic.inl, which includes this file.
//
// Each sum has lanes of its own and runs in one order: a token's update does not depend on the tokens beside
// it.

// Rows [j, j + R) of A times C tokens.
template <Format kFormat, int R, int C>
inline void compress_block(const LowRank& u, int j, const float* const (&x)[C], float* const (&inner)[C]) {
  const auto kp = static_cast<std::size_t>(u.kp), row = static_cast<std::size_t>(j) * kp;
  F16 sums[R][C];
  for (auto& line : sums) {
    for (auto& value : line) value = F16::zero();
  }
  for (std::size_t k = 0; k < kp; k += 16) {
    F16 inputs[C];
    for (int c = 0; c < C; ++c) inputs[c] = F16::load(x[c] + k);
    for (int r = 0; r < R; ++r) {
      const F16 weight = load_weight<kFormat>(u.a, row + static_cast<std::size_t>(r) * kp + k);
      for (int c = 0; c < C; ++c) sums[r][c] = fma(weight, inputs[c], sums[r][c]);
    }
  }
  for (int c = 0; c < C; ++c) {
    for (int r = 0; r < R; ++r) inner[c][j + r] = sum(sums[r][c]);
  }
}

template <Format kFormat, int R, int C>
inline void compress_tokens(const LowRank& u, const float* const (&x)[C], float* const (&inner)[C]) {
  int j = 0;
  for (; j + R <= u.rank; j += R) compress_block<kFormat, R, C>(u, j, x, inner);
  for (; j < u.rank; ++j) compress_block<kFormat, 1, C>(u, j, x, inner);
}

template <Format kFormat>
void compress_as(const LowRank& u, const float* x, std::size_t ld, const int* tokens, int count,
                 float* inner) {
  const auto from = [&](int i) { return x + static_cast<std::size_t>(tokens[i]) * ld; };
  const auto to = [&](int i) { return inner + static_cast<std::ptrdiff_t>(i) * u.rank; };
  int i = 0;
  for (; i + 2 <= count; i += 2) {
    compress_tokens<kFormat, 2, 2>(u, {from(i), from(i + 1)}, {to(i), to(i + 1)});
  }
  if (i < count) compress_tokens<kFormat, 4, 1>(u, {from(i)}, {to(i)});
}

void compress(const LowRank& u, const float* x, std::size_t ld, const int* tokens, int count, float* inner) {
  (u.format == Format::f32 ? compress_as<Format::f32> : compress_as<Format::bf16>)(u, x, ld, tokens, count,
                                                                                   inner);
}

// Outputs [n, n + 16 P) of C tokens.
template <Format kFormat, int P, int C>
inline void expand_block(const LowRank& u, int n, const float* const (&inner)[C], float* const (&out)[C]) {
  const auto rank = static_cast<std::size_t>(u.rank), panel = rank * kPanel;
  const std::size_t at = static_cast<std::size_t>(n) * rank;
  F16 sums[P][C];
  for (auto& line : sums) {
    for (auto& value : line) value = F16::zero();
  }
  for (std::size_t j = 0; j < rank; ++j) {
    for (int p = 0; p < P; ++p) {
      const F16 weight = load_weight<kFormat>(u.b, at + static_cast<std::size_t>(p) * panel + j * kPanel);
      for (int c = 0; c < C; ++c) sums[p][c] = fma(weight, F16::splat(inner[c][j]), sums[p][c]);
    }
  }
  for (int c = 0; c < C; ++c) {
    for (int p = 0; p < P; ++p) {
      float* to = out[c] + n + p * kPanel;
      if (u.n - n - p * kPanel >= kPanel) {
        add(F16::load(to), sums[p][c]).store(to);
        continue;
      }
      float values[kPanel];
      sums[p][c].store(values);
      for (int i = 0; i < u.n - n - p * kPanel; ++i) to[i] += values[i];
    }
  }
}

template <Format kFormat>
void expand_as(const LowRank& u, const float* inner, const int* tokens, int count, int n0, int n1, float* out,
               std::size_t ld) {
  const auto from = [&](int i) { return inner + static_cast<std::ptrdiff_t>(i) * u.rank; };
  const auto to = [&](int i) { return out + static_cast<std::size_t>(tokens[i]) * ld; };
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int n = n0; n < n1; n += kPanel) {
      expand_block<kFormat, 1, 4>(u, n, {from(i), from(i + 1), from(i + 2), from(i + 3)},
                                  {to(i), to(i + 1), to(i + 2), to(i + 3)});
    }
  }
  for (; i < count; ++i) {
    int n = n0;
    for (; n + kPanel < n1; n += 2 * kPanel) expand_block<kFormat, 2, 1>(u, n, {from(i)}, {to(i)});
    if (n < n1) expand_block<kFormat, 1, 1>(u, n, {from(i)}, {to(i)});
  }
}

void expand(const LowRank& u, const float* inner, const int* tokens, int count, int n0, int n1, float* out,
            std::size_t ld) {
  (u.format == Format::f32 ? expand_as<Format::f32> : expand_as<Format::bf16>)(u, inner, tokens, count, n0,
                                                                               n1, out, ld);
}
