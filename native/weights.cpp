// Weights as the kernels want them: borrowed where the file's layout is already that, else converted.
#include <cmath>
#include <cstring>

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

bool Model::load_projection(int index, Format from, const void* source) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  w.format = format_ == Format::i4 ? Format::i8 : format_;  // int4 arrives packed; what does not is int8
  const bool aligned = reinterpret_cast<std::uintptr_t>(source) % width_of(from) == 0;
  if (from == w.format && w.k == w.kp && w.n % kPanel == 0 && aligned) {
    w.w = source;
    return true;
  }
  convert(index, from, source);
  return false;
}

void Model::convert(int index, Format from, const void* source) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  const int panels = (w.n + kPanel - 1) / kPanel;
  const auto kp = static_cast<std::size_t>(w.kp), k = static_cast<std::size_t>(w.k);
  const bool quantized = is_quantized(w.format);
  const std::size_t row = kp * (quantized ? 1 : width_of(w.format));
  const std::size_t outputs = static_cast<std::size_t>(panels) * kPanel;
  Buffer& data = owned_[static_cast<std::size_t>(index)] = Buffer(outputs * row);
  Buffer& scales = owned_scales_[static_cast<std::size_t>(index)];
  if (quantized) scales = Buffer(outputs * (sizeof(float) + sizeof(std::int32_t)));
  auto* sums = reinterpret_cast<std::int32_t*>(scales.floats() + outputs);
  pool_.run(panels, [&](int panel, int) {
    if (quantized) {
      auto* tiles = reinterpret_cast<std::int8_t*>(data.data()) + static_cast<std::size_t>(panel) * kPanel * kp;
      const std::size_t at = static_cast<std::size_t>(panel) * kPanel;
      return quantize_panel(w, from, source, panel, tiles, scales.floats() + at, sums + at);
    }
    std::vector<float> wide(k);
    for (int n = panel * kPanel; n < w.n && n < (panel + 1) * kPanel; ++n) {
      const auto at = static_cast<std::size_t>(n);
      kernels_.widen(from, static_cast<const unsigned char*>(source) + at * k * width_of(from), k, wide.data());
      narrow(w.format, wide.data(), w.k, data.data() + at * row);
    }
  });
  w.w = data.data();
  w.scale = quantized ? scales.floats() : nullptr;
  w.sums = quantized ? sums : nullptr;
}

// 16 outputs to int8, each with the scale that takes its largest weight to 127.
void Model::quantize_panel(const Linear& w, Format from, const void* source, int panel, std::int8_t* tiles,
                           float* scales, std::int32_t* sums) const {
  const auto k = static_cast<std::size_t>(w.k);
  std::vector<float> wide(k);
  for (int r = 0; r < kPanel && panel * kPanel + r < w.n; ++r) {
    const auto n = static_cast<std::size_t>(panel * kPanel + r);
    kernels_.widen(from, static_cast<const unsigned char*>(source) + n * k * width_of(from), k, wide.data());
    float largest = 0;
    for (float value : wide) largest = std::fmax(largest, std::fabs(value));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    scales[r] = largest / 127.0f;
    std::int32_t total = 0;
    for (std::size_t i = 0; i < k; ++i) {
      const auto rounded = static_cast<std::int32_t>(std::nearbyint(wide[i] * inverse));
      tiles[i / kDepth * kTile8 + static_cast<std::size_t>(r) * kDepth + i % kDepth] = static_cast<std::int8_t>(rounded);
      total += rounded;
    }
    sums[r] = total;
  }
}

void Model::load_packed(int index, Format format, const void* tiles, const float* scales) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  const std::size_t outputs = static_cast<std::size_t>(round_up(w.n, kPanel));
  Buffer& owned = owned_scales_[static_cast<std::size_t>(index)] =
      Buffer(outputs * (sizeof(float) + sizeof(std::int32_t)));
  std::memcpy(owned.data(), scales, outputs * sizeof(float));
  auto* sums = reinterpret_cast<std::int32_t*>(owned.floats() + outputs);
  w.format = format;
  w.w = tiles;
  w.scale = owned.floats();
  w.sums = sums;
  w.table = reinterpret_cast<const std::int8_t*>(table_.data());
  const int n_tiles = w.kp / kDepth;
  pool_.run(static_cast<int>(outputs) / kPanel, [&](int panel, int) {
    std::int8_t tile[kTile8];
    for (int t = 0; t < n_tiles; ++t) {
      const std::size_t at = static_cast<std::size_t>(panel) * static_cast<std::size_t>(n_tiles) + static_cast<std::size_t>(t);
      const auto* packed = static_cast<const unsigned char*>(tiles) + at * (format == Format::i4 ? kTile4 : kTile8);
      if (format == Format::i4) {
        kernels_.unpack(packed, w.table, tile);
      } else {
        std::memcpy(tile, packed, sizeof tile);
      }
      for (int i = 0; i < kTile8; ++i) sums[panel * kPanel + i / kDepth] += tile[i];
    }
  });
}

void Model::set_table(const std::int8_t* table) {
  table_ = Buffer(256 * kCodes);
  std::memcpy(table_.data(), table, table_.size());
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
