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
constexpr double kPerLogit = 32;    // choosing a token, in products of a projection
constexpr int kCompressed = 32;     // tokens of one task of `compress`

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
  samplers_.resize(static_cast<std::size_t>(threads));
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
  rotary_.resize(rotary_.size() / static_cast<std::size_t>(pairs) *
                 static_cast<std::size_t>(pairs));  // whole positions: memory may have ended within one
  for (int position = static_cast<int>(rotary_.size()) / pairs; position < positions; ++position) {
    for (int j = 0; j < pairs; ++j) {  // RoFormer, equation 15
      const double angle = position * std::pow(10000.0, -2.0 * j / dims_.rotary_dim);
      rotary_.push_back({static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))});
    }
  }
}

// Room for the next positions of a row. Attention reads whole blocks and weighs what lies after the row with
// 0: a NaN there, left by a row that was longer, would poison the sum.
void Model::extend(int row, int positions) {
  cache_.reserve(row, positions);
  if (!cache_.take_stale(row)) return;
  const int length = cache_.length(row);
  unsigned char* block = cache_.blocks(row)[length / kBlock];
  const std::vector<float> zeros(static_cast<std::size_t>(d_head_));
  for (int layer = 0; layer < dims_.n_layers; ++layer) {
    for (int head = 0; head < dims_.n_heads; ++head) {
      for (int slot = length % kBlock; slot < kBlock; ++slot) {
        kernels_.store(zeros.data(), zeros.data(), d_head_, cache_.format(), slot,
                       block + cache_.keys(layer, head), block + cache_.values(layer, head));
      }
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
  const auto matrix = [&](int i) -> const Linear& {
    return projections_[static_cast<std::size_t>(jobs[i].index)];
  };
  const int m = jobs[0].acts->m;
  int outputs = 0;
  for (int i = 0; i < n_jobs; ++i) outputs += matrix(i).n;
  const int step = task_outputs(outputs, output_bytes(matrix(0)), pool_.threads(), m);
  int ends[kProjections];
  bool updated[kProjections];
  int tasks = 0;
  for (int i = 0; i < n_jobs; ++i) {
    ends[i] = tasks += (matrix(i).n + step - 1) / step;
    updated[i] = is_updated(jobs[i].index);
  }
  const double products = static_cast<double>(outputs) * matrix(0).kp * m;
  run_in_order(tasks, products, [&](int task, int thread) {
    int i = 0;
    while (task >= ends[i]) ++i;
    const int n0 = (task - (i > 0 ? ends[i - 1] : 0)) * step, n1 = std::min(n0 + step, matrix(i).n);
    Output out = jobs[i].out;
    if (updated[i]) {
      expand(jobs[i].index, m, n0, n1, out);
      out.accumulate = true;
    }
    kernels_.linear(matrix(i), *jobs[i].acts, n0, n1, out, scratch_[static_cast<std::size_t>(thread)].data());
  });
}

// Reads chunks into their rows; the outputs wanted, (., e_) after the last layer norm, lie in last_. Their
// number.
int Model::read(const Chunk* chunks, int n_chunks) {
  int outputs = 0;
  for (int i = 0; i < n_chunks; ++i) outputs += chunks[i].n_outputs;
  last_.reserve(static_cast<std::size_t>(std::max(outputs, 1)) * static_cast<std::size_t>(e_) *
                sizeof(float));
  for (int i = 0; i < n_chunks; ++i) {
    extend(chunks[i].row, chunks[i].t);
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
  return outputs;
}

void Model::forward(const Chunk* chunks, int n_chunks, bool hidden, float* out) {
  const int outputs = read(chunks, n_chunks);
  for (int m0 = 0; m0 < outputs && !hidden; m0 += kHeadPass) {
    head(m0, std::min(kHeadPass, outputs - m0), out + static_cast<std::ptrdiff_t>(m0) * dims_.n_vocab);
  }
  for (int i = 0; i < outputs && hidden; ++i) {
    std::memcpy(out + static_cast<std::ptrdiff_t>(i) * dims_.d_model,
                last_.floats() + static_cast<std::ptrdiff_t>(i) * e_,
                static_cast<std::size_t>(dims_.d_model) * sizeof(float));
  }
}

void Model::draw(const Chunk* chunks, int n_chunks, const Wanted& wanted) {
  const int outputs = read(chunks, n_chunks), n_vocab = dims_.n_vocab;
  std::vector<Likely*> likeliest;  // room of each answer
  Likely* room = wanted.likeliest;
  for (int i = 0; i < wanted.n_draws; ++i) {
    likeliest.push_back(room);
    room += std::max(0, wanted.draws[i].n_likeliest);
  }
  for (int i = 0; i < wanted.n_targets; ++i) {
    likeliest.push_back(room);
    room += wanted.targets[i].n_likeliest;
  }
  std::vector<int> tasks;  // numbers of answers; of several targets of one output the first
  int target = 0;
  for (int m0 = 0; m0 < outputs; m0 += kHeadPass) {
    const int end = std::min(m0 + kHeadPass, outputs);
    tasks.clear();
    for (int i = 0; i < wanted.n_draws; ++i) {
      if (wanted.draws[i].output >= m0 && wanted.draws[i].output < end) tasks.push_back(i);
    }
    for (; target < wanted.n_targets && wanted.targets[target].output < end; ++target) {
      const Target* it = wanted.targets + target;
      if (target == 0 || it[-1].output != it->output) tasks.push_back(wanted.n_draws + target);
    }
    if (tasks.empty()) continue;
    const auto width = static_cast<std::size_t>(n_vocab);
    logits_.reserve(static_cast<std::size_t>(end - m0) * width * sizeof(float));
    head(m0, end - m0, logits_.floats());
    const auto logits = [&](int output) {
      return logits_.floats() + static_cast<std::size_t>(output - m0) * width;
    };
    const int n_tasks = static_cast<int>(tasks.size());
    run(n_tasks, kPerLogit * n_vocab * n_tasks, [&](int task, int thread) {
      const int answer = tasks[static_cast<std::size_t>(task)];
      Likely* entries = likeliest[static_cast<std::size_t>(answer)];
      if (answer < wanted.n_draws) {
        const Draw& draw = wanted.draws[answer];
        wanted.answers[answer] = sampler(thread).sample(logits(draw.output), draw, entries);
        return;
      }
      const int first = answer - wanted.n_draws;
      const Target* targets = wanted.targets + first;
      int count = 1;
      while (first + count < wanted.n_targets && targets[count].output == targets->output) ++count;
      sampler(thread).score(logits(targets->output), n_vocab, targets, count, wanted.answers + answer,
                            entries);
    });
  }
}

Sampler& Model::sampler(int thread) {
  std::unique_ptr<Sampler>& own = samplers_[static_cast<std::size_t>(thread)];
  if (own == nullptr) own = std::make_unique<Sampler>(kernels_, dims_.n_vocab);
  return *own;
}

void Model::load_cache(int row, const float* keys, const float* values, int positions) {
  extend(row, positions);
  const int first = cache_.length(row), heads = dims_.n_heads;
  unsigned char* const* blocks = cache_.blocks(row);
  pool_.run(dims_.n_layers * heads, [&](int task, int) {
    const int layer = task / heads, head = task % heads;
    for (int i = 0; i < positions; ++i) {
      const auto at = (static_cast<std::ptrdiff_t>(layer * positions + i) * heads + head) * d_head_;
      unsigned char* block = blocks[(first + i) / kBlock];
      kernels_.store(keys + at, values + at, d_head_, cache_.format(), (first + i) % kBlock,
                     block + cache_.keys(layer, head), block + cache_.values(layer, head));
    }
  });
  cache_.advance(row, positions);
}

int Model::add_adapter(Format format, const Factors* factors, int count) {
  auto adapter = std::make_unique<Adapter>(projections_, format, factors, count);
  std::size_t handle = 0;
  while (handle < adapters_.size() && adapters_[handle] != nullptr) ++handle;
  if (handle == adapters_.size()) adapters_.emplace_back();
  adapters_[handle] = std::move(adapter);
  return static_cast<int>(handle);
}

// Which tokens have which adapter, and the tasks of `compress` before and after attention.
void Model::plan_adapters(const std::vector<Piece>& pieces) {
  adapted_.clear();
  before_ = after_ = {};
  for (const Piece& piece : pieces) {
    const int handle = cache_.adapter(piece.chunk.row);
    if (handle == kNoAdapter) continue;
    const Adapter* adapter = adapters_[static_cast<std::size_t>(handle)].get();
    auto group = std::find_if(adapted_.begin(), adapted_.end(),
                              [&](const Adapted& other) { return other.adapter == adapter; });
    if (group == adapted_.end()) group = adapted_.insert(group, {adapter, {}, {}});
    for (int i = 0; i < piece.chunk.t; ++i) group->tokens.push_back(piece.start + i);
  }
  std::size_t floats = 0;
  for (Adapted& group : adapted_) {
    const int count = static_cast<int>(group.tokens.size());
    for (int projection = 0; projection < kProjections; ++projection) {
      const int rank = group.adapter->rank(projection);
      group.inner[projection] = floats;
      floats += static_cast<std::size_t>(rank) * group.tokens.size();
      Compressions& part = projection == kOut || projection == kFcOut ? after_ : before_;
      part.products += static_cast<double>(rank) * count * (projection == kFcOut ? f_ : e_);
      for (int begin = 0; begin < count && rank > 0; begin += kCompressed) {
        part.tasks.push_back({&group, projection, begin, std::min(count, begin + kCompressed)});
      }
    }
  }
  inner_.reserve(floats * sizeof(float));
}

// A x of all updates before or after attention.
void Model::compress(int layer, const Compressions& part) {
  run(static_cast<int>(part.tasks.size()), part.products, [&](int i, int) {
    const Compression& task = part.tasks[static_cast<std::size_t>(i)];
    const LowRank& update = task.group->adapter->update(layer * kProjections + task.projection);
    if (update.rank == 0) return;
    const bool wide = task.projection == kFcOut;
    const Buffer& x = wide ? ff_ : task.projection == kOut ? attended_ : h_;
    float* inner = inner_.floats() + task.group->inner[task.projection] +
                   static_cast<std::ptrdiff_t>(task.begin) * update.rank;
    kernels_.compress(update, x.floats(), static_cast<std::size_t>(wide ? f_ : e_),
                      task.group->tokens.data() + task.begin, task.end - task.begin, inner);
  });
}

// Whether some token of the pass has an update of a projection.
bool Model::is_updated(int index) const {
  return index < dims_.n_layers * kProjections &&
         std::any_of(
             adapted_.begin(), adapted_.end(),
             [&](const Adapted& group) { return group.adapter->update(index).rank > 0; });
}

// B A x of a projection into outputs [n0, n1), ahead of the product itself, which is then added to it. Tokens
// without an update get -0: adding to it changes no bit of any number.
void Model::expand(int index, int m, int n0, int n1, const Output& to) {
  for (int i = 0; i < m && !to.accumulate; ++i) {
    std::fill_n(to.out + static_cast<std::size_t>(i) * to.ld + n0, n1 - n0, -0.0f);
  }
  for (const Adapted& group : adapted_) {
    const LowRank& update = group.adapter->update(index);
    if (update.rank == 0) continue;
    kernels_.expand(update, inner_.floats() + group.inner[index % kProjections], group.tokens.data(),
                    static_cast<int>(group.tokens.size()), n0, n1, to.out, to.ld);
  }
}

void Model::pass(const std::vector<Piece>& pieces, int m) {
  reserve(m);
  plan_attention(pieces);
  plan_adapters(pieces);
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
  const int first = layer * kProjections;
  const Linear* w = &projections_[static_cast<std::size_t>(first)];
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
  if (!before_.tasks.empty()) compress(layer, before_);
  const Job in[] = {{first + kFcIn, &normal, {ff_.floats(), f, vector(vectors + kFcInBias), false, true}},
                    {first + kQ, &normal, {q_.floats(), e, nullptr, false, false}},
                    {first + kK, &normal, {k_.floats(), e, nullptr, false, false}},
                    {first + kV, &normal, {v_.floats(), e, nullptr, false, false}}};
  project(in, 4);

  attend(layer);
  const Acts mixed{w[kOut].format, m, e_, acts_[0].data()}, wide{w[kFcOut].format, m, f_, acts_[1].data()};
  by_tokens(m, [&](int m0, int m1, int thread) {
    kernels_.prepare(attended_.floats(), e, m0, m1, mixed, scratch(thread));
    kernels_.prepare(ff_.floats(), f, m0, m1, wide, scratch(thread));
  });
  if (!after_.tasks.empty()) compress(layer, after_);
  const bool out_updated = is_updated(first + kOut), fc_out_updated = is_updated(first + kFcOut);
  const int outputs = dims_.d_model;
  const int step = task_outputs(outputs, output_bytes(w[kOut]) + output_bytes(w[kFcOut]), pool_.threads(), m);
  run_in_order((outputs + step - 1) / step, static_cast<double>(outputs) * (e_ + f_) * m,
               [&](int task, int thread) {
                 const int n0 = task * step, n1 = std::min(n0 + step, outputs);
                 const Output sum{x_.floats(), e, nullptr, true, false};
                 const Output last{x_.floats(), e, vector(vectors + kFcOutBias), true, false};
                 if (out_updated) expand(first + kOut, m, n0, n1, sum);
                 if (fc_out_updated) expand(first + kFcOut, m, n0, n1, sum);
                 kernels_.linear(w[kOut], mixed, n0, n1, sum, scratch(thread));
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

// Logits (count, n_vocab) of outputs m0, m0 + 1 and so on.
void Model::head(int m0, int count, float* out) {
  reserve(count);
  const Acts last{projections_.back().format, count, e_, acts_[0].data()};
  const float* from = last_.floats() + static_cast<std::ptrdiff_t>(m0) * e_;
  by_tokens(count, [&](int i0, int i1, int thread) {
    kernels_.prepare(from, static_cast<std::size_t>(e_), i0, i1, last,
                     scratch_[static_cast<std::size_t>(thread)].data());
  });
  const float* bias = vector(dims_.n_layers * kVectors + 2);
  const Job job{dims_.n_layers * kProjections,
                &last,
                {out, static_cast<std::size_t>(dims_.n_vocab), bias, false, false}};
  project(&job, 1);
}

}  // namespace kogpt
