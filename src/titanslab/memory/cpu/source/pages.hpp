// Asks the system for large pages for a buffer that is written once from end to end; fewer pages take less time to map.
#pragma once
#include <cstddef>
#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

inline void prefer_large_pages(void* begin, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(2) << 20;
  uintptr_t from = ((uintptr_t)begin + page - 1) / page * page, to = ((uintptr_t)begin + bytes) / page * page;
  if (from < to) madvise((void*)from, to - from, MADV_HUGEPAGE);  // a hint, so its result is ignored
#else
  (void)begin, (void)bytes;
#endif
}
