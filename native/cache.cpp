#include "cache.h"

#include <algorithm>
#include <utility>

namespace kogpt {

Cache::Cache(int n_layers, int n_heads, int d_head, Format format)
    : n_heads_(n_heads),
      format_(format),
      head_bytes_(head_bytes(format, d_head)),
      block_bytes_(head_bytes_ * 2 * static_cast<std::size_t>(n_layers) * static_cast<std::size_t>(n_heads)) {
}

int Cache::open(int adapter) {
  std::size_t row = 0;
  while (row < rows_.size() && rows_[row].open) ++row;
  if (row == rows_.size()) rows_.emplace_back();
  rows_[row].open = true;
  rows_[row].adapter = adapter;
  return static_cast<int>(row);
}

int Cache::fork(int parent, int length) {
  const Row& from = rows_[static_cast<std::size_t>(parent)];
  const auto count = static_cast<std::ptrdiff_t>((length + kBlock - 1) / kBlock);
  Row to;  // opened last: memory may end before
  to.open = true;
  to.adapter = from.adapter;
  to.length = length;
  to.stale = length % kBlock != 0 && (from.stale || from.length > length);
  to.blocks.assign(from.blocks.begin(), from.blocks.begin() + count);
  to.data.assign(from.data.begin(), from.data.begin() + count);
  const int child = open();
  rows_[static_cast<std::size_t>(child)] = std::move(to);
  return child;
}

void Cache::close(int row) { rows_[static_cast<std::size_t>(row)] = Row{}; }

void Cache::truncate(int handle, int length) {
  Row& row = rows_[static_cast<std::size_t>(handle)];
  const auto count = static_cast<std::size_t>((length + kBlock - 1) / kBlock);
  row.stale = length % kBlock != 0;  // a pass that ran out of memory may have written beyond its length
  row.length = length;
  row.blocks.resize(count);
  row.data.resize(count);
}

bool Cache::take_stale(int handle) {
  return std::exchange(rows_[static_cast<std::size_t>(handle)].stale, false);
}

bool Cache::holds(int row) const {
  return row >= 0 && static_cast<std::size_t>(row) < rows_.size() &&
         rows_[static_cast<std::size_t>(row)].open;
}

bool Cache::uses(int adapter) const {
  return std::any_of(rows_.begin(), rows_.end(),
                     [&](const Row& row) { return row.open && row.adapter == adapter; });
}

bool Cache::last_is_shared(const Row& row) const {
  const int last = row.length / kBlock;
  return row.length % kBlock != 0 && row.blocks[static_cast<std::size_t>(last)].use_count() > 1;
}

int Cache::blocks_needed(int row, int tokens) const {
  const Row& from = rows_[static_cast<std::size_t>(row)];
  const int whole = (from.length + tokens + kBlock - 1) / kBlock;
  const int missing =
      whole - static_cast<int>(from.blocks.size());  // negative after a step that ran out of memory
  return std::max(missing, 0) + (last_is_shared(from) ? 1 : 0);
}

void Cache::reserve(int handle, int tokens) {
  Row& row = rows_[static_cast<std::size_t>(handle)];
  if (last_is_shared(row)) {
    const auto last = static_cast<std::size_t>(row.length / kBlock);
    auto copy = std::make_shared<Buffer>(block_bytes_);
    std::memcpy(copy->data(), row.blocks[last]->data(), block_bytes_);
    row.data[last] = copy->data();
    row.blocks[last] = std::move(copy);
  }
  const auto count = static_cast<std::size_t>((row.length + tokens + kBlock - 1) / kBlock);
  row.blocks.reserve(count);  // nothing but a block fails below: both lists stay equally long
  row.data.reserve(count);
  while (row.blocks.size() < count) {
    row.blocks.push_back(std::make_shared<Buffer>(block_bytes_));
    row.data.push_back(row.blocks.back()->data());
  }
}

}  // namespace kogpt
