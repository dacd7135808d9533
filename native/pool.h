// A small fork-join pool. One caller hands out numbered tasks; whoever is awake takes the next one.
//
// A worker that sleeps, or is off the core because the machine is busy, simply takes no tasks: the
// caller never waits for a worker that has not begun. That is what keeps the pool fast when more
// threads than cores are runnable.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace kogpt {

class Pool {
 public:
  // Throws std::bad_alloc if the system gives no such number of threads.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Calls f(task, thread) for every task in [0, n); returns when all have returned.
  // thread is in [0, threads()) and no two concurrent calls share it. f may throw std::bad_alloc and nothing
  // else: then the tasks still run to their end, and it is thrown here.
  template <class F>
  void run(int n, const F& f) {
    if (n == 1 || threads_ == 1) {
      for (int task = 0; task < n; ++task) f(task, 0);
      return;
    }
    dispatch(
        n, [](const void* context, int task, int thread) { (*static_cast<const F*>(context))(task, thread); },
        &f);
  }

 private:
  using Call = void (*)(const void* context, int task, int thread);

  // The threads, and what they share with the caller.
  class Crew {
   public:
    explicit Crew(int threads);
    ~Crew();
    void dispatch(int n, Call call, const void* context);

   private:
    void dismiss();
    void work(int thread);
    bool take(std::uint32_t epoch, std::uint32_t& task);
    void perform(std::uint32_t epoch, int thread);

    // (epoch << 32) | next task: one word, so that a late worker cannot take a task of another epoch.
    alignas(64) std::atomic<std::uint64_t> ticket_{0};
    alignas(64) std::atomic<std::uint32_t> n_tasks_{0};
    Call call_ = nullptr;
    const void* context_ = nullptr;
    alignas(64) std::atomic<std::uint32_t> done_{0};
    std::atomic<bool> failed_{false};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
  };

  void dispatch(int n, Call call, const void* context);
  bool forked() const;

  int threads_;
  unsigned forks_;  // of the process when the crew was hired
  Crew* crew_;  // a forked child has its memory but none of its threads: it hires its own and leaves this one
                // be
};

}  // namespace kogpt
