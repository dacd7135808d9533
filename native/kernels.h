// The arithmetic, once per instruction set, chosen when a model is made.
#pragma once

#include "codebook.h"
#include "layout.h"

namespace kogpt {

struct Kernels {
  const char* name;
  // out[0..n) = layer norm of x over n values, with weight and bias.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, int n,
                     float* out);
  // Tokens [m0, m1) of x (m, ld) into acts; m0 is a multiple of kMaxWidth, and m1 is one or is acts.m.
  // scratch, here and below: scratch_bytes() of the thread's own.
  void (*prepare)(const float* x, std::size_t ld, int m0, int m1, const Acts& acts, unsigned char* scratch);
  // Outputs [n0, n1); n0 is a multiple of kPanel.
  void (*linear)(const Linear& w, const Acts& acts, int n0, int n1, const Output& out,
                 unsigned char* scratch);
  // inner (count, rank) = A x for the given tokens of x (., ld).
  void (*compress)(const LowRank& update, const float* x, std::size_t ld, const int* tokens, int count,
                   float* inner);
  // out (., ld) += B inner for the given tokens and outputs [n0, n1); n0 is a multiple of kPanel.
  void (*expand)(const LowRank& update, const float* inner, const int* tokens, int count, int n0, int n1,
                 float* out, std::size_t ld);
  // One head's key and value of position `slot` into a block of the cache.
  void (*store)(const float* k, const float* v, int d, Format format, int slot, unsigned char* keys,
                unsigned char* values);
  void (*attend)(const Attend& job, unsigned char* scratch);
  // Bytes that `prepare`, `linear` (kp) and `attend` (d) need in scratch.
  std::size_t (*scratch_bytes)(int kp, int d);
  // One output to codes (kp), a byte each, and for int4 group scales (kp / 32); returns its scale. The row is
  // scaled in place; importance (kp), or nullptr, weighs errors (int4).
  float (*quantize)(Format format, float* row, int kp, const float* importance, std::uint8_t* codes,
                    std::uint8_t* groups);
  // The best scales for up to 16 groups of 32 values in units of their outputs' scales; importance of group g
  // at g * ld, or nullptr.
  void (*search)(const float* x, const float* importance, std::size_t ld, int count, std::uint8_t* scales);
  // 16 outputs, codes (16, kp) and group scales (16, kp / 32), to tiles of kTile8 or kTile4 bytes. What lies
  // where in a tile is the set's own.
  void (*pack)(Format format, const std::uint8_t* codes, const std::uint8_t* groups, int kp,
               unsigned char* tiles);
  // One tile to its weights (16, 64), without their outputs' scales.
  void (*unpack)(Format format, const std::uint8_t* tile, std::int8_t* out);
  // n values of a stored format to float32.
  void (*widen)(Format from, const void* source, std::size_t n, float* out);
  // Passes over a vocabulary, see sampling.inl.
  float (*highest)(const float* x, int n);
  void (*scale)(const float* logits, const double* scores, int n, double top, double temperature,
                double* scaled);
  int (*screen)(std::uint64_t key, const int* ids, const double* scaled, int n, double best, double* bounds);
  double (*weigh)(const double* scaled, int n, double* weights);
};

extern const Kernels kPlain;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kAmx;
#elif defined(__aarch64__)
extern const Kernels kNeon;
extern const Kernels kDotprod;
#endif

// The best set that this processor and system have, or the one that KOGPT_ISA names if it is no better than
// that; nullptr if KOGPT_ISA names no set that can run here.
const Kernels* choose_kernels();

}  // namespace kogpt
