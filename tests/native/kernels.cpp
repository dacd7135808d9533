// The kernels of every named instruction set beside the plain ones, without Python: scripts/arm runs it under
// qemu.
//
//   kernels             all sets of this processor
//   kernels SET...      the sets that it must have, best first; any other must be refused
//
// What is computed in integers (int8 and int4 projections, packing, conversions) is compared bit for bit;
// what is summed in float32 to within its rounding. No output may depend on the tokens beside it, not by a
// bit.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../native/buffer.h"
#include "../../native/codebook.h"
#include "../../native/kernels.h"
#include "../../native/model.h"
#include "../../native/weights.h"

extern "C" {
const char* kogpt_isa();
kogpt::Model* kogpt_create(const kogpt::Dims*, int, int, int);
void kogpt_destroy(kogpt::Model*);
int kogpt_load_projection(kogpt::Model*, int, int, const void*);
void kogpt_load_vector(kogpt::Model*, int, const float*);
void kogpt_borrow_embedding(kogpt::Model*, int, const void*);
int kogpt_open(kogpt::Model*, int);
int kogpt_fork(kogpt::Model*, int, int);
void kogpt_close(kogpt::Model*, int);
int kogpt_length(kogpt::Model*, int);
void kogpt_truncate(kogpt::Model*, int, int);
int kogpt_forward(kogpt::Model*, const kogpt::Chunk*, int, int, float*);
}

// Allocations by `new` until one fails; below 0 none does.
std::atomic<int> allocations_left{-1};

void* operator new(std::size_t n) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  void* memory = std::malloc(n == 0 ? 1 : n);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace kogpt;
using Floats = std::vector<float>;

constexpr Format kFormats[] = {Format::f32, Format::f16, Format::bf16, Format::i8, Format::i4};
constexpr const char* kFormatNames[] = {"float32", "float16", "bfloat16", "int8", "int4"};
constexpr const char* kSets[] = {"amx", "avx512", "avx2", "dotprod", "neon", "plain"};

int failures = 0;

bool is_packed(Format format) { return format == Format::i8 || format == Format::i4; }

void fail(const std::string& what) {
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

// Each value within `tolerance` of the wanted one, in units of the largest wanted; 0 means the same bits.
void expect(const Floats& found, const Floats& wanted, double tolerance, const std::string& what) {
  if (found.size() != wanted.size()) return fail(what + ": sizes");
  double largest = 0, error = 0;
  for (float value : wanted) largest = std::fmax(largest, std::fabs(value));
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double off = std::fabs(static_cast<double>(found[i]) - wanted[i]);
    error = off >= error || std::isnan(off) ? off : error;
    if (std::isnan(off)) break;
  }
  const bool same = std::memcmp(found.data(), wanted.data(), found.size() * sizeof(float)) == 0;
  if (tolerance == 0 ? !same : !(error <= tolerance * largest)) {
    fail(what + ": off by " + std::to_string(error) + " of " + std::to_string(largest));
  }
}

Floats normal(std::mt19937& random, std::size_t n, float scale = 1.0f) {
  std::normal_distribution<float> draw(0.0f, scale);
  Floats values(n);
  for (float& value : values) value = draw(random);
  return values;
}

void set_isa(const char* name) { setenv("KOGPT_ISA", name, 1); }

const Kernels* kernels_named(const char* name) {
  set_isa(name);
  return choose_kernels();
}

// ---- threads ----

