// Weights as the kernels want them: borrowed where the file's layout is already that, else converted.
#include "weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"

namespace kogpt {

namespace {

constexpr std::size_t kCopy = std::size_t{2} << 20;  // bytes that one task copies

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

// Row n of a matrix as float32; the padding of `row` is zero.
void widen_row(const Kernels& kernels, const Source& from, int n, std::vector<float>& row) {
  const auto k = static_cast<std::size_t>(from.k);
  const auto* source =
      static_cast<const unsigned char*>(from.data) + static_cast<std::size_t>(n) * k * width_of(from.format);
  kernels.widen(from.format, source, k, row.data());
  std::fill(row.begin() + from.k, row.end(), 0.0f);
}

bool is_quantized(Format format) { return format == Format::i8 || format == Format::i4; }

}  // namespace

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

std::size_t stored_bytes(Format format, int n, int k) {
  const auto tiles = static_cast<std::size_t>(round_up(n, kPanel) / kPanel) *
                     static_cast<std::size_t>(round_up(k, kDepth) / kDepth);
  if (format == Format::i4) return tiles * kTile4;
  return tiles * kTile8 * (format == Format::i8 ? 1 : width_of(format));
}

void quantize(Pool& pool, const Kernels& kernels, const Source& from, const float* importance,
              const Codes& to) {
  const int kp = round_up(from.k, kDepth);
  const auto width = static_cast<std::size_t>(kp), k = static_cast<std::size_t>(from.k);
  std::vector<float> weights(importance == nullptr ? 0 : width);
  if (importance != nullptr) std::copy(importance, importance + k, weights.begin());
  const float* padded = importance == nullptr ? nullptr : weights.data();
  pool.run((from.n + kPanel - 1) / kPanel, [&](int panel, int) {
    std::vector<float> row(width);
    std::vector<std::uint8_t> codes(width), groups(width / kGroup);
    for (int n = panel * kPanel; n < from.n && n < (panel + 1) * kPanel; ++n) {
      const auto at = static_cast<std::size_t>(n);
      widen_row(kernels, from, n, row);
      to.scales[at] = kernels.quantize(to.format, row.data(), kp, padded, codes.data(), groups.data());
      if (to.format == Format::i8) {
        std::memcpy(to.codes + at * k, codes.data(), k);
        continue;
      }
      std::uint8_t* pairs = to.codes + at * ((k + 1) / 2);
      if (k % 2 != 0) codes[k] = 0;
      for (std::size_t i = 0; i < (k + 1) / 2; ++i) {
        pairs[i] = static_cast<std::uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
      }
      const std::size_t n_groups = (k + kGroup - 1) / kGroup;
      std::memcpy(to.groups + at * n_groups, groups.data(), n_groups);
    }
  });
}

// Room for projection `index` in the model's format. All lie in one piece, so that all but its end is in huge
// pages.
unsigned char* Model::own(int index) {
  if (owned_.data() == nullptr) owned_ = Buffer(places_.back(), Buffer::kUnset);
  return owned_.data() + places_[static_cast<std::size_t>(index)];
}

bool Model::load_projection(int index, Format from, const void* source) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  w.format = format_;
  const bool aligned = reinterpret_cast<std::uintptr_t>(source) % width_of(from) == 0;
  if (from == w.format && w.k == w.kp && w.n % kPanel == 0 && aligned) {
    const std::size_t bytes = stored_bytes(from, w.n, w.k);
    if (!Buffer::huge(bytes)) {
      w.w = source;
      return true;
    }
    unsigned char* data = own(index);
    pool_.run(static_cast<int>((bytes + kCopy - 1) / kCopy), [&](int i, int) {
      const std::size_t at = static_cast<std::size_t>(i) * kCopy;
      std::memcpy(data + at, static_cast<const unsigned char*>(source) + at, std::min(kCopy, bytes - at));
    });
    w.w = data;
    return false;
  }
  if (is_quantized(format_)) {
    make_tiles(index, [&](int n, std::vector<float>& row, std::uint8_t* codes, std::uint8_t* groups) {
      widen_row(kernels_, {from, source, w.n, w.k}, n, row);
      return kernels_.quantize(w.format, row.data(), w.kp, nullptr, codes, groups);
    });
    return false;
  }
  unsigned char* data = own(index);
  convert(w, from, source, data);
  w.w = data;
  return false;
}

