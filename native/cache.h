// Keys and values of every row, in blocks of 32 positions that rows share.
//
// A block holds all layers and heads of its positions. `fork` shares blocks by count; a block that more than
// one row holds is copied by the first of them that writes into it. A row's own last block is the only one
// written.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "buffer.h"
#include "layout.h"

namespace kogpt {

constexpr int kNoAdapter = -1;

class Cache {
 public:
  // Offsets within a block are (layer, head, keys then values), see kHeadStep for the innermost layout.
  Cache(int n_layers, int n_heads, int d_head, Format format);

  // adapter: handle that the row and its forks keep, or kNoAdapter.
  int open(int adapter = kNoAdapter);
  int fork(int row, int length);
  void close(int row);
  // Forgets the positions of a row from `length` on.
  void truncate(int row, int length);
  bool holds(int row) const;
  int adapter(int row) const { return rows_[static_cast<std::size_t>(row)].adapter; }
  // Whether a row was opened with an adapter.
  bool uses(int adapter) const;
  int length(int row) const { return rows_[static_cast<std::size_t>(row)].length; }

  // Blocks that `reserve` would allocate.
  int blocks_needed(int row, int tokens) const;
  // Makes the next `tokens` positions of a row writable; `advance` counts them as read.
  void reserve(int row, int tokens);
  // Whether the row's last block may hold keys and values of positions that it has not read, left by a row
  // that was longer or by a pass that ran out of memory; the caller clears them. Asked once after each
  // reserve.
  bool take_stale(int row);
  void advance(int row, int tokens) { rows_[static_cast<std::size_t>(row)].length += tokens; }

  // The row's blocks, to be indexed by position / kBlock; valid until the row's next reserve.
  unsigned char* const* blocks(int row) const { return rows_[static_cast<std::size_t>(row)].data.data(); }

  std::size_t keys(int layer, int head) const { return head_bytes_ * 2 * index(layer, head); }
  std::size_t values(int layer, int head) const { return head_bytes_ * (2 * index(layer, head) + 1); }
  std::size_t block_bytes() const { return block_bytes_; }
  Format format() const { return format_; }

 private:
  struct Row {
    bool open = false;
    int adapter = kNoAdapter;
    int length = 0;
    bool stale = false;
    std::vector<std::shared_ptr<Buffer>> blocks;
    std::vector<unsigned char*> data;  // of each block
  };

  std::size_t index(int layer, int head) const {
    return static_cast<std::size_t>(layer) * static_cast<std::size_t>(n_heads_) +
           static_cast<std::size_t>(head);
  }
  bool last_is_shared(const Row& row) const;

  int n_heads_;
  Format format_;
  std::size_t head_bytes_;
  std::size_t block_bytes_;
  std::vector<Row> rows_;
};

}  // namespace kogpt
