#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace fl {
namespace {

// Chunks that threads take in turn until none is left.
struct Job {
  std::atomic<int64_t> next;
  const int64_t count, chunk;
  const ChunkFn fn;
  const void* const context;

  void drain() {
    for (;;) {
      const int64_t begin = next.fetch_add(chunk);
      if (begin >= count) return;
      fn(context, begin, std::min(begin + chunk, count));
    }
  }
};

// Workers sleep between jobs. The calling thread always takes part, so a job needs threads - 1 workers.
class Pool {
 public:
  // False when another Python thread is using the workers.
  bool run(Job& job, int threads) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < threads - 1) {
        std::thread(&Pool::work, this, workers_).detach();
        ++workers_;
      }
      job_ = &job;
      wanted_ = running_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job.drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
    return true;
  }

 private:
  void work(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= wanted_) continue;
      Job& job = *job_;
      lock.unlock();
      job.drain();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  int workers_ = 0;
  int wanted_ = 0;
  int running_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads may still sleep in it when the process exits. A forked child inherits the memory but
// not the threads, neither these nor OpenMP's, so it starts with a pool of its own.
std::atomic<Pool*> pool{nullptr};
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  pool = nullptr;
  forked = true;
});

Pool& the_pool() {
  Pool* current = pool;
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

// In the OpenMP runtime that PyTorch has loaded, if there is one. Its threads spin for milliseconds after each
// operator of PyTorch, and threads of our own would get no core beside them. It keeps its threads only while teams
// stay of one size, so the team is PyTorch's even where there are fewer chunks.
bool run_on_openmp(Job& job, int threads) {
  using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (parallel == nullptr || forked) return false;
  parallel([](void* data) { static_cast<Job*>(data)->drain(); }, &job, unsigned(threads), 0);
  return true;
}

}  // namespace

void parallel_chunks(int64_t count, int64_t chunk, int threads, ChunkFn fn, const void* context) {
  if (count <= 0) return;
  const int64_t chunks = (count + chunk - 1) / chunk;
  Job job{{0}, count, chunk, fn, context};
  if (threads > 1 && chunks > 1) {
    if (run_on_openmp(job, threads)) return;
    if (the_pool().run(job, static_cast<int>(std::min<int64_t>(threads, chunks)))) return;
  }
  job.drain();
}

}  // namespace fl
