// The passes over a whole vocabulary that choosing a token takes (sampling.cpp), after generic.inl.
//
// Loops that the compiler vectorises. Every operation is exactly rounded and none is fused
// (-ffp-contract=off), so all sets give the bits of kogpt/sampling.py.

// The largest of n logits; not a number where one of them is not finite.
float highest(const float* x, int n) {
  F16 top = F16::splat(-kInfinity), nothing = F16::zero();  // times what is not finite: not a number
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const F16 value = F16::load(x + i);
    top = most(top, value);
    nothing = fma(value, F16::zero(), nothing);
  }
  float found = largest(top), zero = sum(nothing);
  for (; i < n; ++i) {
    found = x[i] > found ? x[i] : found;
    zero += x[i] * 0.0f;
  }
  return zero == 0.0f ? found : kNotANumber;
}

template <class T>
inline void scale_all(const T* scores, int n, double top, double temperature, double* scaled) {
  for (int i = 0; i < n; ++i) scaled[i] = (static_cast<double>(scores[i]) - top) / temperature;
}

// scaled[i] = (score - top) / temperature, of float32 logits or of float64 scores.
void scale(const float* logits, const double* scores, int n, double top, double temperature, double* scaled) {
  if (scores != nullptr) return scale_all(scores, n, top, temperature, scaled);
  scale_all(logits, n, top, temperature, scaled);
}

// e^x for x <= 0, see `exp` of kogpt/sampling.py.
inline double exp_exactly(double x) {
  constexpr double kRound = 0x1.8p52;                      // leaves the nearest whole number in the low bits
  constexpr double kInverse = 1.0 / 0x1.62e42fefa39efp-1;  // 1 / log 2
  constexpr double kHigh = 0x1.62e42fee00000p-1, kLow = 0x1.a39ef35793c76p-33;
  x = x > -746.0 ? x : -746.0;
  const double shifted = x * kInverse + kRound, k = shifted - kRound;
  const double r = (x - k * kHigh) - k * kLow;
  double series = 1.0 / 6227020800.0;  // 1 / 13!
  series = series * r + 1.0 / 479001600.0;
  series = series * r + 1.0 / 39916800.0;
  series = series * r + 1.0 / 3628800.0;
  series = series * r + 1.0 / 362880.0;
  series = series * r + 1.0 / 40320.0;
  series = series * r + 1.0 / 5040.0;
  series = series * r + 1.0 / 720.0;
  series = series * r + 1.0 / 120.0;
  series = series * r + 1.0 / 24.0;
  series = series * r + 1.0 / 6.0;
  series = series * r + 1.0 / 2.0;
  series = series * r + 1.0;
  series = series * r + 1.0;
  // 2^k as a product of two normal numbers: the first step is exact, so the second rounds like ldexp.
  const std::uint64_t power = std::bit_cast<std::uint64_t>(shifted) - std::bit_cast<std::uint64_t>(kRound);
  const std::uint64_t half = ((power + 2048) >> 1) - 1024;
  return series * std::bit_cast<double>((half + 1023) << 52) *
         std::bit_cast<double>((power - half + 1023) << 52);
}

// Bounds above scaled score plus noise (`gumbel` of kogpt/sampling.py) of candidates; how many reach `best`.
//
// Noise is -log(-log u) <= -log(1 - u), as -log u >= 1 - u. log2 of 1 - u = r 2^-52 is at least what its
// exponent and, in place of the logarithm, its mantissa say.
int screen(std::uint64_t key, const int* ids, const double* scaled, int n, double best, double* bounds) {
  constexpr double kLog2 = 0x1.62e42fefa39efp-1, kUnits = 1 << 20;  // mantissa in the upper half of a float64
  constexpr double kMost = kLog2 * (52 + 1023) + 1e-6;              // far above the rounding of all this
  int hits = 0;
  for (int i = 0; i < n; ++i) {
    std::uint64_t z = key + (static_cast<std::uint64_t>(ids[i]) + 1) * 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    z = z ^ z >> 31;
    constexpr std::uint64_t kTwo52 = 0x4330000000000000;  // bits of 2^52, the low 52 being whole numbers
    const double r = std::bit_cast<double>((~z >> 12) | kTwo52) - (0x1p52 - 0.5);
    const auto upper = static_cast<std::int32_t>(std::bit_cast<std::uint64_t>(r) >> 32);
    bounds[i] = scaled[i] + (kMost - static_cast<double>(upper) * (kLog2 / kUnits));
    hits += bounds[i] >= best ? 1 : 0;
  }
  return hits;
}

// weights[i] = e^scaled[i]; returns their sum, taken one after the other.
double weigh(const double* scaled, int n, double* weights) {
  constexpr int kTogether = 32;  // long enough to vectorise, so short that sums hide behind the next ones
  double total = 0.0;
  int i = 0;
  for (; i + kTogether <= n; i += kTogether) {
    for (int j = 0; j < kTogether; ++j) weights[i + j] = exp_exactly(scaled[i + j]);
    for (int j = 0; j < kTogether; ++j) total += weights[i + j];
  }
  for (; i < n; ++i) total += weights[i] = exp_exactly(scaled[i]);
  return total;
}
