// Tiles as layout.h describes them, for all sets but AVX2; after generic.inl and unpack_tile().

// 16 outputs, codes (16, kp) and group scales (16, kp / 32), to tiles.
void pack_panel(Format format, const std::uint8_t* codes, const std::uint8_t* groups, int kp,
                unsigned char* tiles) {
  for (int k = 0; k < kp; k += kDepth, tiles += format == Format::i8 ? kTile8 : kTile4) {
    if (format == Format::i8) {
      for (int n = 0; n < kPanel; ++n) std::memcpy(tiles + n * kDepth, codes + n * kp + k, kDepth);
      continue;
    }
    for (int i = 0; i < 2 * kPanel; ++i) {
      const int n = i % kPanel, first = k + i / kPanel * kGroup;
      const std::uint8_t* row = codes + n * kp + first;
      for (int j = 0; j < 16; ++j) tiles[16 * i + j] = static_cast<unsigned char>(row[j] | row[16 + j] << 4);
      tiles[kTile8 / 2 + i] = groups[n * (kp / kGroup) + first / kGroup];
    }
  }
}

// See kTile4. The tables are read 16 bytes at a time by the vector versions.
[[maybe_unused]] void unpack_plain(const std::uint8_t* tile, const std::int8_t* table, std::int8_t* out) {
  const std::uint8_t* scales = tile + kTile8 / 2;
  for (int group = 0; group < kDepth / kGroup; ++group) {
    for (int n = 0; n < kPanel; ++n) {
      const std::uint8_t* codes = tile + (group * kPanel + n) * kGroup / 2;
      for (int i = 0; i < kGroup; ++i) {
        const int code = codes[i % 16] >> (i / 16 * 4) & 15;
        out[n * kDepth + group * kGroup + i] = table[scales[group * kPanel + n] * kCodes + code];
      }
    }
  }
}

[[maybe_unused]] void unpack(Format format, const std::uint8_t* tile, std::int8_t* out) {
  if (format == Format::i4) return unpack_tile(tile, kTable.data(), out);
  std::memcpy(out, tile, kTile8);
}

// The int8 tiles of panel n / 16: as stored, or unpacked from int4 into scratch.
[[maybe_unused]] inline const std::int8_t* panel_tiles(const Linear& w, int n, unsigned char* scratch) {
  const auto tiles = static_cast<std::size_t>(w.kp / kDepth);
  const auto panel = static_cast<std::size_t>(n / kPanel);
  if (w.format == Format::i8) return static_cast<const std::int8_t*>(w.w) + panel * tiles * kTile8;
  const std::uint8_t* packed = static_cast<const std::uint8_t*>(w.w) + panel * tiles * kTile4;
  auto* out = reinterpret_cast<std::int8_t*>(scratch);
  for (std::size_t i = 0; i < tiles; ++i) unpack_tile(packed + i * kTile4, w.table, out + i * kTile8);
  return out;
}