// Every task once, whatever the number of threads and however long they have slept; crews that end while they
// sleep.
void check_pool() {
  for (int threads : {1, 2, 3, 16}) {
    Pool pool(threads);
    std::vector<std::atomic<int>> counts(300);
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(threads));
    int wanted = 0;
    for (int round = 0; round < 60; ++round) {
      const int n = round * 5 % 301;
      wanted += n;
      if (round % 20 == 19) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pool.run(n, [&](int task, int thread) {
        if (busy[static_cast<std::size_t>(thread)]++ != 0) fail("two tasks at once for one thread");
        ++counts[static_cast<std::size_t>(task)];
        --busy[static_cast<std::size_t>(thread)];
      });
    }
    int found = 0;
    for (const auto& count : counts) found += count;
    if (found != wanted)
      fail("tasks of the pool: " + std::to_string(found) + " of " + std::to_string(wanted));
    bool thrown = false;
    std::atomic<int> others{0};
    try {
      pool.run(40, [&](int task, int) {
        if (task == 0 && threads > 1) throw std::bad_alloc();
        ++others;
      });
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    if (threads > 1 && (!thrown || others != 39)) fail("a task without memory");
    if (threads == 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// ---- conversions ----

std::uint16_t narrow_one(Format to, float x) {  // towards zero; x is within float16
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (to == Format::bf16) return static_cast<std::uint16_t>(bits >> 16);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  if ((bits & 0x7FFFFFFF) < 0x38800000) return static_cast<std::uint16_t>(sign);  // below 2^-14
  return static_cast<std::uint16_t>(sign | ((bits & 0x7FFFFFFF) - 0x38000000) >> 13);
}

void check_widen(const Kernels& set, const std::string& name) {
  std::vector<std::uint16_t> every;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) every.push_back(static_cast<std::uint16_t>(bits));
  for (Format format : {Format::f16, Format::bf16}) {
    for (std::size_t n : {every.size(), std::size_t{1}, std::size_t{16}, std::size_t{37}}) {
      Floats found(n), wanted(n);
      set.widen(format, every.data(), n, found.data());
      kPlain.widen(format, every.data(), n, wanted.data());
      for (std::size_t i = 0; i < n; ++i) {  // which NaN is of no interest
        if (std::isnan(found[i]) && std::isnan(wanted[i])) found[i] = wanted[i] = 0;
      }
      expect(found, wanted, 0, name + " widen " + kFormatNames[static_cast<int>(format)]);
    }
  }
}

void check_layer_norm(const Kernels& set, const std::string& name, std::mt19937& random) {
  for (int n : {1, 15, 16, 17, 48, 130}) {
    const auto width = static_cast<std::size_t>(n);
    const Floats x = normal(random, width), weight = normal(random, width), bias = normal(random, width);
    Floats found(width), wanted(width);
    set.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, found.data());
    kPlain.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, wanted.data());
    expect(found, wanted, 2e-6, name + " layer_norm " + std::to_string(n));
  }
}

// ---- weights ----

struct Matrix {
  Format format;
  int n, k;
  Floats values;  // (16 ceil(n / 16), kp), what the kernels should multiply with
  Buffer data;
  Floats scales;
  Linear linear;
};

void unpack_all(const Kernels& set, const Matrix& w, std::vector<std::int8_t>& out) {  // tile after tile
  const std::size_t bytes = w.format == Format::i4 ? kTile4 : kTile8;
  const std::size_t tiles = stored_bytes(w.format, w.n, w.k) / bytes;
  out.resize(tiles * kTile8);
  for (std::size_t i = 0; i < tiles; ++i) {
    set.unpack(w.format, w.data.data() + i * bytes, out.data() + i * kTile8);
  }
}

// Values (n, k) to codes by one set and to tiles by another; importance (kp) or nullptr.
void round_into(Matrix& w, const Kernels& set, const Kernels& packer, const Floats& values,
                const float* importance) {
  const int kp = round_up(w.k, kDepth);
  const auto rows = static_cast<std::size_t>(round_up(w.n, kPanel)), width = static_cast<std::size_t>(kp);
  w.scales.assign(rows, 0.0f);
  w.data = Buffer(stored_bytes(w.format, w.n, w.k));
  for (std::size_t first = 0; first < rows; first += kPanel) {
    std::vector<std::uint8_t> codes(kPanel * width), groups(kPanel * width / kGroup);
    for (std::size_t r = 0; r < kPanel && first + r < static_cast<std::size_t>(w.n); ++r) {
      Floats row(width);
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(first + r) * w.k, w.k, row.begin());
      w.scales[first + r] = set.quantize(w.format, row.data(), kp, importance, codes.data() + r * width,
                                         groups.data() + r * width / kGroup);
    }
    packer.pack(w.format, codes.data(), groups.data(), kp,
                w.data.data() + first / kPanel * stored_bytes(w.format, kPanel, w.k));
  }
}

