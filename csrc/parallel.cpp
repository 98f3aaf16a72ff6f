#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace fl {
namespace {

// Workers sleep between jobs. The calling thread always takes part, so a job needs threads - 1 workers.
class Pool {
 public:
  // False when another Python thread is using the workers.
  bool run(int64_t count, int64_t chunk, int threads, ChunkFn fn, const void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < threads - 1) {
        std::thread(&Pool::work, this, workers_).detach();
        ++workers_;
      }
      job_ = {count, chunk, fn, context};
      next_ = 0;
      wanted_ = running_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    drain(job_);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
    return true;
  }

 private:
  struct Job {
    int64_t count = 0;
    int64_t chunk = 1;
    ChunkFn fn = nullptr;
    const void* context = nullptr;
  };

  void work(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= wanted_) continue;
      const Job job = job_;
      lock.unlock();
      drain(job);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  void drain(const Job& job) {
    for (;;) {
      const int64_t begin = next_.fetch_add(job.chunk);
      if (begin >= job.count) return;
      job.fn(job.context, begin, std::min(begin + job.chunk, job.count));
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::atomic<int64_t> next_{0};
  Job job_;
  int workers_ = 0;
  int wanted_ = 0;
  int running_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads may still sleep in it when the process exits. A forked child inherits the memory but
// not the threads, so it starts with a pool of its own.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
  (void)registered;
  Pool* current = pool;
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

void parallel_chunks(int64_t count, int64_t chunk, int threads, ChunkFn fn, const void* context) {
  if (count <= 0) return;
  const int64_t chunks = (count + chunk - 1) / chunk;
  threads = static_cast<int>(std::min<int64_t>(threads, chunks));
  if (threads > 1 && the_pool().run(count, chunk, threads, fn, context)) return;
  for (int64_t begin = 0; begin < count; begin += chunk) {
    fn(context, begin, std::min(begin + chunk, count));
  }
}

}  // namespace fl
