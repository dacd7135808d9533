#include "sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace kogpt {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();
constexpr double kLog2 = 0x1.62e42fefa39efp-1;
constexpr double kSlack = 1e-6;  // far above the rounding of what is compared
constexpr int kRankBins = 64 * 128;
constexpr int kFew = 1024;  // candidates that are sorted rather than put into bins

// Output `counter` of SplitMix64 started at `state` (Steele et al. 2014, figure 14).
std::uint64_t random_bits(std::uint64_t state, std::uint64_t counter) {
  std::uint64_t z = state + (counter + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

// Natural logarithm of a normal number, see `log` of kogpt/sampling.py: no operation is fused.
double log_exactly(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  int e = static_cast<int>(bits >> 52) - 1022;
  double m = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000);
  if (m < 0x1.6a09e667f3bcdp-1) {  // sqrt(1/2)
    m += m;
    --e;
  }
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double series = 1.0 / 15.0;
  for (int n = 13; n > 0; n -= 2) series = series * z + 1.0 / n;
  return (s + s) * series + e * kLog2;
}

// Standard Gumbel noise from 64 random bits.
double noise_of(std::uint64_t bits) {
  const double u = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
  return -log_exactly(-log_exactly(u));
}

bool is_likelier(const Likely& one, const Likely& other) {
  return one.logprob > other.logprob || (one.logprob == other.logprob && one.token < other.token);
}

// The `count` <= n tokens with the highest logits, best first, as log-probabilities.
void find_likeliest(const float* logits, int n, double top, double log_total, int count, Likely* found) {
  int size = 0;
  for (int i = 0; i < n && count > 0; ++i) {
    const Likely entry{i, static_cast<double>(logits[i])};
    if (size < count) {
      found[size++] = entry;
      std::push_heap(found, found + size, is_likelier);
    } else if (is_likelier(entry, found[0])) {
      std::pop_heap(found, found + size, is_likelier);
      found[size - 1] = entry;
      std::push_heap(found, found + size, is_likelier);
    }
  }
  std::sort_heap(found, found + size, is_likelier);
  for (int i = 0; i < size; ++i) found[i].logprob = found[i].logprob - top - log_total;
}

// Bins in the order of values: of weights 128 for each power of two, of scaled scores 128 for each nat.
int bin_of_weight(double weight) {
  constexpr int kLow = (1023 - 63) * 128;  // 2^-63
  return std::clamp(static_cast<int>(std::bit_cast<std::uint64_t>(weight) >> 45) - kLow, 0, kRankBins - 1);
}

int bin_of_score(double scaled) {
  return kRankBins - 1 - static_cast<int>(std::min(-scaled * 128.0, static_cast<double>(kRankBins - 1)));
}

template <class T>
int first_highest(const T* scores, int n, T top) {
  return static_cast<int>(std::find(scores, scores + n, top) - scores);
}

double highest_of(const double* scores, int n) {
  constexpr int kLanes = 8;
  double lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -kInfinity);
  for (int i = 0; i < n; i += kLanes) {
    for (int j = 0; j < kLanes && i + j < n; ++j)
      lanes[j] = scores[i + j] > lanes[j] ? scores[i + j] : lanes[j];
  }
  return *std::max_element(lanes, lanes + kLanes);
}

}  // namespace

double gumbel(std::uint64_t key, int token) {
  return noise_of(random_bits(key, static_cast<std::uint64_t>(token)));
}

Sampler::Sampler(const Kernels& kernels, int n_vocab)
    : kernels_(kernels),
      scores_(static_cast<std::size_t>(n_vocab)),
      scaled_(scores_.size()),
      weights_(scores_.size()),
      ids_(scores_.size()),
      counts_(kRankBins),
      sums_(kRankBins) {}

Answer Sampler::sample(const float* logits, const Draw& draw, Likely* likeliest) {
  const float top = kernels_.highest(logits, draw.n_vocab);
  if (std::isnan(top)) return {-1, 0, kNotANumber};
  Answer answer{choose(logits, draw, top), 0, kNotANumber};
  if (draw.n_likeliest >= 0) {
    const double total = log_total(logits, draw.n_vocab, top);
    answer.logprob = static_cast<double>(logits[answer.token]) - top - total;
    find_likeliest(logits, draw.n_vocab, top, total, draw.n_likeliest, likeliest);
  }
  return answer;
}