// Random weights (n, k) in one format, rounded by the plain kernels, in the tiles of a set.
std::unique_ptr<Matrix> make_matrix(const Kernels& set, Format format, int n, int k, std::mt19937& random) {
  auto w = std::make_unique<Matrix>();
  w->format = format;
  w->n = n;
  w->k = k;
  const int kp = round_up(k, kDepth);
  const auto rows = static_cast<std::size_t>(round_up(n, kPanel)), width = static_cast<std::size_t>(kp);
  const Floats values = normal(random, static_cast<std::size_t>(n * k), 0.05f);
  w->scales.assign(rows, 0.0f);
  if (is_packed(format)) {
    round_into(*w, kPlain, set, values, nullptr);
  } else {
    w->data = Buffer(rows * width * width_of(format));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t at = i / static_cast<std::size_t>(k) * width + i % static_cast<std::size_t>(k);
      if (format == Format::f32) {
        w->data.floats()[at] = values[i];
      } else {
        reinterpret_cast<std::uint16_t*>(w->data.data())[at] = narrow_one(format, values[i]);
      }
    }
  }
  w->linear = {format, n, k, kp, w->data.data(), w->scales.data(), kTable.data()};
  return w;
}

// y (m, n) of m tokens x (m, ld), outputs in two calls where there is more than one panel.
Floats multiply(const Kernels& set, const Matrix& w, const Floats& x, std::size_t ld, int m,
                bool all_of_output) {
  const auto tokens = static_cast<std::size_t>(m), width = static_cast<std::size_t>(w.linear.kp);
  Buffer data(acts_bytes(w.format, tokens, width));
  Buffer scratch(set.scratch_bytes(w.linear.kp, 2));
  const Acts acts{w.format, m, w.linear.kp, data.data()};
  for (int m0 = 0; m0 < m; m0 += kMaxWidth) {
    set.prepare(x.data(), ld, m0, m0 + kMaxWidth < m ? m0 + kMaxWidth : m, acts, scratch.data());
  }
  const auto n_out = static_cast<std::size_t>(w.n), ld_out = n_out + 3;
  Floats out(tokens * ld_out), bias(static_cast<std::size_t>(round_up(w.n, kDepth)));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i % 13) - 6.0f;
  for (std::size_t i = 0; i < n_out; ++i) bias[i] = static_cast<float>(i % 7) / 8.0f;
  Output to{out.data(), ld_out, nullptr, false, false};
  if (all_of_output) to = {out.data(), ld_out, bias.data(), true, true};
  const int middle = w.n > kPanel ? kPanel : w.n;
  set.linear(w.linear, acts, 0, middle, to, scratch.data());
  if (middle < w.n) set.linear(w.linear, acts, middle, w.n, to, scratch.data());
  return out;
}