// Row by row to the model's format, padded with zeros.
void Model::convert(const Linear& w, Format from, const void* source, unsigned char* out) {
  const auto kp = static_cast<std::size_t>(w.kp), k = static_cast<std::size_t>(w.k);
  pool_.run((w.n + kPanel - 1) / kPanel, [&](int panel, int) {
    std::vector<float> wide(k);
    const std::size_t bytes = kPanel * kp * width_of(w.format);
    std::memset(out + static_cast<std::size_t>(panel) * bytes, 0, bytes);
    for (int n = panel * kPanel; n < w.n && n < (panel + 1) * kPanel; ++n) {
      const auto at = static_cast<std::size_t>(n);
      kernels_.widen(from, static_cast<const unsigned char*>(source) + at * k * width_of(from), k,
                     wide.data());
      narrow(w.format, wide.data(), w.k, out + at * kp * width_of(w.format));
    }
  });
}

void Model::load_codes(int index, const std::uint8_t* codes, const std::uint8_t* groups,
                       const float* scales) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  w.format = format_;
  const auto k = static_cast<std::size_t>(w.k), pairs = (k + 1) / 2, n_groups = (k + kGroup - 1) / kGroup;
  if (w.format == Format::i8 && w.k == w.kp && w.n % kPanel == 0) {  // rows as `pack` takes them
    const Room room = place(index);
    std::memcpy(room.scales, scales, static_cast<std::size_t>(w.n) * sizeof(float));
    pool_.run(w.n / kPanel, [&](int panel, int) {
      const std::size_t at = static_cast<std::size_t>(panel) * kPanel * k;
      kernels_.pack(w.format, codes + at, nullptr, w.kp, room.tiles + at);
    });
    return;
  }
  make_tiles(index, [&](int n, std::vector<float>&, std::uint8_t* to, std::uint8_t* group_scales) {
    const auto at = static_cast<std::size_t>(n);
    if (w.format == Format::i8) {
      std::memcpy(to, codes + at * k, k);
    } else {
      const std::uint8_t* row = codes + at * pairs;
      for (std::size_t i = 0; i < pairs; ++i) {
        to[2 * i] = row[i] & 15;
        to[2 * i + 1] = row[i] >> 4;
      }
      std::memcpy(group_scales, groups + at * n_groups, n_groups);
    }
    return scales[at];
  });
}

// Where a quantised projection's tiles and scales go.
Model::Room Model::place(int index) {
  Linear& w = projections_[static_cast<std::size_t>(index)];
  const auto outputs = static_cast<std::size_t>(round_up(w.n, kPanel));
  Buffer& scales = owned_scales_[static_cast<std::size_t>(index)] = Buffer(outputs * sizeof(float));
  unsigned char* tiles = own(index);
  w.w = tiles;
  w.scale = scales.floats();
  w.table = kTable.data();
  return {tiles, scales.floats()};
}

// Tiles of a quantised projection, panel by panel. code_row(n, row, codes, groups) -> scale gives output n:
// kp codes and kp / 32 group scales; `row` is room for kp floats.
template <class F>
void Model::make_tiles(int index, const F& code_row) {
  const Linear& w = projections_[static_cast<std::size_t>(index)];
  const auto width = static_cast<std::size_t>(w.kp);
  const Room room = place(index);
  const std::size_t panel_bytes = stored_bytes(w.format, kPanel, w.k);
  pool_.run(round_up(w.n, kPanel) / kPanel, [&](int panel, int) {
    std::vector<float> row(width);
    std::vector<std::uint8_t> codes(width * kPanel), groups(width / kGroup * kPanel);
    for (std::size_t r = 0; r < kPanel && panel * kPanel + static_cast<int>(r) < w.n; ++r) {
      const int n = panel * kPanel + static_cast<int>(r);
      room.scales[n] = code_row(n, row, codes.data() + r * width, groups.data() + r * width / kGroup);
    }
    kernels_.pack(w.format, codes.data(), groups.data(), w.kp,
                  room.tiles + static_cast<std::size_t>(panel) * panel_bytes);
  });
}

void Model::load_vector(int index, const float* source) {
  const int width = index == dims_.n_layers * kVectors + 2                               ? dims_.n_vocab
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
