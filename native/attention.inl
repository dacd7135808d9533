// Attention over the cache, in the vector operations of generic.inl, which includes this file.
//
// Both products, queries x keys and weights x values, are sums over cells of 16 lanes x 2 (see kBlock in
// layout.h). Keys are read in tiles of kTile blocks, whatever the step that reads them, and each query
// rescales what it has summed when a tile raises its largest score (FlashAttention, Dao et al. 2022,
// section 3.1). A query's sums run tile by tile in one order, and what it may not see adds exact zeros: its
// result does not depend on the queries beside it.

// Lane i of load(kVisible + 16 - n) tells whether i < n: 1 or 0, and what hides a score, 0 or minus infinity.
alignas(64) constexpr float kVisible[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
alignas(64) constexpr float kHidden[32] = {
    0,          0,          0,          0,          0,          0,          0,          0,
    0,          0,          0,          0,          0,          0,          0,          0,
    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity,
    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity};

// What a query's pairs are multiplied with, by the way a cell is held in memory.
struct FloatCell {
  using Scalar = float;
  static constexpr std::size_t kBytes = 128;
  F16 first, second;
  static FloatCell load(const unsigned char* p) {
    const auto* floats = reinterpret_cast<const float*>(p);
    return {F16::load(floats), F16::load(floats + 16)};
  }
  static void store(const F16& x, float* to) { x.store(to); }
};

struct WideCell {  // bfloat16 where there are no bfloat16 products
  using Scalar = float;
  static constexpr std::size_t kBytes = 64;
  F16 first, second;
  static WideCell load(const unsigned char* p) {
    WideCell cell;
    F16::load_pairs(p, cell.first, cell.second);
    return cell;
  }
  static void store(const F16& x, float* to) { x.store(to); }
  // Integers of -127 to 127 are bfloat16 numbers.
  static void widen(const std::int8_t* from, std::size_t n, std::ptrdiff_t, std::uint16_t* to) {
    for (std::size_t i = 0; i < n; ++i) {
      to[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(from[i])) >> 16);
    }
  }
};

struct HalfCell;  // bfloat16 where there are

template <class Cell>
inline F16 dot_pair(const Cell& cell, const float* pair, const F16& sum) {
  return fma(cell.second, F16::splat(pair[1]), fma(cell.first, F16::splat(pair[0]), sum));
}

// sums[c][v] += the sum over i of cell (i, v) x pair i of row c; cells lie `step` and `side` bytes apart. A
// single row waits for memory: what lies `ahead` of each cell is fetched, to be read a tile later.
template <class Cell, int C, int V>
inline void add_products(const unsigned char* cells, std::size_t step, std::size_t side,
                         const typename Cell::Scalar* rows, std::size_t ld, int pairs, std::ptrdiff_t ahead,
                         F16 (&sums)[C][V]) {
  for (int i = 0; i < pairs; ++i, cells += step, rows += 2) {
    if constexpr (C == 1) {
      for (int v = 0; v < V; ++v) {
        const unsigned char* next = cells + static_cast<std::size_t>(v) * side + ahead;
        for (std::size_t at = 0; at < Cell::kBytes; at += kAlign) __builtin_prefetch(next + at);
      }
    }
    Cell cell[V];
    for (int v = 0; v < V; ++v) cell[v] = Cell::load(cells + static_cast<std::size_t>(v) * side);
    for (int c = 0; c < C; ++c) {
      for (int v = 0; v < V; ++v)
        sums[c][v] = dot_pair(cell[v], rows + static_cast<std::size_t>(c) * ld, sums[c][v]);
    }
  }
}

// One head of one job. Cell: how a tile's cells are multiplied; int8 ones are widened to bfloat16 first.
template <class Cell>
class Attention {
  using Scalar = typename Cell::Scalar;

 public:
  Attention(const Attend& job, unsigned char* scratch)
      : job_(job), dp_(static_cast<std::size_t>(round_up(job.d, kHeadStep))) {
    const auto take = [&](std::size_t bytes) {
      unsigned char* at = scratch;
      scratch += bytes;
      return at;
    };
    queries_ = reinterpret_cast<Scalar*>(take(kMaxQueries * dp_ * sizeof(float)));
    mixed_ = reinterpret_cast<float*>(take(kMaxQueries * dp_ * sizeof(float)));
    scores_ = reinterpret_cast<float*>(take(kQueries * kTile * sizeof(float)));
    weights_ = reinterpret_cast<Scalar*>(take(kQueries * kTile * sizeof(float)));
    widened_ = take(2 * kTileBlocks * kBlock * dp_ * sizeof(std::uint16_t));
  }