void check_linear(const Kernels& set, const std::string& name, std::mt19937& random) {
  const int shapes[][2] = {{1, 1}, {16, 64}, {17, 65}, {50, 130}, {96, 200}, {33, 4100}};
  for (Format format : kFormats) {
    for (const auto& shape : shapes) {
      auto again = random;
      const auto plain = make_matrix(kPlain, format, shape[0], shape[1], again);
      const auto w = make_matrix(set, format, shape[0], shape[1], random);
      const auto kp = static_cast<std::size_t>(w->linear.kp), ld = kp + 5;
      constexpr int kMost = 101;  // more than a set takes at a time
      Floats x(kMost * ld);
      for (std::size_t i = 0; i < kMost; ++i) {
        const Floats token = normal(random, static_cast<std::size_t>(w->k), i % 5 == 4 ? 40.0f : 1.0f);
        std::copy(token.begin(), token.end(), x.begin() + static_cast<std::ptrdiff_t>(i * ld));
        const float outlier =
            i % 2 == 0 ? 60.0f : 5000.0f;  // of which the second is as far as integers reach
        for (std::size_t j = i; i % 3 == 1 && j < token.size(); j += 777) x[i * ld + j] *= outlier;
      }
      const std::string what = name + " linear " + kFormatNames[static_cast<int>(format)] + " " +
                               std::to_string(shape[0]) + " x " + std::to_string(shape[1]);
      for (bool all : {false, true}) {
        // bfloat16 activations where there are products of them; GELU's exponential differs in the last bits
        const double tolerance = format == Format::bf16 ? 8e-3 : is_packed(format) && !all ? 0 : 3e-6;
        const Floats most = multiply(set, *w, x, ld, kMost, all);
        expect(most, multiply(kPlain, *plain, x, ld, kMost, all), tolerance, what);
        for (int m : {1, 2, 3, 4, 5, 6, 7, 16, 24, 37}) {
          const Floats few = multiply(set, *w, x, ld, m, all);
          expect(few, Floats(most.begin(), most.begin() + static_cast<std::ptrdiff_t>(few.size())), 0,
                 what + " alone and beside others, " + std::to_string(m));
        }
      }
    }
  }
}

void check_packing(const Kernels& set, const std::string& name, std::mt19937& random) {
  constexpr int kN = 21, kK = 150;
  const Floats values = normal(random, kN * kK);
  Floats importance = normal(random, round_up(kK, kDepth));
  for (float& value : importance) value = value * value + 0.1f;
  for (Format format : {Format::i8, Format::i4}) {
    const std::string what = name + " quantize " + kFormatNames[static_cast<int>(format)];
    for (const float* weights :
         {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
      Matrix found, wanted;
      for (Matrix* w : {&found, &wanted}) {
        w->format = format;
        w->n = kN;
        w->k = kK;
        const Kernels& own = w == &found ? set : kPlain;
        round_into(*w, own, own, values, weights);
      }
      expect(found.scales, wanted.scales, 0, what + " scales");
      std::vector<std::int8_t> one, other;
      unpack_all(set, found, one);
      unpack_all(kPlain, wanted, other);
      if (one != other) fail(what);
    }
  }
}

// ---- low-rank updates ----

// B A x of some of the tokens x (m, ld), added to 1; in two calls where there is more than one panel.
Floats update(const Kernels& set, const LowRank& w, const Floats& x, std::size_t ld,
              const std::vector<int>& tokens) {
  const int count = static_cast<int>(tokens.size());
  Floats inner(tokens.size() * static_cast<std::size_t>(w.rank));
  set.compress(w, x.data(), ld, tokens.data(), count, inner.data());
  const auto ld_out = static_cast<std::size_t>(w.n) + 3;
  Floats out(x.size() / ld * ld_out, 1.0f);
  const int middle = std::min(w.n, kPanel);
  set.expand(w, inner.data(), tokens.data(), count, 0, middle, out.data(), ld_out);
  if (middle < w.n) set.expand(w, inner.data(), tokens.data(), count, middle, w.n, out.data(), ld_out);
  return out;
}

void check_updates(const Kernels& set, const std::string& name, std::mt19937& random) {
  const int shapes[][3] = {{1, 1, 1}, {16, 64, 16}, {17, 65, 3}, {50, 130, 17}, {96, 2100, 5}};
  for (Format format : {Format::f32, Format::bf16}) {
    for (const auto& [n, k, rank] : shapes) {
      std::vector<Linear> projections(2);
      projections[0].n = n;
      projections[0].k = k;
      projections[0].kp = round_up(k, kDepth);
      const Floats a = normal(random, static_cast<std::size_t>(rank * k), 0.1f);
      const Floats b = normal(random, static_cast<std::size_t>(n * rank));
      const Factors factors{0, rank, 0.5f, a.data(), b.data()};
      const Adapter adapter(projections, format, &factors, 1);
      const std::string what = name + " update " + kFormatNames[static_cast<int>(format)] + " " +
                               std::to_string(n) + " x " + std::to_string(k);
      const auto ld = static_cast<std::size_t>(projections[0].kp) + 5;
      Floats x(9 * ld);
      for (std::size_t i = 0; i < 9; ++i) {
        const Floats token = normal(random, static_cast<std::size_t>(k));
        std::copy(token.begin(), token.end(), x.begin() + static_cast<std::ptrdiff_t>(i * ld));
      }
      const LowRank& w = adapter.update(0);
      const Floats found = update(set, w, x, ld, {7, 0, 3, 4, 8, 1, 2});
      expect(found, update(kPlain, w, x, ld, {7, 0, 3, 4, 8, 1, 2}), 3e-6, what);
      const auto ld_out = static_cast<std::size_t>(n) + 3;
      for (int token : {0, 1, 4, 7, 8}) {
        const Floats alone = update(set, w, x, ld, {token});
        const auto at = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(token) * ld_out);
        const auto end = at + static_cast<std::ptrdiff_t>(ld_out);
        expect(Floats(alone.begin() + at, alone.begin() + end),
               Floats(found.begin() + at, found.begin() + end), 0, what + " alone and beside others");
      }
      double exact = 1;  // of token 0, output 0
      for (int j = 0; j < rank; ++j) {
        for (int i = 0; i < k; ++i) {
          exact += 0.5 * b[static_cast<std::size_t>(j)] * a[static_cast<std::size_t>(j * k + i)] *
                   x[static_cast<std::size_t>(i)];
        }
      }
      expect({found[0]}, {static_cast<float>(exact)}, format == Format::f32 ? 1e-5 : 0.05, what + " exactly");
    }
  }
}

