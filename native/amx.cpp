// AMX: tiles of 16 rows x 64 bytes, multiplied at 16 x 16 x 32 bfloat16 or 16 x 16 x 64 int8 products in 16 cycles
// (Intel 64 optimization manual, chapter 20).
//
// Weights are the first operand, 16 outputs x 64 bytes of inputs, straight from where they lie, row by row in the
// mapped file or tile by tile. Activations are the second, in columns: a token each, or two for int8 (see Acts).
// The product is therefore transposed, outputs x columns, and turned on its way out.
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own headers (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace kogpt {

namespace {

constexpr int kRows = 4, kCols = 2, kOffset = 0;
constexpr bool kHalfProducts = true;

#include "avx512.inl"

// The int8 and bfloat16 products of the shared code are never reached here: tiles do both.
struct I16 {
  static I16 zero() { return {}; }
};
inline I16 dot64(I16 a, const std::int8_t*, const std::int8_t*) { return a; }
inline std::int32_t sum(const I16&) { return 0; }
template <int C>
inline void half_block(const Linear&, const Acts&, int, int, float (*)[kPanel], int) {}

#include "generic.inl"

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Tiles 0..3: sums of two groups of outputs x two blocks of columns; 4, 5: weights; 6, 7: activations.
void configure(int columns0, int columns1) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    const int columns = tile == 4 || tile == 5 ? 16 : tile % 2 == 0 ? columns0 : columns1;
    config.row_bytes[tile] = static_cast<std::uint16_t>(4 * (columns > 0 ? columns : 1));
  }
  _tile_loadconfig(&config);
}

constexpr int planes_of(Format format) { return format == Format::bf16 ? 1 : kPlanes; }
constexpr int steps_of(Format format, int kp) { return format == Format::bf16 ? kp / 32 : kp / 64; }

// ---- activations: blocks of 16 columns, (steps, 16, columns, 4 bytes) ----

using Line = __m512i[16];

// 16 x 16 dwords, rows to columns.
inline void transpose(Line& v) {
  Line t;
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// `count` <= 16 rows of `bytes` each -> one block. count may be 1: then it is a copy.
void pack_block(const unsigned char* rows, std::size_t bytes, int count, unsigned char* out) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  for (std::size_t at = 0; at < bytes; at += 64) {
    Line v;
    for (int i = 0; i < 16; ++i) {
      v[i] = i < count ? _mm512_loadu_si512(rows + static_cast<std::size_t>(i) * bytes + at) : _mm512_setzero_si512();
    }
    transpose(v);
    unsigned char* to = out + at * static_cast<std::size_t>(count);
    for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(to + i * 4 * count, mask, v[i]);
  }
}

void round_token(const float* x, int kp, std::uint16_t* out) {
  for (int i = 0; i < kp; i += 32) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    _mm512_storeu_si512(out + i, std::bit_cast<__m512i>(pair));
  }
}

// A block of columns is at most 16 tokens of bfloat16 or 8 of int8.
void prepare_tiles(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* rows) {
  if (acts.format == Format::f32 || acts.format == Format::f16) return prepare_rows(x, ld, m0, m1, acts, rows);
  const bool half = acts.format == Format::bf16;
  const int planes = planes_of(acts.format), tokens = 16 / planes;
  const std::size_t row = static_cast<std::size_t>(acts.kp) * (half ? 2 : 1);
  auto* data = static_cast<unsigned char*>(acts.data);
  for (int m = m0; m < m1; m += tokens) {
    const int count = acts.m - m < tokens ? acts.m - m : tokens;
    for (int i = 0; i < count; ++i) {
      const float* token = x + static_cast<std::size_t>(m + i) * ld;
      unsigned char* to = rows + static_cast<std::size_t>(i * planes) * row;
      if (half) {
        round_token(token, acts.kp, reinterpret_cast<std::uint16_t*>(to));
      } else {
        auto* high = reinterpret_cast<std::int8_t*>(to);
        acts.scale[m + i] = quantize_token(token, acts.kp, high, high + row);
      }
    }
    pack_block(rows, row, count * planes, data + static_cast<std::size_t>(m * planes) * row);
  }
}

// ---- projections ----

