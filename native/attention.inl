// Attention over the cache, in the vector operations of generic.inl, which includes this file.

void store_key(const float* k, int d, bool half, int slot, unsigned char* keys) {
  const int dp = round_up(d, kHeadStep);
  const int group = slot / kHalfBlock, lane = slot % kHalfBlock;
  if (half) {
    auto* out = reinterpret_cast<std::uint16_t*>(keys) + group * dp * kHalfBlock;
    for (int i = 0; i < d; ++i) out[(i / 2 * kHalfBlock + lane) * 2 + i % 2] = bf16_of(k[i]);
  } else {
    float* out = reinterpret_cast<float*>(keys) + group * dp * kHalfBlock;
    for (int i = 0; i < d; ++i) out[i * kHalfBlock + lane] = k[i];
  }
}

void store_value(const float* v, int d, bool half, int slot, unsigned char* values) {
  const int dp = round_up(d, kHeadStep);
  if (half) {
    auto* out = reinterpret_cast<std::uint16_t*>(values) + slot / 2 * dp * 2 + slot % 2;
    for (int i = 0; i < d; ++i) out[i * 2] = bf16_of(v[i]);
  } else {
    std::memcpy(reinterpret_cast<float*>(values) + slot * dp, v, static_cast<std::size_t>(d) * sizeof(float));
  }
}

// Scores of C queries against the 16 keys of one group; q is (C, ld) and scaled already.
template <bool kHalf, int C>
inline void score_group(const float* q, std::size_t ld, int d, const unsigned char* keys, float* scores,
                        std::size_t ld_scores) {
  F16 even[C], odd[C];
  for (int c = 0; c < C; ++c) even[c] = odd[c] = F16::zero();
  const int whole = d / 2 * 2;
  for (int i = 0; i < whole; i += 2) {
    F16 first, second;
    if constexpr (kHalf) {
      F16::load_pairs(keys + static_cast<std::size_t>(i) * kHalfBlock * 2, first, second);
    } else {
      first = F16::load(reinterpret_cast<const float*>(keys) + i * kHalfBlock);
      second = F16::load(reinterpret_cast<const float*>(keys) + (i + 1) * kHalfBlock);
    }
    for (int c = 0; c < C; ++c) {
      const float* query = q + static_cast<std::size_t>(c) * ld;
      even[c] = fma(first, F16::splat(query[i]), even[c]);
      odd[c] = fma(second, F16::splat(query[i + 1]), odd[c]);
    }
  }
  if (whole < d) {
    F16 last, none;
    if constexpr (kHalf) {
      F16::load_pairs(keys + static_cast<std::size_t>(whole) * kHalfBlock * 2, last, none);
    } else {
      last = F16::load(reinterpret_cast<const float*>(keys) + whole * kHalfBlock);
    }
    for (int c = 0; c < C; ++c) even[c] = fma(last, F16::splat(q[static_cast<std::size_t>(c) * ld + whole]), even[c]);
  }
  for (int c = 0; c < C; ++c) add(even[c], odd[c]).store(scores + static_cast<std::size_t>(c) * ld_scores);
}

// 16 V dimensions for C queries: sum over positions of p * v, position by position.
template <bool kHalf, int C>
inline void mix_group(const Attend& job, const float* p, std::size_t ld_p, int positions, int dim, float* out) {
  const int dp = round_up(job.d, kHeadStep);
  constexpr int kVectors = 2;
  F16 sums[C][kVectors];
  for (auto& line : sums) {
    for (auto& value : line) value = F16::zero();
  }
  for (int base = 0; base < positions; base += kBlock) {
    const unsigned char* values = job.blocks[base / kBlock] + job.values;
    for (int i = 0; i < kBlock; i += 2) {
      for (int v = 0; v < kVectors; ++v) {
        F16 first, second;
        if constexpr (kHalf) {
          F16::load_pairs(values + static_cast<std::size_t>(i / 2 * dp + dim + v * 16) * 4, first, second);
        } else {
          const float* row = reinterpret_cast<const float*>(values) + i * dp + dim + v * 16;
          first = F16::load(row);
          second = F16::load(row + dp);
        }
        for (int c = 0; c < C; ++c) {
          const float* weight = p + static_cast<std::size_t>(c) * ld_p + base + i;
          sums[c][v] = fma(first, F16::splat(weight[0]), sums[c][v]);
          sums[c][v] = fma(second, F16::splat(weight[1]), sums[c][v]);
        }
      }
    }
  }
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < kVectors; ++v) sums[c][v].store(out + (c * kVectors + v) * 16);
  }
}

