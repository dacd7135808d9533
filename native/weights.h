// Weights into the formats of layout.h.
#pragma once

#include <cstddef>

#include "kernels.h"
#include "pool.h"

namespace kogpt {

// A matrix (n, k) as a file holds it: float32, float16 or bfloat16, row by row.
struct Source {
  Format format;
  const void* data;
  int n;
  int k;
};

// Bytes of the tiles of an int8 or int4 matrix.
std::size_t packed_bytes(Format format, int n, int k);

// tiles: packed_bytes(); scales: (16 ceil(n / 16)). importance (k) or nullptr: see Kernels::quantize.
void quantize(Pool& pool, const Kernels& kernels, Format format, const Source& from, const float* importance,
              unsigned char* tiles, float* scales);

}  // namespace kogpt