void Sampler::score(const float* logits, int n, const Target* targets, int count, Answer* answers,
                    Likely* likeliest) {
  float top = kernels_.highest(logits, n);
  int best = 0;
  const bool finite = !std::isnan(top);
  if (finite) {
    best = first_highest(logits, n, top);
  } else {  // what argmax of numpy finds: the first that is not a number, else the first of the highest
    for (int i = 1; i < n && !std::isnan(logits[best]); ++i) {
      if (std::isnan(logits[i]) || logits[i] > logits[best]) best = i;
    }
  }
  const double total = finite ? log_total(logits, n, top) : std::log(n);
  for (int i = 0; i < count; ++i) {
    const Target& target = targets[i];
    answers[i] = {best, 0, finite ? static_cast<double>(logits[target.token]) - top - total : kNotANumber};
    if (finite) {
      find_likeliest(logits, n, top, total, target.n_likeliest, likeliest);
    } else {  // uniform, as the reference has it
      for (int j = 0; j < target.n_likeliest; ++j) likeliest[j] = {j, -total};
    }
    likeliest += target.n_likeliest;
  }
}

// log of the sum of e^(logit - top).
double Sampler::log_total(const float* logits, int n, float top) {
  kernels_.scale(logits, nullptr, n, top, 1.0, scaled_.data());
  return std::log(kernels_.weigh(scaled_.data(), n, weights_.data()));
}

// Logits after bias, penalties and mask, in scores_; nullptr where there are none.
const double* Sampler::change(const float* logits, const Draw& draw) {
  if (draw.n_changes == 0 && draw.allowed == nullptr) return nullptr;
  for (int i = 0; i < draw.n_vocab; ++i) scores_[static_cast<std::size_t>(i)] = logits[i];
  for (int i = 0; i < draw.n_changes; ++i) {
    double& score = scores_[static_cast<std::size_t>(draw.ids[i])];
    const double value = score + draw.bias[i];
    score = (value > 0 ? value / draw.factor[i] : value * draw.factor[i]) - draw.minus[i];
  }
  for (int i = 0; draw.allowed != nullptr && i < draw.n_vocab; ++i) {
    if ((draw.allowed[i / 32] >> (i % 32) & 1) == 0) scores_[static_cast<std::size_t>(i)] = -kInfinity;
  }
  return scores_.data();
}

int Sampler::choose(const float* logits, const Draw& draw, float top) {
  const double* scores = change(logits, draw);
  const double highest = scores == nullptr ? top : highest_of(scores, draw.n_vocab);
  if (draw.temperature == 0.0) {
    return scores == nullptr ? first_highest(logits, draw.n_vocab, top)
                             : first_highest(scores, draw.n_vocab, highest);
  }
  kernels_.scale(logits, scores, draw.n_vocab, highest, draw.temperature, scaled_.data());
  std::iota(ids_.begin(), ids_.begin() + draw.n_vocab, 0);
  return loudest(draw.key, filter(draw));
}

// Leaves of the first n candidates those with keep(place); their number.
template <class Keep>
int Sampler::leave(int n, const Keep& keep) {
  std::size_t left = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    const std::size_t more = keep(i) ? 1 : 0;
    ids_[left] = ids_[i];
    scaled_[left] = scaled_[i];
    left += more;
  }
  return static_cast<int>(left);
}

// Leaves the candidates of a draw in ids_ and scaled_; their number.
int Sampler::filter(const Draw& draw) {
  constexpr double kCold = 1e-30;  // float32 scores over a temperature above this are finite
  int n = draw.n_vocab;
  if (draw.allowed != nullptr || draw.temperature < kCold) {
    n = leave(n, [&](std::size_t i) { return scaled_[i] > -kInfinity; });
  }
  if (draw.top_k > 0 && draw.top_k < n) {
    const Ranked last = last_of_top_k(n, static_cast<int>(draw.top_k));
    n = leave(n, [&](std::size_t i) { return last.reaches(scaled_[i], ids_[i]); });
  }
  if (draw.top_p < 1.0) {
    const Ranked last = last_of_nucleus(n, draw.top_p);
    n = leave(n, [&](std::size_t i) { return last.reaches(weights_[i], ids_[i]); });
  }
  if (draw.min_p > 0.0) {
    const double low = std::log(draw.min_p) - kSlack;
    n = leave(n, [&](std::size_t i) { return scaled_[i] >= low; });
    kernels_.weigh(scaled_.data(), n, weights_.data());
    n = leave(n, [&](std::size_t i) { return weights_[i] >= draw.min_p; });
  }
  return n;
}

