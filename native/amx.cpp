// AMX: tiles of 16 rows x 64 bytes, multiplied at 16 x 16 x 32 bfloat16 or 16 x 16 x 64 int8 products in 16
// cycles (Intel 64 optimization manual, chapter 20).
//
// Weights are the first operand, 16 outputs x 64 bytes of inputs, straight from where they lie, row by row in
// the mapped file or tile by tile. Activations are the second, a token to a column. The product is therefore
// transposed, outputs x columns, and turned on its way out.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "codebook.h"
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

// The int8 products of the shared code are never reached here: tiles do them.
struct I16 {
  static I16 zero() { return {}; }
};
inline I16 dot64(I16 a, const std::int8_t*, const std::int8_t*) { return a; }
inline std::int32_t sum(const I16&) { return 0; }

#include "generic.inl"
#include "tiles.inl"
#include "rows.inl"
#include "avx512_many.inl"

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

constexpr int steps_of(Format format, int kp) { return format == Format::bf16 ? kp / 32 : kp / 64; }

// ---- activations: blocks of 16 columns, (steps, 16, columns, 4 bytes) ----

// `count` <= 16 rows of `bytes` each -> one block. count may be 1: then it is a copy.
void pack_block(const unsigned char* rows, std::size_t bytes, int count, unsigned char* out) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  for (std::size_t at = 0; at < bytes; at += 64) {
    Line v;
    for (int i = 0; i < 16; ++i) {
      v[i] = i < count ? _mm512_loadu_si512(rows + static_cast<std::size_t>(i) * bytes + at)
                       : _mm512_setzero_si512();
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

// A block of columns is 16 tokens. The high plane of a block without outliers is not written.
void prepare_tiles(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch) {
  if (acts.format == Format::f32 || acts.format == Format::f16) {
    return (acts.m < kMany ? prepare_rows : prepare_stripes)(x, ld, m0, m1, acts, scratch);
  }
  const bool half = acts.format == Format::bf16;
  const auto kp = static_cast<std::size_t>(acts.kp), row = kp * (half ? 2 : 1);
  auto* maxima = reinterpret_cast<float*>(scratch + 32 * kp);  // after the rows of both planes
  for (int m = m0; m < m1; m += 16) {
    const int count = acts.m - m < 16 ? acts.m - m : 16;
    unsigned char* high = scratch + 16 * kp;  // after the low rows
    bool outliers = false;
    for (int i = 0; i < count; ++i) {
      const float* token = x + static_cast<std::size_t>(m + i) * ld;
      const auto at = static_cast<std::size_t>(i) * row;
      if (half) {
        round_token(token, acts.kp, reinterpret_cast<std::uint16_t*>(scratch + at));
      } else {
        acts.token(m + i) =
            quantize_token(token, acts.kp, acts.format, reinterpret_cast<std::int8_t*>(scratch + at),
                           reinterpret_cast<std::int8_t*>(high + at), acts.blocks(m + i), maxima);
        outliers |= acts.token(m + i).outliers;
      }
    }
    unsigned char* to = acts.data + static_cast<std::size_t>(m) * row;
    pack_block(scratch, row, count, to);
    if (outliers) pack_block(high, row, count, to + acts.plane_bytes());
  }
}

// ---- projections ----

template <Format kFormat>
inline void dot_tiles0() {
  if constexpr (kFormat == Format::bf16)
    _tile_dpbf16ps(0, 4, 6);
  else
    _tile_dpbssd(0, 4, 6);
}
template <Format kFormat>
inline void dot_tiles1() {
  if constexpr (kFormat == Format::bf16)
    _tile_dpbf16ps(1, 4, 7);
  else
    _tile_dpbssd(1, 4, 7);
}
template <Format kFormat>
inline void dot_tiles2() {
  if constexpr (kFormat == Format::bf16)
    _tile_dpbf16ps(2, 5, 6);
  else
    _tile_dpbssd(2, 5, 6);
}
template <Format kFormat>
inline void dot_tiles3() {
  if constexpr (kFormat == Format::bf16)
    _tile_dpbf16ps(3, 5, 7);
  else
    _tile_dpbssd(3, 5, 7);
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
  const std::size_t row0 = 4 * static_cast<std::size_t>(x.count[0]),
                    row1 = 4 * static_cast<std::size_t>(x.count[1]);
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

// One tile of sums, (16 outputs, tokens), to where they go; high: those of the high planes, nullptr if there
// are none.
template <Format kFormat>
void emit(const Linear& w, const Acts& acts, const unsigned char* low, const unsigned char* high, int tokens,
          int n, int m, const Output& o) {
  Line lows, highs;
  const auto load = [&](const unsigned char* tile, Line& v) {
    for (int i = 0; i < (tokens == 1 ? 1 : 16); ++i) v[i] = _mm512_loadu_si512(tile + 64 * i);
    if (tokens > 1) transpose(v);
  };
  load(low, lows);
  if (high != nullptr) load(high, highs);
  for (int c = 0; c < tokens; ++c) {
    if constexpr (kFormat == Format::bf16) {
      finish(F16{_mm512_castsi512_ps(lows[c])}, o, m + c, n, w.n);
    } else {
      __m512i total = lows[c];
      if (high != nullptr)
        total = _mm512_add_epi32(total, _mm512_mullo_epi32(_mm512_set1_epi32(kHighStep), highs[c]));
      const __m512 y = _mm512_cvtepi32_ps(total);
      const __m512 scale =
          _mm512_mul_ps(_mm512_set1_ps(acts.token(m + c).scale), _mm512_loadu_ps(w.scale + n));
      finish(F16{_mm512_mul_ps(y, scale)}, o, m + c, n, w.n);
    }
  }
}

// The sums of tiles 0..3, (two groups, two blocks).
struct Sums {
  alignas(64) unsigned char tiles[2][2][1024];
};

void store_sums(const Columns& x, bool two_groups, Sums& sums) {
  const auto stride = [&](int block) { return static_cast<std::size_t>(x.count[block] == 1 ? 4 : 64); };
  _tile_stored(0, sums.tiles[0][0], stride(0));
  if (x.count[1] > 0) _tile_stored(1, sums.tiles[0][1], stride(1));
  if (two_groups) _tile_stored(2, sums.tiles[1][0], stride(0));
  if (two_groups && x.count[1] > 0) _tile_stored(3, sums.tiles[1][1], stride(1));
}

constexpr int kInner = 16;  // slices of two blocks of columns that stay in the first-level cache: 32 KB
constexpr int kOuter = 64;  // slices of kTaskRows outputs that stay in the second-level cache: 1 MB
constexpr int kTaskRows = 256;
constexpr int kTaskColumns = 1024;
constexpr std::size_t kUnpackedBytes = std::size_t{kTaskRows} * kOuter * 64;
constexpr std::size_t kSumBytes = std::size_t{kTaskRows} * kTaskColumns * 4;

// The outputs of a task, for all columns.
template <Format kFormat>
class Pass {
 public:
  Pass(const Linear& w, const Acts& acts, const Output& o, unsigned char* scratch)
      : w_(w), acts_(acts), o_(o), scratch_(scratch), columns_(acts.m) {}

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
      emit_all(x, n, 0, two_groups);
    }
  }

  // Blocked over inputs twice: 64 slices of the weights stay near while all columns pass, and 16 slices of
  // two blocks of columns nearer still while the weights pass. Sums wait in scratch, a tile of 1 KB each.
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
            const std::size_t pair =
                static_cast<std::size_t>((n - n0) / 32 * (kTaskColumns / 32) + (column - column0) / 32);
            unsigned char* sums = scratch_ + kUnpackedBytes + pair * 4096;
            inner == 0 ? clear() : resume(sums);
            multiply_any<kFormat>(weights_from(n, n0, outer, end, inner), from(x, inner), count, n + 16 < n1);
            if (inner + count == steps()) {
              emit_all(x, n, column, n + 16 < n1);
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

  void emit_all(const Columns& x, int n, int column, bool two_groups) {
    Sums low, high;
    store_sums(x, two_groups, low);
    bool outliers = false;
    if constexpr (kFormat != Format::bf16) outliers = multiply_outliers(x, n, column, two_groups);
    if (outliers) store_sums(x, two_groups, high);
    for (int group = 0; group < (two_groups ? 2 : 1); ++group) {
      for (int block = 0; block < 2 && x.count[block] > 0; ++block) {
        emit<kFormat>(w_, acts_, low.tiles[group][block], outliers ? high.tiles[group][block] : nullptr,
                      x.count[block], n + 16 * group, column + 16 * block, o_);
      }
    }
  }

  // The high planes of these columns, in the slices that any of them has; false if there are none.
  bool multiply_outliers(Columns x, int n, int column, bool two_groups) {
    const int m1 = column + x.count[0] + x.count[1];
    bool written[2] = {};  // prepare_tiles leaves out whole blocks
    for (int m = column; m < m1; ++m) written[(m - column) / 16] |= acts_.token(m).outliers;
    if (!written[0] && !written[1]) return false;
    clear();
    for (int block = 0; block < 2; ++block) {
      x.at[block] = written[block] ? x.at[block] + acts_.plane_bytes() : zeros();
    }
    for (int slice = 0; slice < steps(); ++slice) {
      bool any = false;
      for (int m = column; m < m1; ++m) any |= (acts_.blocks(m)[slice / 64] >> (slice % 64) & 1) != 0;
      if (!any) continue;
      Columns here = from(x, slice);
      for (int block = 0; block < 2; ++block) {
        if (!written[block]) here.at[block] = zeros();
      }
      multiply_any<kFormat>(weights_of_slice(n, slice, two_groups), here, 1, two_groups);
    }
    return true;
  }

  static const unsigned char* zeros() {
    alignas(64) static const unsigned char tile[1024] = {};
    return tile;
  }

  // One slice of both groups, unpacked if they are int4.
  Weights weights_of_slice(int n, int slice, bool two_groups) {
    Weights w = weights(n);
    for (int group = 0; group < (two_groups ? 2 : 1); ++group) {
      if (w_.format != Format::i4) {
        w.at[group] += static_cast<std::size_t>(slice) * kTile8;
        continue;
      }
      const std::size_t tile = (static_cast<std::size_t>(n) / 16 + static_cast<std::size_t>(group)) *
                                   static_cast<std::size_t>(steps()) +
                               static_cast<std::size_t>(slice);
      unpack_tile(static_cast<const std::uint8_t*>(w_.w) + tile * kTile4, w_.table,
                  reinterpret_cast<std::int8_t*>(slice_[group]));
      w.at[group] = slice_[group];
    }
    return w;
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
      const auto* source =
          static_cast<const std::uint8_t*>(w_.w) + (tile + static_cast<std::size_t>(outer)) * kTile4;
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
      const auto* source =
          static_cast<const std::uint8_t*>(w_.w) + (tile + static_cast<std::size_t>(from)) * kTile4;
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
    const unsigned char* base = acts_.data + static_cast<std::size_t>(column) * bytes;
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
  alignas(64) unsigned char slice_[2][kTile8];
};

template <Format kFormat>
void linear_format(const Linear& w, const Acts& acts, int n0, int n1, const Output& o,
                   unsigned char* scratch) {
  Pass<kFormat>(w, acts, o, scratch).run(n0, n1);
  _tile_release();
}

void linear_tiles(const Linear& w, const Acts& acts, int n0, int n1, const Output& o,
                  unsigned char* scratch) {
  if (w.format == Format::bf16) return linear_format<Format::bf16>(w, acts, n0, n1, o, scratch);
  if (w.format == Format::i8 || w.format == Format::i4)
    return linear_format<Format::i8>(w, acts, n0, n1, o, scratch);
  (acts.m < kMany ? linear_rows : linear_stripes)(w, acts, n0, n1, o, scratch);
}

std::size_t scratch_tiles(int kp, int d) {
  const std::size_t two_panels = static_cast<std::size_t>(kp) * (2 * kPanel + 1);
  const std::size_t stripe = static_cast<std::size_t>(kp) * kStripe * sizeof(float);
  return std::max({two_panels, stripe, scratch_rows(kp, d), kUnpackedBytes + kSumBytes});
}

}  // namespace

const Kernels kAmx = {"amx",      layer_norm,  prepare_tiles, linear_tiles, compress,      expand,
                      store_rows, attend_rows, scratch_tiles, quantize_row, search_scales, pack_panel,
                      unpack,     widen,       highest,       scale,        screen,        weigh};

}  // namespace kogpt
