// Tokens from logits: the choices of kogpt/sampling.py, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace kogpt {

// How one token is chosen from one output: Draw of kogpt/sampling.py.
struct Draw {
  std::uint64_t key;
  double temperature, top_p, min_p;
  std::int64_t top_k;
  int output;       // among all outputs of the step
  int n_vocab;      // tokens from here on are never chosen
  int n_likeliest;  // tokens to report beside the chosen one; -1: no log-probabilities
  int n_changes;
  const std::int64_t* ids;  // (n_changes) tokens whose logits change
  const double* bias;       // (n_changes) each
  const double* factor;
  const double* minus;
  const std::uint32_t* allowed;  // a bit for each token; nullptr: all of them
};

// A token whose log-probability is wanted at one output.
struct Target {
  int output;
  int n_likeliest;  // tokens to report besides
  std::int64_t token;
};

// What a Draw or a Target finds.
struct Answer {
  int token;  // chosen, or of a Target the likeliest; -1: a logit was not finite, so that a Draw has none
  int unused;
  double logprob;  // of the chosen or wanted token, in nats
};

struct Likely {
  std::int64_t token;
  double logprob;
};

// Standard Gumbel noise of a token, `gumbel` of kogpt/sampling.py.
double gumbel(std::uint64_t key, int token);

// One thread's room to choose tokens from outputs of up to `n_vocab` logits.
class Sampler {
 public:
  Sampler(const Kernels& kernels, int n_vocab);

  // likeliest: room for draw.n_likeliest entries.
  Answer sample(const float* logits, const Draw& draw, Likely* likeliest);
  // All targets are of the output with these (n) logits; likeliest: room for the targets' entries in order.
  void score(const float* logits, int n, const Target* targets, int count, Answer* answers,
             Likely* likeliest);

 private:
  // A candidate in the order of falling values and, among equals, of rising ids.
  struct Ranked {
    double value;
    int id;
    bool operator<(const Ranked& other) const {
      return value > other.value || (value == other.value && id < other.id);
    }
    bool reaches(double v, int i) const { return v > value || (v == value && i <= id); }
  };

  const double* change(const float* logits, const Draw& draw);
  int choose(const float* logits, const Draw& draw, float top);
  int filter(const Draw& draw);
  int loudest(std::uint64_t key, int n) const;
  Ranked last_of_top_k(int n, int k);
  Ranked last_of_nucleus(int n, double top_p);
  void sort_ranked();
  bool find_in_bins(int n, double top_p, double total, Ranked& last);
  bool is_apart(std::size_t place) const;
  double log_total(const float* logits, int n, float top);
  template <class Keep>
  int leave(int n, const Keep& keep);

  const Kernels& kernels_;
  std::vector<double> scores_, scaled_, weights_;  // (n_vocab) each
  std::vector<int> ids_;                           // (n_vocab) candidates in rising order
  std::vector<int> counts_;                        // (kRankBins)
  std::vector<double> sums_;                       // (kRankBins)
  std::vector<Ranked> order_;
};

}  // namespace kogpt