// The candidate with the highest scaled score plus noise, the first of several. Noise is made only where its
// bound does not rule the candidate out.
int Sampler::loudest(std::uint64_t key, int n) const {
  constexpr int kTogether = 64;
  double best = -kInfinity, bounds[kTogether];
  int found = 0;
  for (int start = 0; start < n; start += kTogether) {
    const int count = std::min(kTogether, n - start), *ids = ids_.data() + start;
    const double* scaled = scaled_.data() + start;
    if (kernels_.screen(key, ids, scaled, count, best, bounds) == 0) continue;
    for (int i = 0; i < count; ++i) {
      if (bounds[i] < best) continue;
      const double value = scaled[i] + gumbel(key, ids[i]);
      if (value > best) {
        best = value;
        found = ids[i];
      }
    }
  }
  return found;
}

Sampler::Ranked Sampler::last_of_top_k(int n, int k) {
  std::fill(counts_.begin(), counts_.end(), 0);
  for (int i = 0; i < n; ++i)
    ++counts_[static_cast<std::size_t>(bin_of_score(scaled_[static_cast<std::size_t>(i)]))];
  int bin = kRankBins - 1;
  while (counts_[static_cast<std::size_t>(bin)] < k) k -= counts_[static_cast<std::size_t>(bin--)];
  order_.clear();
  for (int i = 0; i < n; ++i) {
    const Ranked entry{scaled_[static_cast<std::size_t>(i)], ids_[static_cast<std::size_t>(i)]};
    if (bin_of_score(entry.value) == bin) order_.push_back(entry);
  }
  const auto last = order_.begin() + (k - 1);
  std::nth_element(order_.begin(), last, order_.end());
  return *last;
}

// The last of the smallest set of likeliest candidates that reaches top_p; leaves in weights_ what it is
// ranked by.
Sampler::Ranked Sampler::last_of_nucleus(int n, double top_p) {
  const double total = kernels_.weigh(scaled_.data(), n, weights_.data());
  Ranked last{};
  if (n > kFew && find_in_bins(n, top_p, total, last)) return last;
  // Shares below (1 - top_p) / n sum up to less than 1 - top_p: never in the set. The largest weight is 1.
  const double limit = std::min((1.0 - top_p) / n, 1.0 / total);
  order_.clear();
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    weights_[i] /= total;
    if (weights_[i] >= limit) order_.push_back({weights_[i], ids_[i]});
  }
  sort_ranked();
  double sum = 0.0;
  for (const Ranked& entry : order_) {
    sum += entry.value;
    if (sum >= top_p) return entry;
  }
  return order_.back();
}

// Equal logits are in order already.
void Sampler::sort_ranked() {
  if (!std::is_sorted(order_.begin(), order_.end())) std::sort(order_.begin(), order_.end());
}

// The same from weights, which are not divided, and their sums over bins, without a sort of all. False where
// rounding may decide: of the sums, or of the shares of two tokens whose weights differ in the last bits.
bool Sampler::find_in_bins(int n, double top_p, double total, Ranked& last) {
  const double doubt = 8.0 * n * 0x1p-53 * total;  // twice what sums of n shares, at most 1, differ by
  const double low = top_p * total - doubt, high = top_p * total + doubt;
  const double light = (1.0 - top_p) / n * total * (1.0 - kSlack);  // for sure not in the set
  std::fill(sums_.begin(), sums_.end(), 0.0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    if (weights_[i] >= light) sums_[static_cast<std::size_t>(bin_of_weight(weights_[i]))] += weights_[i];
  }
  int bin = kRankBins - 1;
  double sum = 0.0;
  while (bin > 0 && sum + sums_[static_cast<std::size_t>(bin)] < low)
    sum += sums_[static_cast<std::size_t>(bin--)];
  order_.clear();
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    if (weights_[i] >= light && bin_of_weight(weights_[i]) == bin) order_.push_back({weights_[i], ids_[i]});
  }
  sort_ranked();
  for (std::size_t i = 0; i < order_.size(); ++i) {
    sum += order_[i].value;
    if (sum < low) continue;
    last = order_[i];
    return sum >= high && bin > 0 && is_apart(i);
  }
  return false;
}

// Whether no other candidate of the bin has a weight that differs from this one's in the last bits alone. Nor
// has one of the neighbouring bins, if this one is not at an end of its own.
bool Sampler::is_apart(std::size_t place) const {
  constexpr double kNear = 4 * 0x1p-52;
  const double value = order_[place].value;
  const auto same = [&](const Ranked& other) { return other.value == value; };
  const auto first = std::find_if(order_.begin(), order_.end(), same);
  const auto end = std::find_if_not(first, order_.end(), same);
  const double above = first == order_.begin() ? kInfinity : (first - 1)->value;
  const double below = end == order_.end() ? 0.0 : end->value;
  return above - value > kNear * value && value - below > kNear * value &&
         bin_of_weight(value * (1 + kNear)) == bin_of_weight(value * (1 - kNear));
}

}  // namespace kogpt
