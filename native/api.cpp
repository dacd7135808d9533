// The plain C interface that kogpt/native_runner.py loads. Nothing thrown leaves it: memory or threads that
// cannot be had are the value -1 (or no model), everything else a caller could get wrong is asserted in
// Python.
#include "codebook.h"
#include "model.h"
#include "weights.h"

#define KOGPT_API extern "C" __attribute__((visibility("default")))

using kogpt::Chunk;
using kogpt::Dims;
using kogpt::Format;
using kogpt::Model;

namespace {

// f() -> int, or -1 if it throws.
template <class F>
int guarded(const F& f) noexcept {
  try {
    return f();
  } catch (...) {
    return -1;
  }
}

}  // namespace

// Raised whenever a signature below or the layout of a struct in it changes.
KOGPT_API int kogpt_abi() { return 7; }

// Name of the instruction set that would be used; nullptr if KOGPT_ISA names none of this machine. Ask this
// first: whatever else takes kernels takes these.
KOGPT_API const char* kogpt_isa() {
  const kogpt::Kernels* kernels = kogpt::choose_kernels();
  return kernels == nullptr ? nullptr : kernels->name;
}

KOGPT_API Model* kogpt_create(const Dims* dims, int format, int cache_format, int threads) {
  Model* model = nullptr;
  guarded([&] {
    model = new Model(*dims, static_cast<Format>(format), static_cast<Format>(cache_format), threads,
                      *kogpt::choose_kernels());
    return 0;
  });
  return model;
}

KOGPT_API void kogpt_destroy(Model* model) { delete model; }

// 1 borrowed, 0 copied, -1 out of memory.
KOGPT_API int kogpt_load_projection(Model* model, int index, int from, const void* source) {
  return guarded([&] { return model->load_projection(index, static_cast<Format>(from), source) ? 1 : 0; });
}

// int8 and int4 models: a matrix as files hold it (weights.h). 0 done, -1 out of memory.
KOGPT_API int kogpt_load_codes(Model* model, int index, const std::uint8_t* codes, const std::uint8_t* groups,
                               const float* scales) {
  return guarded([&] {
    model->load_codes(index, codes, groups, scales);
    return 0;
  });
}

// A matrix (n, k) rounded to nearest, see weights.h; importance may be nullptr, groups too for int8. 0 done,
// -1 out of memory.
KOGPT_API int kogpt_quantize(int threads, int from, const void* source, int n, int k, const float* importance,
                             int format, std::uint8_t* codes, std::uint8_t* groups, float* scales) {
  return guarded([&] {
    kogpt::Pool pool(threads);
    kogpt::quantize(pool, *kogpt::choose_kernels(), {static_cast<Format>(from), source, n, k}, importance,
                    {static_cast<Format>(format), codes, groups, scales});
    return 0;
  });
}

// int4 only: the best group scale for each of n rows of 32 values, in units of the output's scale.
KOGPT_API void kogpt_search(const float* x, int n, const float* importance, std::uint8_t* groups) {
  constexpr int kTogether = 16;
  const kogpt::Kernels& kernels = *kogpt::choose_kernels();
  for (int i = 0; i < n; i += kTogether) {
    kernels.search(x + static_cast<std::ptrdiff_t>(i) * kogpt::kGroup, importance, 0,
                   n - i < kTogether ? n - i : kTogether, groups + i);
  }
}

// The (256, 16) int4 table of codebook.h.
KOGPT_API const std::int8_t* kogpt_int4_table() { return kogpt::kTable.data(); }

// 0 done, -1 out of memory.
KOGPT_API int kogpt_load_vector(Model* model, int index, const float* source) {
  return guarded([&] {
    model->load_vector(index, source);
    return 0;
  });
}

KOGPT_API void kogpt_borrow_embedding(Model* model, int format, const void* source) {
  model->borrow_embedding(static_cast<Format>(format), source);
}

// A row's handle, -1 out of memory.
KOGPT_API int kogpt_open(Model* model, int adapter) {
  return guarded([&] { return model->cache().open(adapter); });
}
KOGPT_API int kogpt_fork(Model* model, int row, int length) {
  return guarded([&] { return model->cache().fork(row, length); });
}
KOGPT_API void kogpt_close(Model* model, int row) { model->cache().close(row); }

// -1 if there is no such row.
KOGPT_API int kogpt_length(Model* model, int row) {
  return model->cache().holds(row) ? model->cache().length(row) : -1;
}
KOGPT_API void kogpt_truncate(Model* model, int row, int length) { model->cache().truncate(row, length); }
KOGPT_API std::size_t kogpt_block_bytes(Model* model) { return model->cache().block_bytes(); }

// Bytes of cache that a chunk would allocate.
KOGPT_API std::size_t kogpt_cache_bytes(Model* model, int row, int tokens) {
  return static_cast<std::size_t>(model->cache().blocks_needed(row, tokens)) * model->cache().block_bytes();
}
KOGPT_API std::size_t kogpt_step_bytes(Model* model, const Chunk* chunks, int n_chunks) {
  std::size_t bytes = 0;
  for (int i = 0; i < n_chunks; ++i) bytes += kogpt_cache_bytes(model, chunks[i].row, chunks[i].t);
  return bytes;
}

// 0 done, -1 out of memory.
KOGPT_API int kogpt_load_cache(Model* model, int row, const float* keys, const float* values, int positions) {
  return guarded([&] {
    model->load_cache(row, keys, values, positions);
    return 0;
  });
}

// An adapter's handle, -1 out of memory.
KOGPT_API int kogpt_add_adapter(Model* model, int format, const kogpt::Factors* factors, int count) {
  return guarded([&] { return model->add_adapter(static_cast<Format>(format), factors, count); });
}
KOGPT_API void kogpt_drop_adapter(Model* model, int adapter) { model->drop_adapter(adapter); }
KOGPT_API int kogpt_has_adapter(Model* model, int adapter) { return model->has_adapter(adapter) ? 1 : 0; }
KOGPT_API int kogpt_uses_adapter(Model* model, int adapter) { return model->cache().uses(adapter) ? 1 : 0; }

// 0 done, -1 out of memory.
KOGPT_API int kogpt_forward(Model* model, const Chunk* chunks, int n_chunks, int hidden, float* out) {
  return guarded([&] {
    model->forward(chunks, n_chunks, hidden != 0, out);
    return 0;
  });
}

// 0 done, -1 out of memory.
KOGPT_API int kogpt_draw(Model* model, const Chunk* chunks, int n_chunks, const kogpt::Wanted* wanted) {
  return guarded([&] {
    model->draw(chunks, n_chunks, *wanted);
    return 0;
  });
}

// One token from n_vocab logits by a given set of instructions, for tests.
KOGPT_API int kogpt_sample(const float* logits, int n_vocab, const kogpt::Draw* draw, kogpt::Answer* answer,
                           kogpt::Likely* likeliest) {
  return guarded([&] {
    *answer = kogpt::Sampler(*kogpt::choose_kernels(), n_vocab).sample(logits, *draw, likeliest);
    return 0;
  });
}

// Gumbel noise of tokens [0, n) for a key, for tests.
KOGPT_API void kogpt_gumbel(std::uint64_t key, int n, double* noise) {
  for (int i = 0; i < n; ++i) noise[i] = kogpt::gumbel(key, i);
}
