#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "weights.h"

namespace kogpt {

namespace {

constexpr int kPass = 512;                      // positions that go through the layers together
constexpr int kHeadPass = 256;                  // outputs that go through the head together
constexpr int kFewTokens = 16;                  // up to which a pass is bound by reading the weights
constexpr std::size_t kTaskBytes = 128 * 1024;  // of weights in a task of few tokens: some 10 us
constexpr int kTasks = 8;                       // of few tokens for each thread at least
constexpr int kTaskOutputs =
    256;  // of a task at most: what a thread's second-level cache holds of the weights
constexpr double kSmall = 1 << 18;  // products that are not worth a dispatch: a few microseconds

// Outputs of one task, each of `bytes` weights: small enough to even out threads that are held up.
int task_outputs(int outputs, std::size_t bytes, int threads, int m) {
  if (m > kFewTokens) return std::min(round_up(outputs / (threads * 6) + 1, 4 * kPanel), kTaskOutputs);
  const int step = std::min(static_cast<int>(kTaskBytes / bytes), outputs / (threads * kTasks));
  return std::max(step / kPanel, 1) * kPanel;
}

std::size_t output_bytes(const Linear& w) {
  const auto kp = static_cast<std::size_t>(w.kp);
  switch (w.format) {
    case Format::f32: return kp * 4;
    case Format::i8: return kp;
    case Format::i4: return kp / kDepth * kTile4 / kPanel;
    default: return kp * 2;
  }
}

}  // namespace

Model::Model(const Dims& dims, Format format, Format cache, int threads, const Kernels& kernels)
    : dims_(dims),
      format_(format),
      kernels_(kernels),
      pool_(threads),
      cache_(dims.n_layers, dims.n_heads, dims.d_model / dims.n_heads, cache),
      d_head_(dims.d_model / dims.n_heads),
      e_(round_up(dims.d_model, kDepth)),
      f_(round_up(dims.d_ff, kDepth)),
      scratch_(static_cast<std::size_t>(threads)),
      ranges_(static_cast<std::size_t>(threads)) {
  const auto add = [&](int n, int k) {
    Linear w;
    w.n = n;
    w.k = k;
    w.kp = round_up(k, kDepth);
    projections_.push_back(w);
  };
  for (int layer = 0; layer < dims.n_layers; ++layer) {
    for (int i = kQ; i <= kOut; ++i) add(dims.d_model, dims.d_model);
    add(dims.d_ff, dims.d_model);
    add(dims.d_model, dims.d_ff);
  }
  add(dims.n_vocab, dims.d_model);
  places_.push_back(0);
  for (const Linear& w : projections_) {
    places_.push_back(places_.back() + (stored_bytes(format, w.n, w.k) + kAlign - 1) / kAlign * kAlign);
  }
  owned_scales_.resize(projections_.size());
  vectors_.resize(static_cast<std::size_t>(dims.n_layers * kVectors + 3));
  const std::size_t bytes = kernels.scratch_bytes(std::max(e_, f_), d_head_);
  for (Buffer& scratch : scratch_) scratch = Buffer(bytes);
}

// Turns for positions below `positions`. n_ctx only says how many there may be: all of them could fill the
// memory.
void Model::reach(int positions) {
  const int pairs = dims_.rotary_dim / 2;
  for (int position = static_cast<int>(rotary_.size()) / pairs; position < positions; ++position) {
    for (int j = 0; j < pairs; ++j) {  // RoFormer, equation 15
      const double angle = position * std::pow(10000.0, -2.0 * j / dims_.rotary_dim);
      rotary_.push_back({static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))});
    }
  }
}

// Buffers for m positions. Padding beyond the model's widths is written by nobody and stays zero.
void Model::reserve(int m) {
  const auto rows = static_cast<std::size_t>(m);
  const std::size_t narrow = rows * static_cast<std::size_t>(e_) * sizeof(float);
  const std::size_t wide = rows * static_cast<std::size_t>(f_) * sizeof(float);
  for (Buffer* buffer : {&x_, &h_, &q_, &k_, &v_, &attended_}) buffer->reserve(narrow);
  ff_.reserve(wide);
  for (const Format format : {Format::f32, format_}) {  // a set may use the room of float32
    acts_[0].reserve(acts_bytes(format, rows, static_cast<std::size_t>(e_)));
    acts_[1].reserve(acts_bytes(format, rows, static_cast<std::size_t>(f_)));
  }
}

// f(task, thread), on this thread alone if it is little work in all.
template <class F>
void Model::run(int tasks, double products, const F& f) {
  if (products > kSmall) return pool_.run(tasks, f);
  for (int task = 0; task < tasks; ++task) f(task, 0);
}