// ---- choosing tokens ----

// The same tokens and the same bits of every pass over a vocabulary.
void check_sampling(const Kernels& set, const std::string& name, std::mt19937& random) {
  for (int n : {1, 15, 33, 5000}) {
    const auto size = static_cast<std::size_t>(n);
    const Floats logits = normal(random, size, 4.0f);
    if (set.highest(logits.data(), n) != kPlain.highest(logits.data(), n)) fail(name + " highest");
    std::vector<double> found(size), wanted(size), weights(size), others(size);
    set.scale(logits.data(), nullptr, n, 20.0, 0.01, found.data());
    kPlain.scale(logits.data(), nullptr, n, 20.0, 0.01, wanted.data());
    if (found != wanted) fail(name + " scale");
    if (set.weigh(found.data(), n, weights.data()) != kPlain.weigh(found.data(), n, others.data()) ||
        weights != others) {
      fail(name + " weigh");
    }
    Sampler one(set, n), other(kPlain, n);
    for (std::uint64_t key = 0; key < 200; ++key) {
      const Draw draw{key,
                      0.1 * static_cast<double>(key % 13),
                      key % 3 == 0 ? 1.0 : 0.9,
                      key % 5 == 0 ? 0.05 : 0.0,
                      key % 2 == 0 ? 0 : 50,
                      0,
                      n,
                      -1,
                      0,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};
      if (one.sample(logits.data(), draw, nullptr).token != other.sample(logits.data(), draw, nullptr).token)
        fail(name + " sample");
    }
  }
}

// ---- attention ----

// One head's outputs for the queries of `texts`, each t queries after `first` positions. All texts are one
// beginning of (k, v), in blocks of their own but for the tiles that `shared` says.
struct Text {
  int first, t;
};

