// What the machine itself can do, measured with the same threads as the model.
#pragma once

#include <cstddef>

#include "model.h"

namespace kogpt {

// Bytes per second when all threads read `bytes` of memory once, from the first to the last.
double read_bandwidth(Pool& pool, const unsigned char* data, std::size_t bytes);

// Operations per second of one (size, size) x (size, size) product of this format: two for each multiply and add.
double matrix_speed(Pool& pool, const Kernels& kernels, Format format, int size);

}  // namespace kogpt