// f(first token, last token, thread) for blocks of kMaxWidth tokens.
template <class F>
void Model::by_tokens(int m, const F& f) {
  constexpr double kPerValue = 32;  // a layer norm and a conversion, in products of a projection
  const int blocks = (m + kMaxWidth - 1) / kMaxWidth;
  run(blocks, kPerValue * m * e_,
      [&](int i, int thread) { f(i * kMaxWidth, std::min(m, (i + 1) * kMaxWidth), thread); });
}

// f(task, thread) as `run`, but each thread begins with a range of its own, so that it reads the weights in
// order; who has done its range takes from the others'.
template <class F>
void Model::run_in_order(int tasks, double products, const F& f) {
  const int threads = pool_.threads();
  if (products <= kSmall || threads == 1) return run(tasks, products, f);
  const auto begin = [&](int thread) {
    return static_cast<int>(static_cast<std::int64_t>(tasks) * thread / threads);
  };
  for (int i = 0; i < threads; ++i)
    ranges_[static_cast<std::size_t>(i)].next.store(begin(i), std::memory_order_relaxed);
  pool_.run(tasks, [&](int, int thread) {
    for (int i = 0; i < threads; ++i) {  // as many calls as tasks: each finds one
      const int owner = (thread + i) % threads;
      Range& range = ranges_[static_cast<std::size_t>(owner)];
      if (range.next.load(std::memory_order_relaxed) >= begin(owner + 1)) continue;
      const int task = range.next.fetch_add(1, std::memory_order_relaxed);
      if (task < begin(owner + 1)) return f(task, thread);
    }
  });
}

void Model::project(const Job* jobs, int n_jobs) {
  int outputs = 0;
  for (int i = 0; i < n_jobs; ++i) outputs += jobs[i].w->n;
  const int step = task_outputs(outputs, output_bytes(*jobs[0].w), pool_.threads(), jobs[0].acts->m);
  int ends[kProjections];
  int tasks = 0;
  for (int i = 0; i < n_jobs; ++i) ends[i] = tasks += (jobs[i].w->n + step - 1) / step;
  const double products = static_cast<double>(outputs) * jobs[0].w->kp * jobs[0].acts->m;
  run_in_order(tasks, products, [&](int task, int thread) {
    int i = 0;
    while (task >= ends[i]) ++i;
    const Job& job = jobs[i];
    const int n0 = (task - (i > 0 ? ends[i - 1] : 0)) * step;
    kernels_.linear(*job.w, *job.acts, n0, std::min(n0 + step, job.w->n), job.out,
                    scratch_[static_cast<std::size_t>(thread)].data());
  });
}

void Model::forward(const Chunk* chunks, int n_chunks, bool hidden, float* out) {
  int outputs = 0;
  for (int i = 0; i < n_chunks; ++i) outputs += chunks[i].n_outputs;
  last_.reserve(static_cast<std::size_t>(std::max(outputs, 1)) * static_cast<std::size_t>(e_) *
                sizeof(float));
  for (int i = 0; i < n_chunks; ++i) {
    cache_.reserve(chunks[i].row, chunks[i].t);
    reach(cache_.length(chunks[i].row) + chunks[i].t);
  }
  std::vector<Piece> pieces;
  int m = 0, output = 0;
  for (int i = 0; i < n_chunks; ++i) {
    for (int done = 0; done < chunks[i].t;) {
      Chunk part = chunks[i];
      part.t = std::min(part.t - done, kPass - m);
      if (part.ids != nullptr) part.ids += done;
      if (part.embeddings != nullptr) part.embeddings += static_cast<std::ptrdiff_t>(done) * dims_.d_model;
      const int unwanted = std::max(0, chunks[i].t - part.n_outputs - done);
      part.n_outputs = std::max(0, part.t - unwanted);
      pieces.push_back({part, m, cache_.length(part.row) + done, output});
      output += part.n_outputs;
      done += part.t;
      m += part.t;
      if (m == kPass) {
        pass(pieces, m);
        pieces.clear();
        m = 0;
      }
    }
  }
  if (m > 0) pass(pieces, m);
  for (int i = 0; i < n_chunks; ++i) cache_.advance(chunks[i].row, chunks[i].t);
  if (!hidden) return head(out, outputs);
  for (int i = 0; i < outputs; ++i) {
    std::memcpy(out + static_cast<std::ptrdiff_t>(i) * dims_.d_model,
                last_.floats() + static_cast<std::ptrdiff_t>(i) * e_,
                static_cast<std::size_t>(dims_.d_model) * sizeof(float));
  }
}

