// Memory for the state and the activations of one row of the kernel.
#pragma once
#include <algorithm>
#include <cstdlib>

// What the workspaces of all threads may hold between calls.
constexpr size_t KEPT_BYTES = size_t(256) << 20;

// A thread's workspace, kept between calls: fresh pages cost more than a small call's arithmetic, and a quarter of a
// large one's.
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

// Hands out zeroed pieces; with no arena it only counts.
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