Floats attend(const Kernels& set, const Floats& q, const Floats& k, const Floats& v, int d, Format format,
              const std::vector<Text>& texts, int shared = 0) {
  const auto width = static_cast<std::size_t>(d);
  const std::size_t side = head_bytes(format, d);
  std::vector<Buffer> blocks;
  std::vector<std::vector<unsigned char*>> pointers;
  std::vector<Span> spans;
  Floats queries;
  for (const Text& text : texts) {
    pointers.emplace_back();
    const int positions = text.first + text.t, common = pointers.size() > 1 ? shared * kTile : 0;
    for (int base = 0; base < positions; base += kBlock) {
      const bool borrowed = base < common;
      pointers.back().push_back(borrowed ? pointers[0][static_cast<std::size_t>(base / kBlock)]
                                         : blocks.emplace_back(2 * side).data());
    }
    for (int i = common; i < positions; ++i) {
      unsigned char* block = pointers.back()[static_cast<std::size_t>(i / kBlock)];
      const std::size_t at = static_cast<std::size_t>(i) * width;
      set.store(k.data() + at, v.data() + at, d, format, i % kBlock, block, block + side);
    }
    spans.push_back({static_cast<int>(queries.size() / width), text.t, text.first, nullptr});
    const auto from = q.begin() + static_cast<std::ptrdiff_t>(text.first) * d;
    queries.insert(queries.end(), from, from + static_cast<std::ptrdiff_t>(text.t) * d);
  }
  for (std::size_t i = 0; i < spans.size(); ++i) spans[i].blocks = pointers[i].data();
  Buffer scratch(set.scratch_bytes(64, d));
  Floats out(queries.size());
  const Attend job{
      spans.data(), static_cast<int>(spans.size()), shared, queries.data(), out.data(), width, d, format, 0,
      side};
  set.attend(job, scratch.data());
  return out;
}

void check_attention(const Kernels& set, const std::string& name, std::mt19937& random) {
  constexpr int kMost = 300;
  for (int d : {1, 2, 13, 32, 70}) {
    const auto n = static_cast<std::size_t>(kMost * d);
    const Floats q = normal(random, n, 2.0f), k = normal(random, n), v = normal(random, n);
    for (Format format : {Format::f32, Format::bf16, Format::i8}) {
      const std::string what =
          name + " attend, " + kFormatNames[static_cast<int>(format)] + ", d " + std::to_string(d);
      const auto rows = [&](const Floats& all, std::size_t from, int t) {
        const auto at = all.begin() + static_cast<std::ptrdiff_t>(from);
        return Floats(at, at + static_cast<std::ptrdiff_t>(t) * d);
      };
      for (const Text& text : {Text{0, 1},
                               {0, 5},
                               {15, 2},
                               {31, 1},
                               {32, 1},
                               {63, 3},
                               {64, 33},
                               {100, 64},
                               {255, 1},
                               {256, 44}}) {
        const Floats found = attend(set, q, k, v, d, format, {text});
        const std::string where = what + " " + std::to_string(text.first) + " + " + std::to_string(text.t);
        // bfloat16 products where the set has them
        expect(found, attend(kPlain, q, k, v, d, format, {text}), format == Format::f32 ? 3e-6 : 3e-2, where);
        for (int i = 0; i < text.t; ++i) {
          const Floats one = attend(set, q, k, v, d, format, {{text.first + i, 1}});
          expect(one, rows(found, static_cast<std::size_t>(i * d), 1), 0, where + " one by one");
        }
      }
      const std::vector<Text> family{{256, 3}, {290, 1}, {270, 9}, {256, 44}};
      const Floats found = attend(set, q, k, v, d, format, family, 2);
      std::size_t from = 0;
      for (const Text& text : family) {
        expect(attend(set, q, k, v, d, format, {text}), rows(found, from, text.t), 0,
               what + " sharing tiles");
        from += static_cast<std::size_t>(text.t * d);
      }
    }
    // What int8 costs: a step is 1/254 of a position's largest value.
    const Floats exact = attend(set, q, k, v, d, Format::f32, {{0, 64}});
    expect(attend(set, q, k, v, d, Format::i8, {{0, 64}}), exact, 0.03,
           name + " int8 beside float32, d " + std::to_string(d));
  }
}

