// Memory for the state and the activations of one row of the kernel.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "flush.hpp"

// Most bytes that the workspaces of all threads hold between calls.
constexpr size_t KEPT_BYTES = size_t(256) << 20;

// A thread's workspace, kept between calls. To map new pages takes longer than the arithmetic of a small call, and a
// quarter of that of a large call.
template <typename T>
struct Arena {
  T* base = nullptr;
  size_t size = 0;
  bool reserve(size_t count) {
    if (count > size) {
      std::free(base);
      base = (T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
      size = base ? count : 0;
    }
    if (base) std::fill(base, base + count, T(0));
    return base != nullptr;
  }
  void release_if_large(int threads) {
    if (size * sizeof(T) <= KEPT_BYTES / threads) return;
    std::free(base);
    base = nullptr;
    size = 0;
  }
  ~Arena() { std::free(base); }
};

// Divides an arena into pieces of zeros. Without an arena it only counts the elements.
template <typename T>
struct Taker {
  Arena<T>* arena;
  size_t count = 0;
  T* operator()(size_t n) {
    n = (n + 15) / 16 * 16;
    T* at = arena ? arena->base + count : nullptr;
    count += n;
    return at;
  }
};

// Calls job(worker, i) for each i below `jobs`. Each thread has a worker, with a workspace of its own, made from the
// arguments. The result is 1 if there is no memory for the workspaces.
template <typename T, typename Worker, typename Given, typename Job>
static int on_threads(const Given& A, bool backward, long jobs, Job job) {
  Taker<T> counter{nullptr};
  Worker plan(A, backward, counter);
  int threads = (int)std::max<int64_t>(1, std::min<int64_t>(A.threads, jobs)), failed = 0;
#pragma omp parallel num_threads(threads)
  {
    FlushDenormals flush;
    static thread_local Arena<T> arena;
    bool ready = arena.reserve(counter.count + 64);
    if (!ready) {
#pragma omp atomic write
      failed = 1;
    }
    Taker<T> take{&arena};
    Worker worker(A, backward, take);
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < jobs; i++)
      if (ready) job(worker, i);
    arena.release_if_large(threads);
  }
  return failed;
}
