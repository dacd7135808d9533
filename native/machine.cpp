#include "machine.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "codebook.h"

namespace kogpt {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double read_bandwidth(Pool& pool, const unsigned char* data, std::size_t bytes) {
  constexpr std::size_t kChunk = std::size_t{1} << 20, kLine = 64, kAhead = 1024;
  const auto chunks = static_cast<int>(bytes / kChunk);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(chunks));
  const double start = now();
  pool.run(chunks, [&](int chunk, int) {
    const auto* from = reinterpret_cast<const std::uint64_t*>(data + static_cast<std::size_t>(chunk) * kChunk);
    std::uint64_t lanes[8] = {};
    for (std::size_t line = 0; line < kChunk; line += kLine, from += 8) {
      __builtin_prefetch(reinterpret_cast<const unsigned char*>(from) + kAhead);
      for (int i = 0; i < 8; ++i) lanes[i] += from[i];
    }
    for (std::uint64_t lane : lanes) sums[static_cast<std::size_t>(chunk)] += lane;
  });
  const double seconds = now() - start;
  volatile std::uint64_t keep = 0;
  for (std::uint64_t sum : sums) keep = keep + sum;
  return static_cast<double>(chunks) * static_cast<double>(kChunk) / seconds;
}

double matrix_speed(Pool& pool, const Kernels& kernels, Format format, int size) {
  constexpr int kStep = 256;
  const auto width = static_cast<std::size_t>(size);
  Buffer weights(width * width * sizeof(float)), scales(width * sizeof(float));
  Buffer x(width * width * sizeof(float)), y(width * width * sizeof(float));
  Buffer data(acts_bytes(format, width, width));
  std::vector<Buffer> scratch;
  for (int i = 0; i < pool.threads(); ++i) scratch.emplace_back(kernels.scratch_bytes(size, 1));
  const Linear w{format, size, size, size, weights.data(), scales.floats(), kTable.data()};
  const Acts acts{format, size, size, data.data()};
  for (int m = 0; m < size; m += kMaxWidth) kernels.prepare(x.floats(), width, m, m + kMaxWidth, acts, scratch[0].data());
  const Output out{y.floats(), width, nullptr, false, false};
  const double start = now();
  pool.run(size / kStep, [&](int task, int thread) {
    kernels.linear(w, acts, task * kStep, (task + 1) * kStep, out, scratch[static_cast<std::size_t>(thread)].data());
  });
  return 2.0 * size * size * size / (now() - start);
}

}  // namespace kogpt