void Model::pass(const std::vector<Piece>& pieces, int m) {
  reserve(m);
  plan_attention(pieces);
  for (const Piece& piece : pieces) embed(piece);
  for (int layer = 0; layer < dims_.n_layers; ++layer) block(layer, m);
  const int norm = dims_.n_layers * kVectors;
  for (const Piece& piece : pieces) {
    for (int i = 0; i < piece.chunk.n_outputs; ++i) {
      const std::ptrdiff_t from = piece.start + piece.chunk.t - piece.chunk.n_outputs + i;
      kernels_.layer_norm(x_.floats() + from * e_, vector(norm), vector(norm + 1), dims_.epsilon,
                          dims_.d_model, last_.floats() + static_cast<std::ptrdiff_t>(piece.output + i) * e_);
    }
  }
}

void Model::embed(const Piece& piece) {
  const auto width = static_cast<std::size_t>(dims_.d_model);
  const std::size_t element = embedding_format_ == Format::f32 ? 4 : 2;
  for (int i = 0; i < piece.chunk.t; ++i) {
    float* to = x_.floats() + static_cast<std::ptrdiff_t>(piece.start + i) * e_;
    if (piece.chunk.ids != nullptr) {
      const auto id = static_cast<std::size_t>(piece.chunk.ids[i]);
      kernels_.widen(embedding_format_, embedding_ + id * width * element, width, to);
    } else {
      std::memcpy(to, piece.chunk.embeddings + static_cast<std::size_t>(i) * width, width * sizeof(float));
    }
  }
}

// x += attention(h) + mlp(h), h the layer norm of x.
void Model::block(int layer, int m) {
  const auto e = static_cast<std::size_t>(e_), f = static_cast<std::size_t>(f_);
  const Linear* w = &projections_[static_cast<std::size_t>(layer * kProjections)];
  const int vectors = layer * kVectors;
  const auto scratch = [&](int thread) { return scratch_[static_cast<std::size_t>(thread)].data(); };

  const Acts normal{w[kQ].format, m, e_, acts_[0].data()};
  by_tokens(m, [&](int m0, int m1, int thread) {
    for (int i = m0; i < m1; ++i) {
      const std::size_t at = static_cast<std::size_t>(i) * e;
      kernels_.layer_norm(x_.floats() + at, vector(vectors + kNormWeight), vector(vectors + kNormBias),
                          dims_.epsilon, dims_.d_model, h_.floats() + at);
    }
    kernels_.prepare(h_.floats(), e, m0, m1, normal, scratch(thread));
  });
  const Job in[] = {{&w[kFcIn], &normal, {ff_.floats(), f, vector(vectors + kFcInBias), false, true}},
                    {&w[kQ], &normal, {q_.floats(), e, nullptr, false, false}},
                    {&w[kK], &normal, {k_.floats(), e, nullptr, false, false}},
                    {&w[kV], &normal, {v_.floats(), e, nullptr, false, false}}};
  project(in, 4);

  attend(layer);
  const Acts mixed{w[kOut].format, m, e_, acts_[0].data()}, wide{w[kFcOut].format, m, f_, acts_[1].data()};
  by_tokens(m, [&](int m0, int m1, int thread) {
    kernels_.prepare(attended_.floats(), e, m0, m1, mixed, scratch(thread));
    kernels_.prepare(ff_.floats(), f, m0, m1, wide, scratch(thread));
  });
  const int outputs = dims_.d_model;
  const int step = task_outputs(outputs, output_bytes(w[kOut]) + output_bytes(w[kFcOut]), pool_.threads(), m);
  run_in_order(
      (outputs + step - 1) / step, static_cast<double>(outputs) * (e_ + f_) * m, [&](int task, int thread) {
        const int n0 = task * step, n1 = std::min(n0 + step, outputs);
        kernels_.linear(w[kOut], mixed, n0, n1, {x_.floats(), e, nullptr, true, false}, scratch(thread));
        const Output last{x_.floats(), e, vector(vectors + kFcOutBias), true, false};
        kernels_.linear(w[kFcOut], wide, n0, n1, last, scratch(thread));
      });
}

// Turns each pair (2j, 2j + 1) of the first rotary_dim values of one head.
void Model::rotate(float* x, int position) const {
  const int pairs = dims_.rotary_dim / 2;
  const std::size_t row = static_cast<std::size_t>(position) * static_cast<std::size_t>(pairs);
  for (int j = 0; j < pairs; ++j) {
    const auto [c, s] = rotary_[row + static_cast<std::size_t>(j)];
    const float even = x[2 * j], odd = x[2 * j + 1];
    x[2 * j] = even * c - odd * s;
    x[2 * j + 1] = odd * c + even * s;
  }
}

