// One loop shared by threads: OpenMP's, which in a process with torch are torch's own (the loader resolves both to
// the libgomp loaded first), so there is never a second pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(LC_STD_THREADS)  // for ThreadSanitizer, which cannot see the locks inside libgomp
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace lc {

// Workers for so many pieces of work, of which every worker has memory: never more than there are pieces.
inline int workers_for(int threads, int64_t count) {
  return static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, count)));
}

// Calls body(index, worker) for every index in [0, count), each once, with worker < threads. Which worker gets
// which index varies from run to run: results must not depend on it. The body must not throw.
template <class Body>
void parallel_for(int threads, int64_t count, const Body& body) {
  threads = workers_for(threads, count);
  if (threads == 1) {
    for (int64_t index = 0; index < count; ++index) body(index, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  const auto work = [&](int worker) {
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(index, worker);
  };
#if defined(LC_STD_THREADS)
  std::vector<std::thread> pool;
  for (int worker = 1; worker < threads; ++worker) pool.emplace_back(work, worker);
  work(0);
  for (std::thread& thread : pool) thread.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num());
#else
  work(0);
#endif
}

}  // namespace lc
