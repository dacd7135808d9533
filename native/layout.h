// Shapes and memory layouts that the kernels of every instruction set share.
//
//   M tokens, N outputs, K inputs of a projection; D head width; E model width.
//   Kp is K rounded up to kDepth, the padding zero, so that no kernel has a tail over K.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kogpt {

constexpr int kDepth = 64;       // K is padded to this many inputs
constexpr int kPanel = 16;       // quantised weights come in panels of this many outputs
constexpr int kBlock = 32;       // positions of one cache block
constexpr int kGroup = 32;       // weights that share one int4 scale
constexpr int kCodes = 16;       // entries of the int4 codebook
constexpr int kMaxWidth = 16;    // tokens in one packed block of activations
constexpr std::size_t kAlign = 64;

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

enum class Format : int { f32 = 0, f16 = 1, bf16 = 2, i8 = 3, i4 = 4 };

// y = W x. W lies as
//   f32, f16, bf16   (N, Kp) row by row, often borrowed from the mapped file
//   i8               (ceil(N / 16), Kp / 64, 16, 64): each 16 x 64 tile is 1 KB in a row
//   i4               (ceil(N / 16), Kp / 64) tiles of kTile4 bytes, see unpack_tile()
struct Linear {
  Format format = Format::f32;
  int n = 0;
  int k = 0;
  int kp = 0;
  const void* w = nullptr;
  const float* scale = nullptr;          // i8, i4: (16 ceil(N / 16)), real weight = scale[n] * integer
  const std::int32_t* sums = nullptr;    // i8, i4: (16 ceil(N / 16)), sum over K of the integers
  const std::int8_t* table = nullptr;    // i4: codebook.h; integer = table[group scale][code]
};

// One int4 tile, 16 outputs x 64 inputs: first 8 x 64 bytes, byte i of row pair p holding output 2p (low
// four bits) and 2p + 1 (high) of input i; then the group scales of outputs 0..15, two groups each.
constexpr int kTile8 = kPanel * kDepth;
constexpr int kTile4 = kTile8 / 2 + kPanel * (kDepth / kGroup);

// Activations made ready for one format by Kernels::prepare. `data` is written in blocks of kMaxWidth tokens;
// what a block looks like is the instruction set's own business.
//   i8, i4: a token is two rows of int8, x = scale * (high + low / 254), which keeps 15 bits of it
struct Acts {
  Format format = Format::f32;
  int m = 0;
  int kp = 0;
  void* data = nullptr;      // acts_bytes(format, m, kp)
  float* scale = nullptr;    // (m)
};

constexpr int kPlanes = 2;               // int8 rows per token
constexpr float kLowStep = 1.0f / 254;   // of the second row, in units of the first

constexpr std::size_t acts_bytes(Format format, std::size_t m, std::size_t kp) {
  const bool quantized = format == Format::i8 || format == Format::i4;
  return m * kp * (quantized ? kPlanes : sizeof(float));  // bf16: float32 where there are no bf16 products
}

// Outputs [n0, n1) of a projection for all tokens: out[m * ld + n] (+)= gelu?(W x + bias).
struct Output {
  float* out = nullptr;
  std::size_t ld = 0;
  const float* bias = nullptr;
  bool accumulate = false;
  bool gelu = false;
};

// One block of the cache holds, for each layer and head, keys then values of 32 positions, Dp being D rounded up to 32:
//   keys    (2, Dp / 2) cells     16 positions x a pair of dimensions
//   values  (16, Dp / 16) cells   16 dimensions x a pair of positions
// A cell is (2, 16) float32, (16, 2) bfloat16 or (16, 2) int8. int8 cells are followed by a float32 for each position:
// what its integers are multiplied with.
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
