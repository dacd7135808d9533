// Shapes and memory layouts that the kernels of every instruction set share.
//
//   M tokens, N outputs, K inputs of a projection; D head width; E model width.
//   Kp is K rounded up to kDepth, the padding zero, so that no kernel has a tail over K.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kogpt {

constexpr int kDepth = 64;     // K is padded to this many inputs
constexpr int kPanel = 16;     // quantised weights come in panels of this many outputs
constexpr int kBlock = 32;     // positions of one cache block
constexpr int kGroup = 32;     // weights that share one int4 scale
constexpr int kCodes = 16;     // entries of the int4 codebook
constexpr int kMaxWidth = 16;  // tokens in one packed block of activations
constexpr std::size_t kAlign = 64;

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

enum class Format : int { f32 = 0, f16 = 1, bf16 = 2, i8 = 3, i4 = 4 };

// y = W x. W lies as
//   f32, f16, bf16   (N, Kp) row by row, often borrowed from the mapped file
//   i8               (ceil(N / 16), Kp / 64) tiles of kTile8 bytes
//   i4               (ceil(N / 16), Kp / 64) tiles of kTile4 bytes
struct Linear {
  Format format = Format::f32;
  int n = 0;
  int k = 0;
  int kp = 0;
  const void* w = nullptr;
  const float* scale = nullptr;        // i8, i4: (16 ceil(N / 16)), real weight = scale[n] * integer
  const std::int8_t* table = nullptr;  // i4: codebook.h; integer = table[group scale][code]
};

// A tile is 16 outputs x 64 inputs, in an order that suits the set (AVX2: avx2_ints.inl). Elsewhere int8
// tiles are (16, 64), and int4 tiles codes (2 groups, 16 outputs, 16 bytes), byte i of a group holding inputs
// i (low four bits) and 16 + i (high), so that 64 bytes are one group of four outputs, each in a lane with
// its own table; then the group scales, (2 groups, 16 outputs).
constexpr int kTile8 = kPanel * kDepth;
constexpr int kTile4 = kTile8 / 2 + kPanel * (kDepth / kGroup);

// What the integers of a token stand for: x = scale * (low + kHighStep * high).
struct Token {
  float scale = 0;
  std::int32_t low_sum = 0;  // over K
  std::int32_t high_sum = 0;
  bool outliers = false;  // some block has a high plane
};

constexpr int kHighStep = 254;  // so that low and high both lie within [-127, 127]
constexpr int kLargest = 127;
constexpr int kReach = kHighStep * kLargest + kLargest;  // fits 16 bits

constexpr std::size_t kAbreast =
    6;  // tokens that a set may lay out side by side, the last of them perhaps nobody's

