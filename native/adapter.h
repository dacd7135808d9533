// LoRA adapters as the kernels want them (LowRank in layout.h).
#pragma once

#include <array>
#include <vector>

#include "buffer.h"
#include "layout.h"

namespace kogpt {

// Projections of a layer, in the order in which they are numbered; the head follows the last layer.
enum Projection { kQ, kK, kV, kOut, kFcIn, kFcOut, kProjections };

// The update scale * b a of one projection as the caller has it: a (rank, K) and b (N, rank) float32.
struct Factors {
  int index;  // of the projection
  int rank;
  float scale;
  const float* a;
  const float* b;
};

class Adapter {
 public:
  // projections: those of the model. format: float32 or bfloat16, to which the factors are rounded.
  Adapter(const std::vector<Linear>& projections, Format format, const Factors* factors, int count);

  const LowRank& update(int index) const { return updates_[static_cast<std::size_t>(index)]; }
  // The largest rank that any layer has for a Projection.
  int rank(int projection) const { return ranks_[static_cast<std::size_t>(projection)]; }

 private:
  std::vector<LowRank> updates_;  // one for each projection but the head
  std::array<int, kProjections> ranks_{};
  Buffer factors_;
};

// Bytes of one update of a projection.
std::size_t update_bytes(const Linear& w, Format format, int rank);

}  // namespace kogpt
