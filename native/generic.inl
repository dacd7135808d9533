// Kernels in terms of a few vector operations. Each instruction set includes this file in its own translation
// unit, inside an anonymous namespace, after defining
//
//   F16       16 floats:  zero, load, store, splat, add, fma, sum, load_bf16, load_f16, load_pairs,
//             mul, div, least, most (either operand where one is NaN), exp16 (NaN where x is; see plain.cpp),
//             count_above (c + 1 where x > limit),
//             whole (the nearest integer, ties to even), store8 (such integers to int8),
//             select_less (x where a < b, else y), pick (entries of a table of 32, by whole numbers)
//   kHalfProducts         whether there are products of bfloat16
//
// Sums run in one order whatever the number of tokens: an output never depends on its neighbours in a batch.

constexpr float kInfinity = __builtin_huge_valf(), kNotANumber = __builtin_nanf("");
constexpr float kFaintest =
    1e-30f;  // as large as values are when their scale is not taken for zero: its inverse is finite

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

inline F16 within(const F16& x, float limit) { return most(least(x, F16::splat(limit)), F16::splat(-limit)); }

// How the integers of a token are made: integer = x * inverse, rounded; 0 where the token is no numbers.
struct Measure {
  float scale, inverse;
};

// The scale of a token of kp inputs; maxima: room for kp / kDepth.
//
// int8: the largest value becomes kReach. Eight bits of each input would cost three times what eight bits of
// the weights do (KL divergence of kogpt-mini's logits, notes/log.md).
// int4, whose weights cost far more: the largest value becomes 127, if it is at most kBulk times the median
// of the blocks' largest values (of 2048 normal values it is 1.4 times that median), else kBulk times the
// median. Blocks beyond that alone have a high plane.
//
// Either way sums of products with weights of at most 127 fit 32 bits, whatever the weights.
inline Measure measure_token(const float* x, int kp, Format format, float* maxima) {
  constexpr float kBulk = 4.0f;
  // Largest sum of the integers' sizes: 2^31 / 127 = 16.91e6, less what rounding adds, half a unit an input.
  const float largest_sum = std::min(16.8e6f, 16.9e6f - 0.5f * static_cast<float>(kp));
  const int n_blocks = kp / kDepth;
  float highest = 0, total = 0;
  F16 nothing = F16::zero();  // times an infinity or what is not a number: not a number
  for (int i = 0; i < n_blocks; ++i) {
    F16 top = F16::zero();
    for (int j = 0; j < kDepth; j += 16) {
      const F16 value = F16::load(x + i * kDepth + j);
      top = most(top, magnitude(value));
      nothing = fma(value, F16::zero(), nothing);
    }
    maxima[i] = largest(top);
    highest = maxima[i] > highest ? maxima[i] : highest;
    total += maxima[i];
  }
  if (sum(nothing) != 0.0f) return {kNotANumber, 0.0f};
  float scale = highest / kReach;
  if (format == Format::i4) {
    // A comparison of our own makes a copy of nth_element of our own: the linker must not take another set's.
    const auto less = [](float one, float other) { return one < other; };
    std::nth_element(maxima, maxima + n_blocks / 2, maxima + n_blocks, less);
    const float bulk = kBulk * maxima[n_blocks / 2];
    const float coarse = (highest <= bulk ? highest : bulk) / kLargest;
    scale = coarse > scale ? coarse : scale;
  }
  const float fit = total * (kDepth / largest_sum);
  scale = fit > scale ? fit : scale;
  return {scale, highest > kFaintest ? 1.0f / scale : 0.0f};
}

// 16 inputs as integers of at most kReach.
inline F16 to_integers(const float* x, const F16& inverse) {
  return within(whole(mul(F16::load(x), inverse)), kReach);
}