  static std::size_t scratch_bytes(int d) {
    const auto dp = static_cast<std::size_t>(round_up(d, kHeadStep));
    return sizeof(float) * (2 * kMaxQueries * dp + 2 * kQueries * kTile) +
           2 * kTile * dp * sizeof(std::uint16_t);
  }

  void run() {
    int count = 0;
    for (int s = 0; s < job_.n_spans; ++s) {
      for (int i = 0; i < job_.spans[s].t; ++i) begin(count++, job_.spans[s], i);
    }
    for (int tile = 0; tile < job_.shared; ++tile) read_tile(job_.spans[0].blocks, tile, 0, count);
    int from = 0;
    for (int s = 0; s < job_.n_spans; ++s) {
      const Span& span = job_.spans[s];
      for (int tile = job_.shared; tile * kTile < span.first + span.t; ++tile) {
        const int blind = tile * kTile - span.first;  // queries that see nothing of the tile
        read_tile(span.blocks, tile, from + (blind > 0 ? blind : 0), from + span.t);
      }
      from += span.t;
    }
    count = 0;
    for (int s = 0; s < job_.n_spans; ++s) {
      for (int i = 0; i < job_.spans[s].t; ++i) finish_query(count++, job_.spans[s].start + i);
    }
  }

 private:
  void begin(int query, const Span& span, int i) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(job_.d));
    const float* q = job_.q + static_cast<std::size_t>(span.start + i) * job_.ld;
    Scalar* to = queries_ + static_cast<std::size_t>(query) * dp_;
    float* mixed = mixed_ + static_cast<std::size_t>(query) * dp_;
    for (std::size_t at = 0; at < dp_; at += 16) {
      float sixteen[16] = {};
      const auto left = static_cast<std::size_t>(job_.d) - at;
      if (at < static_cast<std::size_t>(job_.d)) {
        std::memcpy(sixteen, q + at, (left < 16 ? left : 16) * sizeof(float));
      }
      Cell::store(mul(F16::load(sixteen), F16::splat(scale)), to + at);
      F16::zero().store(mixed + at);
    }
    visible_[query] = span.first + i + 1;
    top_[query] = -kInfinity;
    F16::zero().store(sums_[query]);
  }

  void read_tile(const unsigned char* const* blocks, int tile, int query, int end) {
    const int base = tile * kTile;
    const int last = (visible_[end - 1] - base + kBlock - 1) / kBlock;
    const int n = last < kTileBlocks ? last : kTileBlocks;
    const int after = (visible_[end - 1] + kBlock - 1) / kBlock - (tile + 1) * kTileBlocks;
    const bool alone = end - query == 1;
    for (int b = 0; b < kTileBlocks; ++b)
      next_[b] = alone && b < after ? blocks[(tile + 1) * kTileBlocks + b] : nullptr;
    for (int b = 0; b < n; ++b) {
      const unsigned char* block = blocks[tile * kTileBlocks + b];
      keys_[b] = block + job_.keys;
      values_[b] = block + job_.values;
      if constexpr (!std::is_same_v<Cell, FloatCell>) {
        if (job_.format == Format::i8) widen_block(b);
      }
    }
    while (query + kQueries <= end) together<kQueries>(base, query);
    if constexpr (kQueries > 4) {
      if (query + 4 <= end) together<4>(base, query);
    }
    if (query + 2 <= end) together<2>(base, query);
    if (query < end) together<1>(base, query);
  }

  void widen_block(int b) {
    const std::size_t n = kBlock * dp_;
    auto* out = reinterpret_cast<std::uint16_t*>(widened_) + static_cast<std::size_t>(b) * 2 * n;
    const std::ptrdiff_t ahead = next_[b] != nullptr ? next_[b] + job_.keys - keys_[b] : 0;
    Cell::widen(reinterpret_cast<const std::int8_t*>(keys_[b]), n, ahead, out);
    Cell::widen(reinterpret_cast<const std::int8_t*>(values_[b]), n, ahead, out + n);
    next_[b] = nullptr;
    key_scales_[b] = reinterpret_cast<const float*>(keys_[b] + n);
    value_scales_[b] = reinterpret_cast<const float*>(values_[b] + n);
    keys_[b] = reinterpret_cast<const unsigned char*>(out);
    values_[b] = reinterpret_cast<const unsigned char*>(out + n);
  }

  // C queries, of one row or all beyond the tile, through the tile.
  template <int C>
  void together(int base, int& query) {
    const int seen = visible_[query + C - 1] - base;
    const int blocks = seen < kTile ? (seen + kBlock - 1) / kBlock : kTileBlocks;
    score<C>(query, blocks);
    float decay[C];
    for (int c = 0; c < C; ++c) decay[c] = soften(query + c, c, visible_[query + c] - base, blocks);
    constexpr int kWide = C > 2 ? kVectors : 2 * kVectors;
    const int vectors = static_cast<int>(dp_) / 16;
    int v = 0;
    for (; v + kWide <= vectors; v += kWide) mix<C, kWide>(query, v, blocks, decay);
    for (; v < vectors; v += kVectors) mix<C, kVectors>(query, v, blocks, decay);
    query += C;
  }

  template <int C>
  void score(int query, int blocks) {
    const Scalar* rows = queries_ + static_cast<std::size_t>(query) * dp_;
    const std::size_t side = dp_ / 2 * Cell::kBytes;
    for (int b = 0; b < blocks; ++b) {
      for (int group = 0; group < 2; group += kVectors) {
        F16 sums[C][kVectors] = {};
        add_products<Cell, C, kVectors>(keys_[b] + static_cast<std::size_t>(group) * side, Cell::kBytes, side,
                                        rows, dp_, (job_.d + 1) / 2, values_[b] - keys_[b], sums);
        for (int c = 0; c < C; ++c) {
          for (int v = 0; v < kVectors; ++v)
            sums[c][v].store(scores_ + c * kTile + b * kBlock + (group + v) * 16);
        }
      }
    }
  }

  // Scores of a query to weights; what its sums so far are to be multiplied with.
  float soften(int query, int c, int seen, int blocks) {
    float* scores = scores_ + c * kTile;
    Scalar* weights = weights_ + c * kTile;
    const bool scaled = job_.format == Format::i8;
    F16 highest = F16::splat(top_[query]);
    for (int i = 0; i < blocks * kBlock; i += 16) {
      F16 score = F16::load(scores + i);
      if (scaled) score = mul(score, F16::load(key_scales_[i / kBlock] + i % kBlock));
      if (seen < i + 16) score = add(score, F16::load(kHidden + (seen > i ? 16 - (seen - i) : 16)));
      score.store(scores + i);
      highest = most(highest, score);
    }
    const float top = largest(highest);
    F16 sums = F16::zero();
    for (int i = 0; i < blocks * kBlock; i += 16) {
      F16 weight = exp16(add(F16::load(scores + i), F16::splat(-top)));
      if (seen < i + 16) weight = mul(weight, F16::load(kVisible + (seen > i ? 16 - (seen - i) : 16)));
      sums = add(sums, weight);
      if (scaled) weight = mul(weight, F16::load(value_scales_[i / kBlock] + i % kBlock));
      Cell::store(weight, weights + i);
    }
    const F16 decay = exp16(F16::splat(top_[query] - top));
    fma(F16::load(sums_[query]), decay, sums).store(sums_[query]);
    top_[query] = top;
    float lanes[16];
    decay.store(lanes);
    return lanes[0];
  }

  template <int C, int V>
  void mix(int query, int vector, int blocks, const float* decay) {
    float* out = mixed_ + static_cast<std::size_t>(query) * dp_ + vector * 16;
    F16 sums[C][V];
    for (int c = 0; c < C; ++c) {
      for (int v = 0; v < V; ++v) {
        sums[c][v] = mul(F16::load(out + static_cast<std::size_t>(c) * dp_ + v * 16), F16::splat(decay[c]));
      }
    }
    for (int b = 0; b < blocks; ++b) {
      const std::ptrdiff_t ahead = next_[b] != nullptr ? next_[b] + job_.keys - values_[b] : 0;
      const unsigned char* cells = values_[b] + static_cast<std::size_t>(vector) * Cell::kBytes;
      add_products<Cell, C, V>(cells, dp_ / 16 * Cell::kBytes, Cell::kBytes, weights_ + b * kBlock, kTile,
                               kBlock / 2, ahead, sums);
    }
    for (int c = 0; c < C; ++c) {
      for (int v = 0; v < V; ++v) sums[c][v].store(out + static_cast<std::size_t>(c) * dp_ + v * 16);
    }
  }

  void finish_query(int query, int place) {
    const float inverse = 1.0f / sum(F16::load(sums_[query]));
    const float* mixed = mixed_ + static_cast<std::size_t>(query) * dp_;
    float* out = job_.out + static_cast<std::size_t>(place) * job_.ld;
    for (int i = 0; i < job_.d; ++i) out[i] = mixed[i] * inverse;
  }

  const Attend& job_;
  std::size_t dp_;
  Scalar* queries_;         // (kMaxQueries, Dp), scaled
  float* mixed_;            // (kMaxQueries, Dp), weighted sums of values
  float* scores_;           // (kQueries, kTile)
  Scalar* weights_;         // (kQueries, kTile)
  unsigned char* widened_;  // (kTileBlocks, keys and values, 32 Dp) bfloat16
  const unsigned char* keys_[kTileBlocks];
  const unsigned char* values_[kTileBlocks];
  const unsigned char* next_[kTileBlocks];  // blocks of the tile after it, for a single query
  const float* key_scales_[kTileBlocks];
  const float* value_scales_[kTileBlocks];
  int visible_[kMaxQueries];                 // positions that a query sees
  float top_[kMaxQueries];                   // its largest score so far
  alignas(64) float sums_[kMaxQueries][16];  // of its weights, in lanes
};

