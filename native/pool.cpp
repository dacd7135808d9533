#include "pool.h"

#include <pthread.h>

#include <chrono>
#include <exception>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kogpt {

namespace {

// Long enough to bridge the sampling between two decode steps, short enough not to heat an idle machine.
constexpr auto kSpin = std::chrono::microseconds(300);
constexpr int kPausesPerLook = 32;
constexpr int kLooksBeforeYield = 64;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline std::uint32_t epoch_of(std::uint64_t ticket) { return static_cast<std::uint32_t>(ticket >> 32); }

std::atomic<unsigned> forks{0};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });

}  // namespace

Pool::Pool(int threads) : threads_(threads), forks_(forks.load()), crew_(new Crew(threads)) {}

Pool::~Pool() {
  if (!forked()) delete crew_;
}

bool Pool::forked() const { return forks_ != forks.load(std::memory_order_relaxed); }

void Pool::dispatch(int n, Call call, const void* context) {
  if (forked()) {
    crew_ = new Crew(threads_);
    forks_ = forks.load();
  }
  crew_->dispatch(n, call, context);
}

Pool::Crew::Crew(int threads) {
  try {
    workers_.reserve(static_cast<std::size_t>(threads));
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (const std::exception&) {  // the limit on processes, or no memory for a stack
    dismiss();
    throw std::bad_alloc();
  }
}

Pool::Crew::~Crew() { dismiss(); }

void Pool::Crew::dismiss() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

bool Pool::Crew::take(std::uint32_t epoch, std::uint32_t& task) {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    task = static_cast<std::uint32_t>(ticket);
    if (epoch_of(ticket) != epoch || task >= n_tasks_.load(std::memory_order_acquire)) return false;
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) return true;
  }
}

// While a task of this epoch is held, dispatch() cannot return, so call_ and context_ are this epoch's.
void Pool::Crew::perform(std::uint32_t epoch, int thread) {
  for (std::uint32_t task; take(epoch, task);) {
    try {
      call_(context_, static_cast<int>(task), thread);
    } catch (const std::bad_alloc&) {
      failed_.store(true, std::memory_order_relaxed);
    }
    done_.fetch_add(1, std::memory_order_acq_rel);
  }
}

void Pool::Crew::dispatch(int n, Call call, const void* context) {
  const std::uint32_t epoch = epoch_of(ticket_.load(std::memory_order_relaxed)) + 1;
  // No task of the last epoch is left, so nobody reads these until the ticket below is published.
  n_tasks_.store(0, std::memory_order_relaxed);
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  ticket_.store(static_cast<std::uint64_t>(epoch) << 32, std::memory_order_release);
  n_tasks_.store(static_cast<std::uint32_t>(n), std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }
  perform(epoch, 0);
  for (int looks = 0; done_.load(std::memory_order_acquire) != static_cast<std::uint32_t>(n); ++looks) {
    if (looks < kLooksBeforeYield * kPausesPerLook) {
      pause();
    } else {
      std::this_thread::yield();  // the holder of the last task may want this core
    }
  }
  if (failed_.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

void Pool::Crew::work(int thread) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "kogpt-kernels");  // as `top -H` shows it
#endif
  std::uint32_t seen = 0;
  auto idle_since = std::chrono::steady_clock::now();
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::uint32_t epoch = epoch_of(ticket_.load(std::memory_order_acquire));
    if (epoch != seen && n_tasks_.load(std::memory_order_acquire) != 0) {
      perform(epoch, thread);
      seen = epoch;
      idle_since = std::chrono::steady_clock::now();
      continue;
    }
    for (int i = 0; i < kPausesPerLook; ++i) pause();
    if (std::chrono::steady_clock::now() - idle_since < kSpin) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] {
      return stop_.load() ||
             (epoch_of(ticket_.load()) != seen && n_tasks_.load(std::memory_order_seq_cst) != 0);
    });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    idle_since = std::chrono::steady_clock::now();
  }
}

}  // namespace kogpt