// One token of kp inputs in two planes, see Acts; all of both is written. maxima: room for kp / kDepth.
Token quantize_token(const float* x, int kp, Format format, std::int8_t* low, std::int8_t* high,
                     std::uint64_t* blocks, float* maxima) {
  const Measure measure = measure_token(x, kp, format, maxima);
  for (int word = 0; word < (kp / kDepth + 63) / 64; ++word) blocks[word] = 0;
  std::memset(high, 0, static_cast<std::size_t>(kp));
  if (!(measure.scale == measure.scale)) {  // no integers can say it: the scale does, to whoever looks
    std::memset(low, 0, static_cast<std::size_t>(kp));
    return {kNotANumber, 0, 0, false};
  }
  const F16 inverse = F16::splat(measure.inverse);
  F16 low_sum = F16::zero(), high_sum = F16::zero();
  bool outliers = false;
  for (int i = 0; i < kp; i += kDepth) {
    F16 values[kDepth / 16], top = F16::zero();
    for (int j = 0; j < kDepth / 16; ++j) {
      values[j] = to_integers(x + i + 16 * j, inverse);
      top = most(top, magnitude(values[j]));
    }
    if (largest(top) > kLargest) {
      outliers = true;
      blocks[i / kDepth / 64] |= std::uint64_t{1} << (i / kDepth % 64);
      for (int j = 0; j < kDepth / 16; ++j) {
        // 127.5 steps, the largest there are, would round to 128.
        const F16 steps = within(whole(mul(values[j], F16::splat(1.0f / kHighStep))), kLargest);
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
  return {measure.scale, static_cast<std::int32_t>(sum(low_sum)), static_cast<std::int32_t>(sum(high_sum)),
          outliers};
}

void prepare_rows(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  const auto kp = static_cast<std::size_t>(acts.kp);
  for (int m = m0; m < m1; ++m) {
    const float* row = x + static_cast<std::size_t>(m) * ld;
    if (acts.format == Format::i8 || acts.format == Format::i4) {
      acts.token(m) = quantize_token(row, acts.kp, acts.format, acts.low(m), acts.high(m), acts.blocks(m),
                                     reinterpret_cast<float*>(scratch));
    } else if (acts.format == Format::bf16 && kHalfProducts) {
      auto* out = reinterpret_cast<std::uint16_t*>(acts.data) + static_cast<std::size_t>(m) * kp;
      for (std::size_t i = 0; i < kp; ++i) out[i] = bf16_of(row[i]);
    } else {
      std::memcpy(reinterpret_cast<float*>(acts.data) + static_cast<std::size_t>(m) * kp, row,
                  kp * sizeof(float));
    }
  }
}

inline bool has_outliers(const Acts& acts, int m, int count) {
  bool found = false;
  for (int c = 0; c < count; ++c) found |= acts.token(m + c).outliers;
  return found;
}

// f(first, count) for each run of blocks of kDepth inputs in which one of the tokens has outliers.
template <class F>
inline void outlier_blocks(const Acts& acts, int m, int tokens, const F& f) {
  std::size_t first = 0, count = 0;
  for (int word = 0; word < acts.words(); ++word) {
    std::uint64_t bits = 0;
    for (int c = 0; c < tokens; ++c) bits |= acts.blocks(m + c)[word];
    for (; bits != 0; bits &= bits - 1) {
      const auto block = static_cast<std::size_t>(64 * word + std::countr_zero(bits));
      if (count > 0 && block != first + count) {
        f(first, count);
        count = 0;
      }
      if (count++ == 0) first = block;
    }
  }
  if (count > 0) f(first, count);
}

// ---- weights ----

inline float largest_of(const float* row, int kp) {
  F16 top = F16::zero();
  for (int i = 0; i < kp; i += 16) {
    top = most(top, magnitude(F16::load(row + i)));
  }
  return largest(top);
}

// One output in int8: the scale takes its largest weight to 127.
float quantize_row8(const float* row, int kp, std::int8_t* codes) {
  const float top = largest_of(row, kp);
  const F16 inverse = F16::splat(top > kFaintest ? 127.0f / top : 0.0f);
  for (int i = 0; i < kp; i += 16) whole(mul(F16::load(row + i), inverse)).store8(codes + i);
  return top / 127.0f;
}

// 16 groups side by side: lane g of x[i] is value i of group g, and its error weighs importance[i].
struct Groups {
  F16 x[kGroup], importance[kGroup];
};

// The codes of values in units of the codebook. A value's bin tells the only two that it can have.
inline F16 nearest_code(const F16& t) {
  const F16 wide = add(mul(t, F16::splat(1.0f / kBinWidth)), F16::splat(kBins / 2));
  const F16 bin = least(most(wide, F16::zero()), F16::splat(kBins - 1));
  return count_above(t, pick(kBinTable.middle, bin), pick(kBinTable.code, bin));
}

// Weighted squared error of each group at its own scale; below zero the codebook is mirrored. Without fused
// products: every processor finds the same scales and codes.
inline F16 group_errors(const Groups& groups, const F16& scale) {
  const F16 step = mul(scale, F16::splat(1.0f / 127)), inverse = div(F16::splat(1.0f), step);
  F16 errors = F16::zero();
  for (int i = 0; i < kGroup; ++i) {
    const F16 code = nearest_code(mul(groups.x[i], inverse));
    const F16 entry = whole(mul(pick(kBinTable.value, code), step));
    const F16 error = add(entry, mul(groups.x[i], F16::splat(-1.0f)));
    errors = add(errors, mul(mul(error, groups.importance[i]), error));
  }
  return errors;
}

// The group scales with the least errors: seven sizes of either codebook from one that clips the largest
// value to one that holds it, then the neighbours of the best. x: 32 values of each of `count` <= 16 groups,
// in units of their output's scale; importance: of group g at g * ld, or nullptr.
void search_scales(const float* x, const float* importance, std::size_t ld, int count, std::uint8_t* scales) {
  Groups groups;
  F16 top = F16::zero(), bottom = F16::zero();
  for (int i = 0; i < kGroup; ++i) {
    float values[16] = {}, weights[16] = {};
    for (int g = 0; g < count; ++g) values[g] = x[g * kGroup + i];
    groups.x[i] = F16::load(values);
    groups.importance[i] = F16::splat(1.0f);
    if (importance != nullptr) {
      for (int g = 0; g < count; ++g)
        weights[g] = importance[static_cast<std::size_t>(g) * ld + static_cast<std::size_t>(i)];
      groups.importance[i] = F16::load(weights);
    }
    top = most(top, groups.x[i]);
    bottom = least(bottom, groups.x[i]);
  }
  F16 best = F16::splat(1.0f), fewest = F16::splat(kInfinity);
  const auto consider = [&](const F16& size, const F16& sign) {
    const F16 scale = mul(least(most(whole(size), F16::splat(1.0f)), F16::splat(127.0f)), sign);
    const F16 errors = group_errors(groups, scale);
    best = select_less(errors, fewest, scale, best);
    fewest = least(errors, fewest);
  };
  for (const float sign : {1.0f, -1.0f}) {  // the codebook reaches from -127 to 107
    const F16 highest = mul(sign > 0 ? top : bottom, F16::splat(sign * 127.0f / kCodebook[kCodes - 1]));
    const F16 holding = most(highest, mul(sign > 0 ? bottom : top, F16::splat(-sign)));
    for (int size = 0; size < 7; ++size) {
      consider(mul(holding, F16::splat(0.72f + 0.05f * static_cast<float>(size))), F16::splat(sign));
    }
  }
  const F16 found = best;
  const F16 sign = select_less(found, F16::zero(), F16::splat(-1.0f), F16::splat(1.0f));
  for (const float step : {1.0f, -1.0f}) consider(add(mul(found, sign), F16::splat(step)), sign);
  float lanes[16];
  best.store(lanes);
  for (int g = 0; g < count; ++g) {
    scales[g] = static_cast<std::uint8_t>(lanes[g] < 0 ? 128.0f - lanes[g] : lanes[g]);
  }
}

// One output in int4: kp codes of a byte each and kp / 32 group scales. The row is scaled in place.
float quantize_row4(float* row, int kp, const float* importance, std::uint8_t* codes, std::uint8_t* groups) {
  const float top = largest_of(row, kp),
              unit = top / 120.0f;  // leaves the largest group room to be scaled up
  const float inverse = top > kFaintest ? 1.0f / unit : 0.0f;
  for (int i = 0; i < kp; ++i) row[i] *= inverse;
  const int n_groups = kp / kGroup;
  for (int g = 0; g < n_groups; g += 16) {
    const float* weights = importance == nullptr ? nullptr : importance + g * kGroup;
    search_scales(row + g * kGroup, weights, kGroup, n_groups - g < 16 ? n_groups - g : 16, groups + g);
  }
  for (int g = 0; g < n_groups; ++g) {
    const int size = groups[g] & 127;
    const F16 inverse =
        F16::splat((groups[g] < 128 ? 127.0f : -127.0f) / static_cast<float>(size > 0 ? size : 1));
    for (int i = g * kGroup; i < (g + 1) * kGroup; i += 16) {
      float found[16];
      nearest_code(mul(F16::load(row + i), inverse)).store(found);
      for (int j = 0; j < 16; ++j)
        codes[i + j] = static_cast<std::uint8_t>(static_cast<std::int32_t>(found[j]));
    }
  }
  return unit;
}

// One output: codes (kp), a byte each, group scales (kp / 32) where it is int4; returns its scale.
float quantize_row(Format format, float* row, int kp, const float* importance, std::uint8_t* codes,
                   std::uint8_t* groups) {
  return format == Format::i8 ? quantize_row8(row, kp, reinterpret_cast<std::int8_t*>(codes))
                              : quantize_row4(row, kp, importance, codes, groups);
}

// ---- projections ----

// 16 outputs of one token to where they go.
inline void finish(F16 value, const Output& o, int m, int n, int n_all) {
  if (o.bias != nullptr) value = add(value, F16::load(o.bias + n));
  float* out = o.out + static_cast<std::size_t>(m) * o.ld + n;
  const bool whole = n_all - n >= kPanel;
  const auto bytes = static_cast<std::size_t>(whole ? kPanel : n_all - n) * sizeof(float);
  float values[kPanel] = {};
  if (o.accumulate && whole) value = add(F16::load(out), value);
  if (o.accumulate && !whole) {
    std::memcpy(values, out, bytes);
    value = add(F16::load(values), value);
  }
  if (o.gelu) value = gelu16(value);
  if (whole) return value.store(out);
  value.store(values);
  std::memcpy(out, values, bytes);
}

template <Format kFormat>
inline F16 load_weight(const void* w, std::size_t i) {
  if constexpr (kFormat == Format::f32) return F16::load(static_cast<const float*>(w) + i);
  if constexpr (kFormat == Format::f16) return F16::load_f16(static_cast<const std::uint16_t*>(w) + i);
  if constexpr (kFormat == Format::bf16) return F16::load_bf16(static_cast<const std::uint16_t*>(w) + i);
}

#include "attention.inl"
#include "lora.inl"
#include "sampling.inl"

[[maybe_unused]] std::size_t scratch_rows(int kp, int d) {
  const std::size_t panel = static_cast<std::size_t>(kp) * kPanel,
                    attend = Attention<FloatCell>::scratch_bytes(d);
  return panel > attend ? panel : attend;
}