// scores[0..visible) -> e^(score - max), zero up to `padded`; returns 1 / their sum.
inline float soften(float* scores, int visible, int padded) {
  for (int i = visible; i < padded; ++i) scores[i] = -kInfinity;
  F16 largest = F16::load(scores);
  for (int i = 16; i < padded; i += 16) largest = most(largest, F16::load(scores + i));
  float lanes[16];
  largest.store(lanes);
  float top = lanes[0];
  for (float lane : lanes) top = lane > top ? lane : top;
  const F16 shift = F16::splat(-top);
  F16 sums = F16::zero();
  for (int i = 0; i < padded; i += 16) {
    const F16 power = exp16(add(F16::load(scores + i), shift));
    power.store(scores + i);
    if (i + 16 <= visible) {
      sums = add(sums, power);
      continue;
    }
    for (int j = visible > i ? visible - i : 0; j < 16; ++j) scores[i + j] = 0.0f;
    sums = add(sums, F16::load(scores + i));
  }
  return 1.0f / sum(sums);
}

// C queries from query i on. scratch: scores (C, padded), queries (C, dp).
template <bool kHalf, int C>
void attend_some(const Attend& job, int i, float* scratch) {
  const int positions = job.first + i + C, padded = round_up(positions, kBlock);
  const int dp = round_up(job.d, kHeadStep);
  float* queries = scratch + static_cast<std::size_t>(C) * static_cast<std::size_t>(padded);
  const float scale = 1.0f / std::sqrt(static_cast<float>(job.d));
  for (int c = 0; c < C; ++c) {
    const float* q = job.q + static_cast<std::size_t>(i + c) * job.ld;
    for (int j = 0; j < job.d; ++j) queries[c * dp + j] = q[j] * scale;
  }
  const auto ld = static_cast<std::size_t>(padded);
  const std::size_t group = static_cast<std::size_t>(dp) * kHalfBlock * (kHalf ? 2 : 4);
  for (int base = 0; base < padded; base += kBlock) {
    const unsigned char* keys = job.blocks[base / kBlock] + job.keys;
    const auto width = static_cast<std::size_t>(dp);
    score_group<kHalf, C>(queries, width, job.d, keys, scratch + base, ld);
    score_group<kHalf, C>(queries, width, job.d, keys + group, scratch + base + kHalfBlock, ld);
  }
  float inverse[C];
  for (int c = 0; c < C; ++c) inverse[c] = soften(scratch + static_cast<std::size_t>(c) * ld, job.first + i + c + 1, padded);
  for (int dim = 0; dim < job.d; dim += kHeadStep) {
    float mixed[C][kHeadStep];
    mix_group<kHalf, C>(job, scratch, ld, padded, dim, &mixed[0][0]);
    const int count = job.d - dim < kHeadStep ? job.d - dim : kHeadStep;
    for (int c = 0; c < C; ++c) {
      float* out = job.out + static_cast<std::size_t>(i + c) * job.ld_out + dim;
      for (int j = 0; j < count; ++j) out[j] = mixed[c][j] * inverse[c];
    }
  }
}

template <bool kHalf>
void attend_all(const Attend& job, float* scratch) {
  int i = 0;
  for (; i + 4 <= job.t; i += 4) attend_some<kHalf, 4>(job, i, scratch);
  for (; i < job.t; ++i) attend_some<kHalf, 1>(job, i, scratch);
}

[[maybe_unused]] void attend_rows(const Attend& job, unsigned char* scratch) {
  auto* floats = reinterpret_cast<float*>(scratch);
  if (job.half) {
    attend_all<true>(job, floats);
  } else {
    attend_all<false>(job, floats);
  }
}

// Bytes of scratch that attend_rows needs.
inline std::size_t scratch_attend(int positions, int d) {
  const auto padded = static_cast<std::size_t>(round_up(positions, kBlock));
  return 4 * sizeof(float) * (padded + static_cast<std::size_t>(round_up(d, kHeadStep)));
}