// Adds the queries of a row to the last group, if that begins with the same memory and has room for them.
bool Model::joins_last(const Piece& piece) {
  if (groups_.empty()) return false;
  Group& group = groups_.back();
  const Span& first = spans_[static_cast<std::size_t>(group.span)];
  const Span& last = spans_.back();
  const unsigned char* const* blocks = cache_.blocks(piece.chunk.row);
  if (last.start + last.t - first.start + piece.chunk.t > kMaxQueries || blocks == first.blocks) return false;
  const int limit = std::min(first.first, piece.first) / kTile;
  int shared = 0;
  while (shared < limit && std::equal(blocks + shared * kTileBlocks, blocks + (shared + 1) * kTileBlocks,
                                      first.blocks + shared * kTileBlocks)) {
    ++shared;
  }
  if (shared == 0 || (group.n > 1 && shared != group.shared)) return false;
  spans_.push_back({piece.start, piece.chunk.t, piece.first, blocks});
  group.shared = shared;
  ++group.n;
  return true;
}

// Rows that share the tiles of a prefix read them together: one after the other they would wait for memory
// each time.
void Model::plan_attention(const std::vector<Piece>& pieces) {
  spans_.clear();
  groups_.clear();
  stored_apart_ = false;
  for (const Piece& piece : pieces) {
    const unsigned char* const* blocks = cache_.blocks(piece.chunk.row);
    if (piece.chunk.t > kMaxQueries) stored_apart_ = true;
    if (joins_last(piece)) continue;
    for (int i = 0; i < piece.chunk.t; i += kMaxQueries) {
      spans_.push_back({piece.start + i, std::min(kMaxQueries, piece.chunk.t - i), piece.first + i, blocks});
      groups_.push_back({static_cast<int>(spans_.size()) - 1, 1, 0});
    }
  }
}

// Turns queries and keys by their positions and writes keys and values into the cache.
void Model::store(int layer, int head, const Span& span) {
  const auto e = static_cast<std::size_t>(e_);
  const std::size_t at = static_cast<std::size_t>(span.start) * e + static_cast<std::size_t>(head * d_head_);
  const std::size_t keys = cache_.keys(layer, head), values = cache_.values(layer, head);
  for (int i = 0; i < span.t; ++i) {
    const std::size_t row = at + static_cast<std::size_t>(i) * e;
    const int position = span.first + i;
    rotate(q_.floats() + row, position);
    rotate(k_.floats() + row, position);
    unsigned char* block = const_cast<unsigned char*>(span.blocks[position / kBlock]);
    kernels_.store(k_.floats() + row, v_.floats() + row, d_head_, cache_.format(), position % kBlock,
                   block + keys, block + values);
  }
}

void Model::attend(int layer) {
  const int heads = dims_.n_heads;
  double products = 0;
  for (const Span& span : spans_) products += 2.0 * span.t * (span.first + span.t) * dims_.d_model;
  if (stored_apart_) {
    run(heads * static_cast<int>(spans_.size()), products,
        [&](int task, int) { store(layer, task % heads, spans_[static_cast<std::size_t>(task / heads)]); });
  }
  run(heads * static_cast<int>(groups_.size()), products, [&](int task, int thread) {
    const Group& group = groups_[static_cast<std::size_t>(task / heads)];
    const int head = task % heads;
    Attend job;
    job.spans = &spans_[static_cast<std::size_t>(group.span)];
    job.n_spans = group.n;
    job.shared = group.shared;
    job.q = q_.floats() + head * d_head_;
    job.out = attended_.floats() + head * d_head_;
    job.ld = static_cast<std::size_t>(e_);
    job.d = d_head_;
    job.format = cache_.format();
    job.keys = cache_.keys(layer, head);
    job.values = cache_.values(layer, head);
    for (int i = 0; i < group.n && !stored_apart_; ++i) store(layer, head, job.spans[i]);
    kernels_.attend(job, scratch_[static_cast<std::size_t>(thread)].data());
  });
}

void Model::head(float* out, int m) {
  const Linear& w = projections_.back();
  for (int m0 = 0; m0 < m; m0 += kHeadPass) {
    const int count = std::min(kHeadPass, m - m0);
    reserve(count);
    const Acts last{w.format, count, e_, acts_[0].data()};
    const float* from = last_.floats() + static_cast<std::ptrdiff_t>(m0) * e_;
    by_tokens(count, [&](int i0, int i1, int thread) {
      kernels_.prepare(from, static_cast<std::size_t>(e_), i0, i1, last,
                       scratch_[static_cast<std::size_t>(thread)].data());
    });
    const Job job{
        &w,
        &last,
        {out + static_cast<std::ptrdiff_t>(m0) * dims_.n_vocab, static_cast<std::size_t>(dims_.n_vocab),
         vector(dims_.n_layers * kVectors + 2), false, false}};
    project(&job, 1);
  }
}

}  // namespace kogpt
