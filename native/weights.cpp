// Weights as the kernels want them: borrowed where the file's layout is already that, else converted.
#include "weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codebook.h"
#include "model.h"

namespace kogpt {

namespace {

constexpr std::size_t width_of(Format format) { return format == Format::f32 ? 4 : 2; }

std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Round to nearest even; finite x. Beyond float16 the result is infinite.
std::uint16_t to_f16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7C00);
  if (magnitude < 0x1p-14f) {  // subnormal: units of 2^-24
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  bits &= 0x7FFFFFFF;
  bits += 0xFFF + (bits >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

void narrow(Format to, const float* source, int n, void* out) {
  auto* half = static_cast<std::uint16_t*>(out);
  switch (to) {
    case Format::f32: std::memcpy(out, source, static_cast<std::size_t>(n) * sizeof(float)); break;
    case Format::bf16:
      for (int i = 0; i < n; ++i) half[i] = to_bf16(source[i]);
      break;
    default:
      for (int i = 0; i < n; ++i) half[i] = to_f16(source[i]);
      break;
  }
}

bool is_quantized(Format format) { return format == Format::i8 || format == Format::i4; }

}  // namespace

void Model::shape(int index, int& n, int& k) const {
  const Linear& w = projections_[static_cast<std::size_t>(index)];
  n = w.n;
  k = w.k;
}

std::size_t packed_bytes(Format format, int n, int k) {
  const auto tiles = static_cast<std::size_t>(round_up(n, kPanel) / kPanel) * static_cast<std::size_t>(round_up(k, kDepth) / kDepth);
  return tiles * (format == Format::i4 ? kTile4 : kTile8);
}

void quantize(Pool& pool, const Kernels& kernels, Format format, const Source& from, const float* importance,
              unsigned char* tiles, float* scales) {
  const int kp = round_up(from.k, kDepth);
  const auto width = static_cast<std::size_t>(kp), k = static_cast<std::size_t>(from.k);
  std::vector<float> weights(width, importance == nullptr ? 1.0f : 0.0f);
  if (importance != nullptr) std::copy(importance, importance + k, weights.begin());
  const std::size_t panel_bytes = packed_bytes(format, kPanel, from.k);
  pool.run((from.n + kPanel - 1) / kPanel, [&](int panel, int) {
    std::vector<float> rows(width * kPanel);
    std::vector<std::uint8_t> scratch(width * (kPanel + 2));
    for (int r = 0; r < kPanel && panel * kPanel + r < from.n; ++r) {
      const auto n = static_cast<std::size_t>(panel * kPanel + r);
      kernels.widen(from.format, static_cast<const unsigned char*>(from.data) + n * k * width_of(from.format), k,
                    rows.data() + static_cast<std::size_t>(r) * width);
    }
    const auto at = static_cast<std::size_t>(panel);
    kernels.quantize(format, rows.data(), kp, weights.data(), kTable.data(), tiles + at * panel_bytes,
                     scales + at * kPanel, scratch.data());
  });
}

bool Model::load_projection(int index, Format from, const void* source) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  w.format = format_;
  const bool aligned = reinterpret_cast<std::uintptr_t>(source) % width_of(from) == 0;
  if (from == w.format && w.k == w.kp && w.n % kPanel == 0 && aligned) {
    w.w = source;
    return true;
  }
  Buffer& data = owned_[static_cast<std::size_t>(index)];
  if (is_quantized(format_)) {
    std::vector<float> scales(static_cast<std::size_t>(round_up(w.n, kPanel)));
    data = Buffer(packed_bytes(format_, w.n, w.k));
    quantize(pool_, kernels_, format_, {from, source, w.n, w.k}, nullptr, data.data(), scales.data());
    borrow_packed(index, format_, data.data(), scales.data());
  } else {
    data = Buffer(static_cast<std::size_t>(round_up(w.n, kPanel)) * static_cast<std::size_t>(w.kp) * width_of(w.format));
    convert(w, from, source, data.data());
    w.w = data.data();
  }
  return false;
}

// Row by row to the model's format, padded.
void Model::convert(const Linear& w, Format from, const void* source, unsigned char* out) {
  const auto kp = static_cast<std::size_t>(w.kp), k = static_cast<std::size_t>(w.k);
  pool_.run((w.n + kPanel - 1) / kPanel, [&](int panel, int) {
    std::vector<float> wide(k);
    for (int n = panel * kPanel; n < w.n && n < (panel + 1) * kPanel; ++n) {
      const auto at = static_cast<std::size_t>(n);
      kernels_.widen(from, static_cast<const unsigned char*>(source) + at * k * width_of(from), k, wide.data());
      narrow(w.format, wide.data(), w.k, out + at * kp * width_of(w.format));
    }
  });
}

void Model::borrow_packed(int index, Format format, const unsigned char* tiles, const float* scales) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  const auto bytes = static_cast<std::size_t>(round_up(w.n, kPanel)) * sizeof(float);
  Buffer& owned = owned_scales_[static_cast<std::size_t>(index)] = Buffer(bytes);
  std::memcpy(owned.data(), scales, bytes);
  w.format = format;
  w.w = tiles;
  w.scale = owned.floats();
  w.table = kTable.data();
}

void Model::load_vector(int index, const float* source) {
  const int width = index == dims_.n_layers * kVectors + 2 ? dims_.n_vocab
                    : index < dims_.n_layers * kVectors && index % kVectors == kFcInBias ? dims_.d_ff
                                                                                         : dims_.d_model;
  Buffer& to = vectors_[static_cast<std::size_t>(index)] =
      Buffer(static_cast<std::size_t>(round_up(width, kDepth)) * sizeof(float));
  std::memcpy(to.data(), source, static_cast<std::size_t>(width) * sizeof(float));
}

void Model::borrow_embedding(Format format, const void* source) {
  embedding_format_ = format;
  embedding_ = static_cast<const unsigned char*>(source);
}

}  // namespace kogpt
