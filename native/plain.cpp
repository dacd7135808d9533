// Any processor: the compiler's own vectors, whatever they are.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "codebook.h"
#include "kernels.h"

namespace kogpt {

namespace {

constexpr int kRows = 2, kCols = 2, kOffset = 0;
constexpr bool kHalfProducts = false;
constexpr int kQueries = 4, kVectors = 1;  // see attention.inl

inline float f16_to_float(std::uint16_t bits) {
  const std::uint32_t shifted = static_cast<std::uint32_t>(bits & 0x7FFF) << 13;
  const float finite = std::bit_cast<float>(shifted) * 0x1p112f;  // subnormals included
  const float magnitude = shifted < 0x7C00u << 13 ? finite : std::bit_cast<float>(shifted | 0x7F800000u);
  return bits & 0x8000 ? -magnitude : magnitude;
}

struct F16 {
  float v[16];
  static F16 zero() { return F16{}; }
  static F16 splat(float x) {
    F16 r;
    for (float& lane : r.v) lane = x;
    return r;
  }
  static F16 load(const float* p) {
    F16 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static F16 load_bf16(const std::uint16_t* p) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = std::bit_cast<float>(static_cast<std::uint32_t>(p[i]) << 16);
    return r;
  }
  static F16 load_f16(const std::uint16_t* p) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = f16_to_float(p[i]);
    return r;
  }
  static void load_pairs(const unsigned char* p, F16& first, F16& second) {
    std::uint32_t pairs[16];
    std::memcpy(pairs, p, sizeof pairs);
    for (int i = 0; i < 16; ++i) {
      first.v[i] = std::bit_cast<float>(pairs[i] << 16);
      second.v[i] = std::bit_cast<float>(pairs[i] & 0xFFFF0000u);
    }
  }
  void store(float* p) const { std::memcpy(p, v, sizeof v); }
  void store8(std::int8_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(v[i]);
  }
};

inline F16 add(F16 a, const F16& b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}

inline F16 fma(const F16& a, const F16& b, F16 c) {
  for (int i = 0; i < 16; ++i) c.v[i] += a.v[i] * b.v[i];
  return c;
}

inline F16 mul(F16 a, const F16& b) {
  for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
  return a;
}

inline F16 div(F16 a, const F16& b) {
  for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i];
  return a;
}

inline F16 least(F16 a, const F16& b) {
  for (int i = 0; i < 16; ++i) a.v[i] = b.v[i] < a.v[i] ? b.v[i] : a.v[i];
  return a;
}

inline F16 most(F16 a, const F16& b) {
  for (int i = 0; i < 16; ++i) a.v[i] = b.v[i] > a.v[i] ? b.v[i] : a.v[i];
  return a;
}

inline F16 whole(F16 a) {
  for (float& lane : a.v) lane = (lane + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23
  return a;
}

// e^x for x <= 88; below -87 it is flushed to e^-87. Cephes' expf: range reduction and a polynomial of
// degree 5.
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low bits
  const float n = shifted - 12582912.0f;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const std::int32_t power = (std::bit_cast<std::int32_t>(shifted) << 23) + 0x3F800000;
  return (p * r * r + r + 1.0f) * std::bit_cast<float>(power);
}

inline F16 exp16(F16 a) {
  for (float& lane : a.v) lane = exp_of(lane);
  return a;
}

inline F16 count_above(const F16& x, const F16& limit, F16 c) {
  for (int i = 0; i < 16; ++i) c.v[i] += x.v[i] > limit.v[i] ? 1.0f : 0.0f;
  return c;
}

inline float largest(F16 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i + width] > a.v[i] ? a.v[i + width] : a.v[i];
  }
  return a.v[0];
}

inline F16 select_less(const F16& a, const F16& b, const F16& x, F16 y) {
  for (int i = 0; i < 16; ++i) y.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i];
  return y;
}

inline F16 pick(const float (&table)[32], F16 index) {
  for (float& lane : index.v)
    lane = table[lane >= 0 ? static_cast<int>(lane) : 0];  // also where it is no number
  return index;
}

inline float sum(F16 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  }
  return a.v[0];
}

struct I16 {
  std::int32_t v[16];
  static I16 zero() { return I16{}; }
};

inline I16 dot64(I16 a, const std::int8_t* w, const std::int8_t* x) {
  for (int i = 0; i < 64; ++i) a.v[i % 16] += w[i] * x[i];
  return a;
}

inline std::int32_t sum(const I16& a) {
  std::int32_t total = 0;
  for (std::int32_t lane : a.v) total += lane;
  return total;
}

void unpack_tile(const std::uint8_t* tile, const std::int8_t* table, std::int8_t* out);

#include "generic.inl"
#include "tiles.inl"
#include "rows.inl"

void unpack_tile(const std::uint8_t* tile, const std::int8_t* table, std::int8_t* out) {
  unpack_plain(tile, table, out);
}

}  // namespace

const Kernels kPlain = {"plain",    layer_norm,  prepare_rows, linear_rows,  compress,      expand,
                        store_rows, attend_rows, scratch_rows, quantize_row, search_scales, pack_panel,
                        unpack,     widen,       highest,      scale,        screen,        weigh};

}  // namespace kogpt