// int8 planes, tokens and bitmaps.
constexpr std::size_t narrow_bytes(std::size_t m, std::size_t kp) {
  const std::size_t bytes = m * (2 * kp + sizeof(Token) + (kp / kDepth + 63) / 64 * sizeof(std::uint64_t));
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Activations made ready for one format by Kernels::prepare.
//   f32, f16   float32 (m, kp)
//   bf16       bfloat16 (m, kp); float32 where there are no bfloat16 products
//   i8, i4     int8, plane `low` (m, kp), then plane `high` (m, kp), tokens (m), a bitmap of blocks for each,
//   and `wide`
// An instruction set may lay out the first three, and the planes, in another order, or have the integers as
// they are in `wide` and no planes: it is the only one that reads them.
//
// `high` is zero, and its product costs nothing, but in the blocks of kDepth inputs that the bitmap names. In
// int8 those are nearly all. In int4 they are the blocks with the few features of a large model that are far
// larger than the others (LLM.int8(), arXiv 2208.07339).
struct Acts {
  Format format = Format::f32;
  int m = 0;
  int kp = 0;
  unsigned char* data = nullptr;  // acts_bytes(format, m, kp)

  std::size_t plane_bytes() const { return static_cast<std::size_t>(m) * static_cast<std::size_t>(kp); }
  std::int8_t* low(int token) const {
    return reinterpret_cast<std::int8_t*>(data) +
           static_cast<std::size_t>(token) * static_cast<std::size_t>(kp);
  }
  std::int8_t* high(int token) const { return low(token) + plane_bytes(); }
  Token& token(int i) const { return reinterpret_cast<Token*>(data + 2 * plane_bytes())[i]; }
  int words() const { return (kp / kDepth + 63) / 64; }
  std::uint64_t* blocks(int token) const {
    auto* first = reinterpret_cast<std::uint64_t*>(data + 2 * plane_bytes() +
                                                   static_cast<std::size_t>(m) * sizeof(Token));
    return first + static_cast<std::size_t>(token) * static_cast<std::size_t>(words());
  }
  // Room for low + kHighStep * high in 16 bits, as a set lays them out that multiplies such.
  unsigned char* wide() const {
    return data + narrow_bytes(static_cast<std::size_t>(m), static_cast<std::size_t>(kp));
  }
};

constexpr std::size_t acts_bytes(Format format, std::size_t m, std::size_t kp) {
  const std::size_t abreast = (m + kAbreast - 1) / kAbreast * kAbreast;
  if (format != Format::i8 && format != Format::i4) return abreast * kp * sizeof(float);
  return narrow_bytes(m, kp) + abreast * kp * sizeof(std::int16_t);
}

// The update y += B A x of a projection (LoRA, arXiv 2106.09685, section 4.1), in float32 or bfloat16.
struct LowRank {
  Format format = Format::f32;
  int rank = 0;  // 0: no update
  int n = 0;
  int kp = 0;
  const unsigned char* a = nullptr;  // (rank, Kp) row by row
  const unsigned char* b = nullptr;  // (ceil(N / 16), rank, 16), scale included
};

// Outputs [n0, n1) of a projection for all tokens: out[m * ld + n] = gelu?(W x + bias + out?[m * ld + n]).
struct Output {
  float* out = nullptr;
  std::size_t ld = 0;
  const float* bias = nullptr;
  bool accumulate = false;
  bool gelu = false;
};

// One block of the cache holds, for each layer and head, keys then values of 32 positions, Dp being D rounded
// up to 32:
//   keys    (2, Dp / 2) cells     16 positions x a pair of dimensions
//   values  (16, Dp / 16) cells   16 dimensions x a pair of positions
// A cell is (2, 16) float32, (16, 2) bfloat16 or (16, 2) int8. int8 cells are followed by a float32 for each
// position: what its integers are multiplied with.
constexpr int kHeadStep = 32;

constexpr std::size_t head_bytes(Format format, int d) {
  const auto n = static_cast<std::size_t>(kBlock) * static_cast<std::size_t>(round_up(d, kHeadStep));
  return format == Format::i8 ? n + kBlock * sizeof(float) : n * (format == Format::f32 ? 4 : 2);
}

constexpr int kMaxQueries = 64;  // of one job
constexpr int kTileBlocks = 4;   // blocks that attention reads at a time
constexpr int kTile = kTileBlocks * kBlock;

// Queries of one row, at positions first, first + 1 and so on; each sees the positions up to its own.
struct Span {
  int start = 0;  // place of the first among all queries
  int t = 0;
  int first = 0;
  const unsigned char* const* blocks = nullptr;  // the row's
};

// Attention of one head, for at most kMaxQueries queries.
struct Attend {
  const Span* spans = nullptr;
  int n_spans = 0;
  int shared = 0;            // tiles that lie before all queries and are the same memory in all spans
  const float* q = nullptr;  // (., D) at stride ld, rotated
  float* out = nullptr;      // likewise
  std::size_t ld = 0;
  int d = 0;
  Format format = Format::f32;  // of the cache: f32, bf16 or i8
  std::size_t keys = 0;         // byte offsets of this layer and head within a block
  std::size_t values = 0;
};

}  // namespace kogpt
