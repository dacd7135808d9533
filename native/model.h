// GPT-J on one machine: weights, cache and the forward pass of a batch of chunks.
//
// New positions of all rows lie end to end, M in all, in (M, width) float32 buffers whose rows are padded
// with zeros to a multiple of kDepth.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "adapter.h"
#include "buffer.h"
#include "cache.h"
#include "kernels.h"
#include "pool.h"
#include "sampling.h"

namespace kogpt {

struct Dims {
  int n_layers, n_heads, d_model, d_ff, n_vocab, n_ctx, rotary_dim;
  float epsilon;
};

// The next `t` positions of a row: ids, or (t, d_model) embeddings where ids is nullptr.
struct Chunk {
  int row;
  int t;
  int n_outputs;
  const std::int64_t* ids;
  const float* embeddings;
};

// Vectors likewise; after the last layer: ln_f.weight, ln_f.bias, lm_head.bias.
enum Vector { kNormWeight, kNormBias, kFcInBias, kFcOutBias, kVectors };

// What is wanted of the outputs of a step, and where the answers go.
struct Wanted {
  const Draw* draws;
  const Target* targets;
  int n_draws;
  int n_targets;
  Answer* answers;    // of the draws, then of the targets
  Likely* likeliest;  // likewise, as many for each as it asks for
};

class Model {
 public:
  Model(const Dims& dims, Format format, Format cache, int threads, const Kernels& kernels);

  // Borrows `source` (n, k) if it is in the model's format and layout already, else converts a copy; true if
  // borrowed. Quantised formats are rounded to nearest here.
  bool load_projection(int index, Format from, const void* source);
  // Weights in the model's format, int8 or int4, as files hold them (see Codes in weights.h); copied into
  // tiles.
  void load_codes(int index, const std::uint8_t* codes, const std::uint8_t* groups, const float* scales);
  void load_vector(int index, const float* source);
  void borrow_embedding(Format format, const void* source);

  Cache& cache() { return cache_; }

  // Outputs of each chunk's last n_outputs positions, end to end: (., n_vocab) logits, or (., d_model)
  // hidden.
  void forward(const Chunk* chunks, int n_chunks, bool hidden, float* out);

  // As `forward`, but chooses and scores tokens; no more than kHeadPass outputs become logits at a time.
  void draw(const Chunk* chunks, int n_chunks, const Wanted& wanted);

  // Extends a row by `positions` whose keys and values are given, (n_layers, positions, n_heads, d_head)
  // each.
  void load_cache(int row, const float* keys, const float* values, int positions);

  // A handle of factors that are copied in `format`, float32 or bfloat16.
  int add_adapter(Format format, const Factors* factors, int count);
  void drop_adapter(int adapter) { adapters_[static_cast<std::size_t>(adapter)].reset(); }
  bool has_adapter(int adapter) const {
    return adapter >= 0 && static_cast<std::size_t>(adapter) < adapters_.size() &&
           adapters_[static_cast<std::size_t>(adapter)] != nullptr;
  }

 private:
  // A chunk, or as much of one as fits a pass of kPass positions.
  struct Piece {
    Chunk chunk;
    int start;   // place among the positions of the pass
    int first;   // position in the row
    int output;  // where its outputs begin among all
  };

  // Spans of a pass that attention takes together.
  struct Group {
    int span;
    int n;
    int shared;  // leading tiles that all of them share
  };

  // Tokens of a pass whose rows have one adapter.
  struct Adapted {
    const Adapter* adapter;
    std::vector<int> tokens;
    std::size_t inner[kProjections];  // where (tokens, rank) values of each projection lie in inner_
  };

  // A x for some tokens of a group, and all of them that are computed together.
  struct Compression {
    const Adapted* group;
    int projection;
    int begin, end;  // of its tokens
  };
  struct Compressions {
    std::vector<Compression> tasks;
    double products = 0;
  };

  int read(const Chunk* chunks, int n_chunks);
  void pass(const std::vector<Piece>& pieces, int m);
  void embed(const Piece& piece);
  void block(int layer, int m);
  bool joins_last(const Piece& piece);
  void plan_attention(const std::vector<Piece>& pieces);
  void attend(int layer);
  void store(int layer, int head, const Span& span);
  void reach(int positions);
  void rotate(float* x, int position) const;
  void head(int m0, int count, float* out);
  Sampler& sampler(int thread);
  void plan_adapters(const std::vector<Piece>& pieces);
  void compress(int layer, const Compressions& part);
  bool is_updated(int index) const;
  void expand(int index, int m, int n0, int n1, const Output& to);
  void reserve(int m);
  void extend(int row, int positions);

  // One or more projections of the same tokens, as tasks over their outputs.
  struct Job {
    int index;  // of the projection
    const Acts* acts;
    Output out;
  };
  void project(const Job* jobs, int n_jobs);
  template <class F>
  void run(int tasks, double products, const F& f);
  template <class F>
  void run_in_order(int tasks, double products, const F& f);
  template <class F>
  void by_tokens(int m, const F& f);

  struct Room {
    unsigned char* tiles;
    float* scales;
  };
  unsigned char* own(int index);
  Room place(int index);
  template <class F>
  void make_tiles(int index, const F& code_row);
  void convert(const Linear& w, Format from, const void* source, unsigned char* out);
  const float* vector(int index) const { return vectors_[static_cast<std::size_t>(index)].floats(); }

  Dims dims_;
  Format format_;
  const Kernels& kernels_;
  Pool pool_;
  Cache cache_;
  int d_head_, e_, f_;  // e_, f_: padded widths of the model and of its MLP

  std::vector<Linear> projections_;
  Buffer owned_;                      // projections that are not borrowed, one after the other
  std::vector<std::size_t> places_;   // byte of each in it, and the end
  std::vector<Buffer> owned_scales_;  // of each quantised projection
  std::vector<Buffer> vectors_;
  Format embedding_format_ = Format::f32;
  const unsigned char* embedding_ = nullptr;
  struct Rotation {
    float cos, sin;
  };
  std::vector<Rotation> rotary_;  // (positions so far, R / 2)

  std::vector<std::unique_ptr<Adapter>> adapters_;
  std::vector<Adapted> adapted_;  // of the pass
  Compressions before_, after_;   // attention
  Buffer inner_;
  std::vector<std::unique_ptr<Sampler>> samplers_;  // one for each thread that has chosen a token
  Buffer logits_;

  std::vector<Span> spans_;
  std::vector<Group> groups_;
  bool stored_apart_ = false;  // whether some row's queries are in several groups
  Buffer x_, h_, q_, k_, v_, attended_, ff_, last_;
  Buffer acts_[2];
  std::vector<Buffer> scratch_;

  struct alignas(64) Range {
    std::atomic<int> next;
  };
  std::vector<Range> ranges_;  // of run_in_order, one for each thread
};

}  // namespace kogpt
