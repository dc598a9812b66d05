// The processor's floating-point flags during a kernel call.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// Sets flush-to-zero in this thread for the life of the object: products with denormals are several times slower.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};