// ---- a whole model ----

struct Weights {
  Dims dims{2, 3, 39, 65, 51, 90, 12, 1e-5f};
  std::vector<Floats> projections, vectors;
  Floats embedding;

  explicit Weights(std::mt19937& random) {
    const auto e = static_cast<std::size_t>(dims.d_model), f = static_cast<std::size_t>(dims.d_ff);
    const auto v = static_cast<std::size_t>(dims.n_vocab);
    embedding = normal(random, v * e);
    for (int layer = 0; layer < dims.n_layers; ++layer) {
      for (int i = 0; i < 4; ++i) projections.push_back(normal(random, e * e, 0.2f));
      projections.push_back(normal(random, f * e, 0.2f));
      projections.push_back(normal(random, e * f, 0.2f));
      for (std::size_t width : {e, e, f, e}) vectors.push_back(normal(random, width));
    }
    projections.push_back(normal(random, v * e, 0.2f));
    for (std::size_t width : {e, e, v}) vectors.push_back(normal(random, width));
  }
};

Model* load(const Weights& weights, const char* isa, Format format, int threads) {
  set_isa(isa);
  Model* model = kogpt_create(&weights.dims, static_cast<int>(format),
                              static_cast<int>(format == Format::f32 ? format : Format::bf16), threads);
  int index = 0;
  for (const Floats& w : weights.projections) kogpt_load_projection(model, index++, 0, w.data());
  index = 0;
  for (const Floats& v : weights.vectors) kogpt_load_vector(model, index++, v.data());
  kogpt_borrow_embedding(model, 0, weights.embedding.data());
  return model;
}

// Logits of every position of texts of these lengths, read `step` positions at a time, all rows together or
// alone.
Floats logits(const Weights& weights, const char* isa, Format format, int threads, int step, bool together) {
  Model* model = load(weights, isa, format, threads);
  const std::vector<int> lengths{40, 1, 17, 2, 33};
  const auto vocabulary = static_cast<std::size_t>(weights.dims.n_vocab);
  std::vector<std::int64_t> ids(64);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i * 7 % vocabulary);
  std::vector<Floats> texts(lengths.size());
  std::vector<int> rows;
  for (std::size_t i = 0; i < lengths.size(); ++i) rows.push_back(kogpt_open(model, kNoAdapter));
  const auto read = [&](const std::vector<std::size_t>& chosen, int start) {
    std::vector<Chunk> chunks;
    std::size_t outputs = 0;
    for (std::size_t i : chosen) {
      const int count = std::min(step, lengths[i] - start);
      if (count <= 0) continue;
      chunks.push_back({rows[i], count, count, ids.data() + start, nullptr});
      outputs += static_cast<std::size_t>(count);
    }
    if (chunks.empty()) return;
    Floats out(outputs * vocabulary);
    if (kogpt_forward(model, chunks.data(), static_cast<int>(chunks.size()), 0, out.data()) != 0)
      fail("forward");
    auto from = out.begin();
    for (const Chunk& chunk : chunks) {
      const auto size = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(chunk.t) * vocabulary);
      Floats& text = texts[static_cast<std::size_t>(chunk.row)];
      text.insert(text.end(), from, from + size);
      from += size;
    }
  };
  for (int start = 0; start < 40; start += step) {
    if (together) {
      read({0, 1, 2, 3, 4}, start);
    } else {
      for (std::size_t i = 0; i < lengths.size(); ++i) read({i}, start);
    }
  }
  Floats all;
  for (const Floats& text : texts) all.insert(all.end(), text.begin(), text.end());
  for (int row : rows) kogpt_close(model, row);
  kogpt_destroy(model);
  return all;
}