[[maybe_unused]] void attend_rows(const Attend& job, unsigned char* scratch) {
  if (job.format == Format::f32) return Attention<FloatCell>(job, scratch).run();
  Attention<std::conditional_t<kHalfProducts, HalfCell, WideCell>>(job, scratch).run();
}

// ---- the cache ----

// k and v (d) as the cache holds them, see kBlock in layout.h. rounded(x, which): x of the key (0) or the
// value (1) as T.
template <class T, class Pair, class Rounded>
inline void store_pairs(const float* k, const float* v, int d, int slot, void* keys, void* values,
                        const Rounded& rounded) {
  static_assert(sizeof(Pair) == 2 * sizeof(T));
  const int dp = round_up(d, kHeadStep);
  Pair* key = static_cast<Pair*>(keys) + slot / 16 * dp / 2 * 16 + slot % 16;
  T* value =
      static_cast<T*>(values) + slot / 2 * dp * 2 + slot % 2;  // another thread may write the other half
  for (int i = 0; i < d; i += kHeadStep) {
    const int n = d - i < kHeadStep ? d - i : kHeadStep;
    T of_key[kHeadStep] = {}, of_value[kHeadStep] = {};
    for (int j = 0; j < n; ++j) of_key[j] = rounded(k[i + j], 0);
    for (int j = 0; j < n; ++j) of_value[j] = rounded(v[i + j], 1);
    Pair pairs[kHeadStep / 2];
    std::memcpy(pairs, of_key, sizeof pairs);
    for (int j = 0; j < kHeadStep / 2; ++j) key[(i / 2 + j) * 16] = pairs[j];
    for (int j = 0; j < kHeadStep; ++j) value[(i + j) * 2] = of_value[j];
  }
}

