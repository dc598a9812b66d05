// The flags of the arithmetic while we compute.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// Denormals slow products down several times: flushed while we compute, in our threads only.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};
