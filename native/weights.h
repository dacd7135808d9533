// Weights into the formats of layout.h.
#pragma once

#include <cstddef>
#include <cstdint>

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

// Bytes of a value in a format of floats.
constexpr std::size_t width_of(Format format) { return format == Format::f32 ? 4 : 2; }

// n values to a format of floats, to the nearest, ties to even.
void narrow(Format to, const float* source, int n, void* out);

// Bytes of a matrix as Linear describes it, padded to whole panels.
std::size_t stored_bytes(Format format, int n, int k);

// A matrix (n, k) in int8 or int4 as files hold it, row by row: kogpt/quantize.py says what each array is.
struct Codes {
  Format format;
  std::uint8_t* codes;
  std::uint8_t* groups;  // int4 only
  float* scales;
};

// Rounds a matrix to nearest; importance (k) or nullptr: see Kernels::quantize.
void quantize(Pool& pool, const Kernels& kernels, const Source& from, const float* importance,
              const Codes& to);

}  // namespace kogpt