template <Format kFormat>
inline void dot_tiles0() {
  if constexpr (kFormat == Format::bf16) _tile_dpbf16ps(0, 4, 6); else _tile_dpbssd(0, 4, 6);
}
template <Format kFormat>
inline void dot_tiles1() {
  if constexpr (kFormat == Format::bf16) _tile_dpbf16ps(1, 4, 7); else _tile_dpbssd(1, 4, 7);
}
template <Format kFormat>
inline void dot_tiles2() {
  if constexpr (kFormat == Format::bf16) _tile_dpbf16ps(2, 5, 6); else _tile_dpbssd(2, 5, 6);
}
template <Format kFormat>
inline void dot_tiles3() {
  if constexpr (kFormat == Format::bf16) _tile_dpbf16ps(3, 5, 7); else _tile_dpbssd(3, 5, 7);
}

// Where 16 outputs lie: `stride` bytes between outputs, `step` bytes between slices of 64 bytes of inputs.
struct Weights {
  const unsigned char* at[2];
  std::size_t stride;
  std::size_t step;
};

struct Columns {
  const unsigned char* at[2];
  int count[2];  // 0 where there is no second block
};

// Adds `steps` slices to the sums in tiles 0..3.
template <Format kFormat, bool kTwoGroups, bool kTwoBlocks>
inline void multiply(const Weights& w, const Columns& x, int steps) {
  const unsigned char *w0 = w.at[0], *w1 = w.at[1], *x0 = x.at[0], *x1 = x.at[1];
  const std::size_t row0 = 4 * static_cast<std::size_t>(x.count[0]), row1 = 4 * static_cast<std::size_t>(x.count[1]);
  for (int i = 0; i < steps; ++i, w0 += w.step, w1 += w.step, x0 += 16 * row0, x1 += 16 * row1) {
    _tile_loadd(6, x0, row0);
    _tile_loadd(4, w0, w.stride);
    dot_tiles0<kFormat>();
    if constexpr (kTwoGroups) {
      _tile_loadd(5, w1, w.stride);
      dot_tiles2<kFormat>();
    }
    if constexpr (kTwoBlocks) {
      _tile_loadd(7, x1, row1);
      dot_tiles1<kFormat>();
      if constexpr (kTwoGroups) dot_tiles3<kFormat>();
    }
  }
}

template <Format kFormat>
inline void multiply_any(const Weights& w, const Columns& x, int steps, bool two_groups) {
  const bool two_blocks = x.count[1] > 0;
  if (two_groups && two_blocks) return multiply<kFormat, true, true>(w, x, steps);
  if (two_groups) return multiply<kFormat, true, false>(w, x, steps);
  if (two_blocks) return multiply<kFormat, false, true>(w, x, steps);
  return multiply<kFormat, false, false>(w, x, steps);
}

// One tile of sums, (16 outputs, columns), to the tokens that its columns belong to.
template <Format kFormat>
void emit(const Linear& w, const Acts& acts, const unsigned char* tile, int columns, int n, int column, const Output& o) {
  Line v;
  if (columns == 1) {
    v[0] = _mm512_loadu_si512(tile);
  } else {
    for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(tile + 64 * i);
    transpose(v);
  }
  constexpr int planes = planes_of(kFormat);
  for (int c = 0; c < columns; c += planes) {
    const int m = (column + c) / planes;
    alignas(64) float y[kPanel];
    if constexpr (kFormat == Format::bf16) {
      _mm512_store_si512(y, v[c]);
    } else {
      const __m512 low = _mm512_mul_ps(_mm512_cvtepi32_ps(v[c + 1]), _mm512_set1_ps(kLowStep));
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(acts.scale[m]), _mm512_loadu_ps(w.scale + n));
      _mm512_store_ps(y, _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(v[c]), low), scale));
    }
    finish(y, o, m, n, w.n);
  }
}

template <Format kFormat>
void emit_all(const Linear& w, const Acts& acts, const Columns& x, int n, int column, bool two_groups, const Output& o) {
  alignas(64) unsigned char tiles[4][1024];
  const auto stride = [&](int block) { return static_cast<std::size_t>(x.count[block] == 1 ? 4 : 64); };
  _tile_stored(0, tiles[0], stride(0));
  if (x.count[1] > 0) _tile_stored(1, tiles[1], stride(1));
  if (two_groups) _tile_stored(2, tiles[2], stride(0));
  if (two_groups && x.count[1] > 0) _tile_stored(3, tiles[3], stride(1));
  for (int group = 0; group < (two_groups ? 2 : 1); ++group) {
    for (int block = 0; block < 2 && x.count[block] > 0; ++block) {
      emit<kFormat>(w, acts, tiles[2 * group + block], x.count[block], n + 16 * group, column + 16 * block, o);
    }
  }
}

