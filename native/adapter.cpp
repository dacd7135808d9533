#include "adapter.h"

#include <algorithm>
#include <cstring>

#include "weights.h"

namespace kogpt {

namespace {

std::size_t a_bytes(const Linear& w, Format format, int rank) {
  return static_cast<std::size_t>(rank) * static_cast<std::size_t>(w.kp) * width_of(format);
}

// Rows of a, padded with zeros.
void store_a(const Linear& w, const Factors& from, Format format, unsigned char* to) {
  std::vector<float> row(static_cast<std::size_t>(w.kp));
  for (int j = 0; j < from.rank; ++j) {
    std::copy_n(from.a + static_cast<std::ptrdiff_t>(j) * w.k, w.k, row.begin());
    narrow(format, row.data(), w.kp, to + a_bytes(w, format, j));
  }
}

// Panels of 16 outputs of scale * b, padded with zeros.
void store_b(const Linear& w, const Factors& from, Format format, unsigned char* to) {
  for (int n = 0; n < w.n; n += kPanel) {
    for (int j = 0; j < from.rank; ++j, to += kPanel * width_of(format)) {
      float values[kPanel] = {};
      for (int i = 0; i < kPanel && n + i < w.n; ++i) {
        values[i] = from.scale * from.b[static_cast<std::ptrdiff_t>(n + i) * from.rank + j];
      }
      narrow(format, values, kPanel, to);
    }
  }
}

}  // namespace

std::size_t update_bytes(const Linear& w, Format format, int rank) {
  const std::size_t panels =
      static_cast<std::size_t>(rank) * static_cast<std::size_t>(round_up(w.n, kPanel)) * width_of(format);
  return (a_bytes(w, format, rank) + panels + kAlign - 1) / kAlign * kAlign;
}

Adapter::Adapter(const std::vector<Linear>& projections, Format format, const Factors* factors, int count)
    : updates_(projections.size() - 1) {
  std::size_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    bytes += update_bytes(projections[static_cast<std::size_t>(factors[i].index)], format, factors[i].rank);
  }
  factors_ = Buffer(bytes, Buffer::kUnset);
  unsigned char* at = factors_.data();
  for (int i = 0; i < count; ++i) {
    const auto index = static_cast<std::size_t>(factors[i].index);
    const Linear& w = projections[index];
    unsigned char* b = at + a_bytes(w, format, factors[i].rank);
    store_a(w, factors[i], format, at);
    store_b(w, factors[i], format, b);
    updates_[index] = {format, factors[i].rank, w.n, w.kp, at, b};
    int& rank = ranks_[index % kProjections];
    rank = std::max(rank, factors[i].rank);
    at += update_bytes(w, format, factors[i].rank);
  }
}

}  // namespace kogpt