inline void store_floats(const float* k, const float* v, int d, int slot, float* keys, float* values) {
  const int dp = round_up(d, kHeadStep);
  for (int i = 0; i < d; ++i) keys[slot / 16 * dp * 16 + i * 16 + slot % 16] = k[i];
  for (int i = 0; i < d; ++i) values[(slot / 2 * dp + i / 16 * 16) * 2 + slot % 2 * 16 + i % 16] = v[i];
}

// The integer nearest to x, ties to even, for |x| < 2^22: 1.5 * 2^23 leaves it in the low bits. No
// conversion, which would be undefined for what is not finite.
inline std::int32_t nearest(float x) {
  constexpr float kRound = 12582912.0f;
  return static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(x + kRound) -
                                   std::bit_cast<std::uint32_t>(kRound));
}

// As integers, magnitudes keep their order, and what is not finite is above them all.
inline float step_of(const float* x, int d) {
  std::uint32_t most = 0;
  for (int i = 0; i < d; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  return std::bit_cast<float>(most) / 127.0f;
}

void store_rows(const float* k, const float* v, int d, Format format, int slot, unsigned char* keys,
                unsigned char* values) {
  if (format == Format::f32) {
    return store_floats(k, v, d, slot, reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values));
  }
  if (format == Format::bf16) {
    const auto rounded = [](float x, int) { return bf16_of(x); };
    return store_pairs<std::uint16_t, std::uint32_t>(k, v, d, slot, keys, values, rounded);
  }
  const float steps[2] = {step_of(k, d), step_of(v, d)};
  const float inverse[2] = {steps[0] > kFaintest ? 1.0f / steps[0] : 0.0f,
                            steps[1] > kFaintest ? 1.0f / steps[1] : 0.0f};
  const std::size_t n = static_cast<std::size_t>(kBlock) * static_cast<std::size_t>(round_up(d, kHeadStep));
  reinterpret_cast<float*>(keys + n)[slot] = steps[0];
  reinterpret_cast<float*>(values + n)[slot] = steps[1];
  const auto rounded = [&](float x, int which) {
    return static_cast<std::uint8_t>(nearest(x * inverse[which]));
  };
  store_pairs<std::uint8_t, std::uint16_t>(k, v, d, slot, keys, values, rounded);
}