constexpr int kInner = 16;       // slices of two blocks of columns that stay in the first-level cache: 32 KB
constexpr int kOuter = 64;       // slices of kTaskRows outputs that stay in the second-level cache: 1 MB
constexpr int kTaskRows = 256;
constexpr int kTaskColumns = 1024;
constexpr std::size_t kUnpackedBytes = std::size_t{kTaskRows} * kOuter * 64;
constexpr std::size_t kSumBytes = std::size_t{kTaskRows} * kTaskColumns * 4;

// The outputs of a task, for all columns.
template <Format kFormat>
class Pass {
 public:
  Pass(const Linear& w, const Acts& acts, const Output& o, unsigned char* scratch)
      : w_(w), acts_(acts), o_(o), scratch_(scratch), columns_(acts.m * planes_of(kFormat)) {}

  void run(int n0, int n1) {
    if (columns_ <= 32) return narrow(n0, n1);
    for (int n = n0; n < n1; n += kTaskRows) {
      for (int column = 0; column < columns_; column += kTaskColumns) {
        wide(n, n + kTaskRows < n1 ? n + kTaskRows : n1, column);
      }
    }
  }

  // A few columns, as in decoding: weights pass once and int4 is unpacked as it is used.
  void narrow(int n0, int n1) {
    const Columns x = columns(0);
    shape(x);
    for (int n = n0; n < n1; n += 32) {
      const bool two_groups = n + 16 < n1;
      clear();
      if (w_.format == Format::i4) {
        slices(n, x, two_groups);
      } else {
        multiply_any<kFormat>(weights(n), x, steps(), two_groups);
      }
      emit_all<kFormat>(w_, acts_, x, n, 0, two_groups, o_);
    }
  }

  // Blocked over inputs twice: 64 slices of the weights stay near while all columns pass, and 16 slices of two blocks
  // of columns nearer still while the weights pass. Sums wait in scratch, a tile of 1 KB each.
  void wide(int n0, int n1, int column0) {
    const int column1 = column0 + kTaskColumns < columns_ ? column0 + kTaskColumns : columns_;
    for (int outer = 0; outer < steps(); outer += kOuter) {
      const int end = outer + kOuter < steps() ? outer + kOuter : steps();
      if (w_.format == Format::i4) unpack_all(n0, n1, outer, end);
      for (int column = column0; column < column1; column += 32) {
        const Columns x = columns(column);
        shape(x);
        for (int inner = outer; inner < end; inner += kInner) {
          const int count = end - inner < kInner ? end - inner : kInner;
          for (int n = n0; n < n1; n += 32) {
            const std::size_t pair = static_cast<std::size_t>((n - n0) / 32 * (kTaskColumns / 32) + (column - column0) / 32);
            unsigned char* sums = scratch_ + kUnpackedBytes + pair * 4096;
            inner == 0 ? clear() : resume(sums);
            multiply_any<kFormat>(weights_from(n, n0, outer, end, inner), from(x, inner), count, n + 16 < n1);
            if (inner + count == steps()) {
              emit_all<kFormat>(w_, acts_, x, n, column, n + 16 < n1, o_);
            } else {
              suspend(sums);
            }
          }
        }
      }
    }
  }

 private:
  static constexpr int kSlices = 16;  // 16 KB of unpacked int4 per group of outputs