void check_model(const std::string& name, std::mt19937& random) {
  const Weights weights(random);
  for (Format format : kFormats) {
    const std::string what = name + " model " + kFormatNames[static_cast<int>(format)];
    const Floats found = logits(weights, name.c_str(), format, 2, 64, true);
    const double tolerance = format == Format::f32    ? 1e-5
                             : format == Format::bf16 ? 0.05
                                                      : 0.01;  // bfloat16 cache
    expect(found, logits(weights, "plain", format, 1, 64, true), tolerance, what);
    expect(logits(weights, name.c_str(), format, 3, 64, false), found, 0, what + " row by row");
    expect(logits(weights, name.c_str(), format, 1, 7, true), found, 0, what + " in chunks of 7");
    expect(logits(weights, name.c_str(), format, 1, 1, false), found, 0, what + " one by one");
  }
}

// A fork and a step of which the n-th allocation fails, and what follows once there is memory again: the same
// bits as if it had not failed, and no row that nobody has.
bool survives(const Weights& weights, int n, Floats& found) {
  constexpr int kRead = 20, kMore = 30;
  Model* model = load(weights, "plain", Format::f32, 1);
  std::vector<std::int64_t> ids(64, 3);
  const int parent = kogpt_open(model, kNoAdapter);
  const Chunk first{parent, kRead, 0, ids.data(), nullptr};
  kogpt_forward(model, &first, 1, 0, nullptr);
  found.resize(static_cast<std::size_t>(weights.dims.n_vocab) * 2 * kMore);
  allocations_left = n;
  int child = kogpt_fork(model, parent, kRead - 1);
  const bool forked = child >= 0;
  if (!forked) child = kogpt_fork(model, parent, kRead - 1);
  if (child != parent + 1) fail("a fork without memory keeps a row");
  const Chunk more[] = {{parent, kMore, kMore, ids.data(), nullptr},
                        {child, kMore, kMore, ids.data(), nullptr}};
  const auto step = [&] { return kogpt_forward(model, more, 2, 0, found.data()) == 0; };
  const bool stepped = step();
  const bool failed = !forked || !stepped;
  allocations_left = -1;
  if (!stepped && n % 2 == 0) kogpt_truncate(model, parent, kogpt_length(model, parent));
  if (!stepped && !step()) fail("a step with memory again");
  kogpt_destroy(model);
  return failed;
}

void check_memory(std::mt19937& random) {
  const Weights weights(random);
  Floats wanted, found;
  survives(weights, -1, wanted);
  for (int n = 0; survives(weights, n, found); ++n) {
    expect(found, wanted, 0, "after allocation " + std::to_string(n) + " failed");
  }
}

// The sets to check: those named, which must be all that there are, or all that there are.
std::vector<std::string> chosen_sets(int named, char** names) {
  std::vector<std::string> wanted(names, names + named), present;
  for (const char* known : kSets) {
    if (kernels_named(known) != nullptr) present.emplace_back(known);
  }
  set_isa("");
  if (present.front() != kogpt_isa()) fail(std::string("chosen: ") + kogpt_isa());
  if (named > 0 && wanted != present) {
    std::string all;
    for (const std::string& name : present) all += " " + name;
    fail("this processor has" + all);
  }
  return present;
}

}  // namespace

int main(int argc, char** argv) {
  check_pool();
  std::mt19937 shapes(11);
  check_memory(shapes);
  for (const std::string& name : chosen_sets(argc - 1, argv + 1)) {
    const Kernels& set = *kernels_named(name.c_str());
    if (&set == &kPlain) continue;
    std::mt19937 random(7);
    check_widen(set, name);
    check_layer_norm(set, name, random);
    check_packing(set, name, random);
    check_linear(set, name, random);
    check_updates(set, name, random);
    check_sampling(set, name, random);
    check_attention(set, name, random);
    check_model(name, random);
    std::printf("%s: %s\n", name.c_str(), failures == 0 ? "equal to plain" : "differs");
  }
  return failures == 0 ? 0 : 1;
}
