// The 16 values that a four-bit weight can take, for each of 256 group scales.
#pragma once

#include <array>
#include <cstdint>

#include "layout.h"

namespace kogpt {

// Lloyd's algorithm on groups of 32 normal values, each with its best scale: a fifth less squared error than
// 16 even steps. One end is longer, so a group may also take the mirrored values.
constexpr std::array<int, kCodes> kCodebook = {-127, -100, -79, -62, -47, -34, -21, -9,
                                               2,    14,   25,  37,  50,  65,  83,  107};

// Row s: the codebook times (s & 127) / 127, rounded, mirrored where s >= 128. Every entry is an int8, so
// that the products of a whole row of weights are summed in integers, whatever the scales of its groups.
constexpr std::array<std::int8_t, 256 * kCodes> make_table() {
  std::array<std::int8_t, 256 * kCodes> table{};
  for (int s = 0; s < 256; ++s) {
    for (int code = 0; code < kCodes; ++code) {
      const int product = kCodebook[static_cast<std::size_t>(code)] * (s & 127);
      const int rounded = (product + (product >= 0 ? 63 : -63)) / 127;
      table[static_cast<std::size_t>(s * kCodes + code)] =
          static_cast<std::int8_t>(s < 128 ? rounded : -rounded);
    }
  }
  return table;
}

inline constexpr std::array<std::int8_t, 256 * kCodes> kTable = make_table();

// A row of the table can be made where it is used, which is faster than fetching it: codebook x scale / 127,
// rounded, is vpmulhrsw of the scale with the codebook in units of 127 / 2^15.
constexpr int table_factor(int code) {
  const int entry = kCodebook[static_cast<std::size_t>(code)] * 32768;
  return (entry + (entry >= 0 ? 63 : -63)) / 127;
}

constexpr bool factors_make_the_table() {
  for (int scale = 0; scale < 128; ++scale) {
    for (int code = 0; code < kCodes; ++code) {
      const int up = (table_factor(code) * scale + 0x4000) >> 15,
                down = (table_factor(code) * -scale + 0x4000) >> 15;
      if (up != kTable[static_cast<std::size_t>(scale * kCodes + code)]) return false;
      if (down != kTable[static_cast<std::size_t>((scale + 128) * kCodes + code)]) return false;
    }
  }
  return true;
}
static_assert(factors_make_the_table());

// The codebook cut into bins so narrow that each holds at most one border between two codes.
constexpr int kBins = 32;
constexpr float kBinWidth = 11.5f;  // the least distance of two borders

struct BinTable {
  float code[kBins] = {};    // of the lower end of the bin
  float middle[kBins] = {};  // above it the next code is nearer
  float value[kBins] = {};   // of a code
};

constexpr BinTable make_bin_table() {
  BinTable table{};
  for (int bin = 0; bin < kBins; ++bin) {
    const float low = kBinWidth * static_cast<float>(bin - kBins / 2), high = low + kBinWidth;
    table.middle[bin] = 1e9f;
    for (std::size_t code = 0; code + 1 < kCodes; ++code) {
      const float middle = 0.5f * static_cast<float>(kCodebook[code] + kCodebook[code + 1]);
      if (middle < low) table.code[bin] += 1.0f;
      if (middle >= low && middle < high) table.middle[bin] = middle;
    }
    if (bin < kCodes) table.value[bin] = static_cast<float>(kCodebook[static_cast<std::size_t>(bin)]);
  }
  return table;
}

inline constexpr BinTable kBinTable = make_bin_table();

}  // namespace kogpt
