// Threads for CPU kernels: fixed chunks, so that the result does not depend on how many threads there are.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fl {

// Below this many bytes of traffic waking a thread costs more than it saves.
constexpr int64_t kParallelBytes = 1 << 18;

using ChunkFn = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_chunks(int64_t count, int64_t chunk, int threads, ChunkFn fn, const void* context);

// Calls f(begin, end) over [0, count) in chunks of about kParallelBytes, each item touching `bytes_per_item` bytes.
// f must not throw.
template <class F>
void parallel_for(int64_t count, int64_t bytes_per_item, int threads, const F& f) {
  static_assert(std::is_invocable_v<const F&, int64_t, int64_t>);
  if (bytes_per_item < 1) bytes_per_item = 1;
  int64_t chunk = kParallelBytes / bytes_per_item;
  if (chunk < 1) chunk = 1;
  parallel_chunks(
      count, chunk, threads,
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); }, &f);
}

}  // namespace fl