  int steps() const { return steps_of(kFormat, w_.kp); }

  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  static void suspend(unsigned char* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 1024, 64);
    _tile_stored(2, sums + 2048, 64);
    _tile_stored(3, sums + 3072, 64);
  }

  static void resume(const unsigned char* sums) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 1024, 64);
    _tile_loadd(2, sums + 2048, 64);
    _tile_loadd(3, sums + 3072, 64);
  }

  static Columns from(Columns x, int slice) {
    for (int block = 0; block < 2; ++block) x.at[block] += 64 * slice * x.count[block];
    return x;
  }

  // Slices [outer, end) of a task's int4, group after group of 16 outputs.
  void unpack_all(int n0, int n1, int outer, int end) {
    auto* out = reinterpret_cast<std::int8_t*>(scratch_);
    for (int n = n0; n < n1; n += 16) {
      const std::size_t tile = static_cast<std::size_t>(n) / 16 * static_cast<std::size_t>(steps());
      const auto* source = static_cast<const std::uint8_t*>(w_.w) + (tile + static_cast<std::size_t>(outer)) * kTile4;
      for (int i = outer; i < end; ++i, source += kTile4, out += kTile8) unpack_tile(source, w_.table, out);
    }
  }

  Weights weights_from(int n, int n0, int outer, int end, int inner) const {
    Weights w = weights(n);
    if (w_.format == Format::i4) {
      const auto group = static_cast<std::size_t>(end - outer) * kTile8;
      w.at[0] = scratch_ + static_cast<std::size_t>(n - n0) / 16 * group;
      w.at[1] = w.at[0] + group;
      inner -= outer;
    }
    for (auto& at : w.at) at += static_cast<std::size_t>(inner) * w.step;
    return w;
  }

  void slices(int n, Columns x, bool two_groups) {
    for (int from = 0; from < steps(); from += kSlices) {
      const int count = steps() - from < kSlices ? steps() - from : kSlices;
      unpack(n, two_groups, from, count);
      multiply_any<kFormat>(unpacked(), x, count, two_groups);
      for (int block = 0; block < 2; ++block) x.at[block] += 64 * count * x.count[block];
    }
  }

  void unpack(int n, bool two_groups, int from, int count) {
    const auto all = static_cast<std::size_t>(steps());
    for (int group = 0; group < (two_groups ? 2 : 1); ++group) {
      const std::size_t tile = (static_cast<std::size_t>(n) / 16 + static_cast<std::size_t>(group)) * all;
      const auto* source = static_cast<const std::uint8_t*>(w_.w) + (tile + static_cast<std::size_t>(from)) * kTile4;
      auto* out = reinterpret_cast<std::int8_t*>(scratch_ + static_cast<std::size_t>(group) * all * kTile8);
      for (int i = 0; i < count; ++i) unpack_tile(source + i * kTile4, w_.table, out + i * kTile8);
    }
  }

  Weights unpacked() const {
    return {{scratch_, scratch_ + static_cast<std::size_t>(steps()) * kTile8}, 64, kTile8};
  }

  Weights weights(int n) const {
    if (w_.format == Format::i4) return unpacked();
    const auto* base = static_cast<const unsigned char*>(w_.w);
    const std::size_t row = static_cast<std::size_t>(w_.kp) * (kFormat == Format::bf16 ? 2 : 1);
    base += static_cast<std::size_t>(n) * row;
    if (kFormat == Format::bf16) return {{base, base + 16 * row}, row, 64};
    return {{base, base + 16 * row}, 64, kTile8};
  }

  Columns columns(int column) const {
    const std::size_t bytes = static_cast<std::size_t>(steps()) * 64;
    const auto* base = static_cast<const unsigned char*>(acts_.data) + static_cast<std::size_t>(column) * bytes;
    const int left = columns_ - column;
    const int first = left < 16 ? left : 16, second = left - first < 16 ? left - first : 16;
    return {{base, base + 16 * bytes}, {first, second}};
  }

  void shape(const Columns& x) {
    if (x.count[0] == shaped_[0] && x.count[1] == shaped_[1]) return;
    configure(x.count[0], x.count[1]);
    shaped_[0] = x.count[0];
    shaped_[1] = x.count[1];
  }

  const Linear& w_;
  const Acts& acts_;
  const Output& o_;
  unsigned char* scratch_;
  int columns_;
  int shaped_[2] = {-1, -1};
};

template <Format kFormat>
void linear_format(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  Pass<kFormat>(w, acts, o, scratch).run(n0, n1);
  _tile_release();
}

void linear_tiles(const Linear& w, const Acts& acts, int n0, int n1, const Output& o, unsigned char* scratch) {
  if (w.format == Format::bf16) return linear_format<Format::bf16>(w, acts, n0, n1, o, scratch);
  if (w.format == Format::i8 || w.format == Format::i4) return linear_format<Format::i8>(w, acts, n0, n1, o, scratch);
  linear_rows(w, acts, n0, n1, o, scratch);
}

std::size_t scratch_tiles(int kp, int d) {
  const std::size_t two_panels = static_cast<std::size_t>(kp) * 2 * kPanel;
  const std::size_t rows = scratch_rows(kp, d), blocks = kUnpackedBytes + kSumBytes;
  const std::size_t most = two_panels > rows ? two_panels : rows;
  return most > blocks ? most : blocks;
}

}  // namespace

const Kernels kAmx = {"amx",       layer_norm,  prepare_tiles, linear_tiles, store_rows,
                      attend_rows, scratch_tiles, quantize_panel, search_scale, pack_panel, unpack_tile, widen};

}  // namespace kogpt
