// The products of chunked.cpp that sum over a chunk's tokens; registers hold a tile of the result for the whole chunk.
#pragma once
#include "matmul.hpp"

template <typename T>
constexpr long LINE = 64 / sizeof(T);  // elements of a cache line

// Width of a panel. Outer products read rows of tokens in panels, [panel, C, PANEL], because rows whose length is a
// power of two would all fall on the same few lines of the L1 cache.
template <typename T>
constexpr long PANEL = 4 * Lanes<T>::VL;

// acc += a^T d of a tile over the tokens from `first` to `last`: a [rows, LC], d [C, PANEL].
template <typename T, int MR, int NV>
static inline __attribute__((always_inline)) void outer_of(long first, long last, const T* a, long LC, const T* d,
                                                        typename Lanes<T>::V (&acc)[MR][NV]) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  for (long c = first; c < last; c++) {
    V x[NV];
    for (int j = 0; j < NV; j++) x[j] = *(const V*)(d + c * PANEL<T> + j * VL);
    for (int i = 0; i < MR; i++) {
      T v = a[i * LC + c];
      for (int j = 0; j < NV; j++) acc[i][j] += v * x[j];
    }
  }
}

// am += a^T d over the tokens before `last`, as += a^T d2 over the tokens from `second` to `last`. One loop computes
// both tiles if the registers can hold them, else two loops.
template <typename T, int MR, int NV>
static inline __attribute__((always_inline)) void outer_tile(long second, long last, const T* a, long LC, const T* d,
                                                          const T* d2, typename Lanes<T>::V (&am)[MR][NV],
                                                          typename Lanes<T>::V (&as)[MR][NV]) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  if constexpr (2 * MR * NV > REGISTERS) {
    outer_of<T, MR, NV>(0, last, a, LC, d, am);
    outer_of<T, MR, NV>(second, last, a, LC, d2, as);
    return;
  }
  if (second > 0) outer_of<T, MR, NV>(0, second, a, LC, d, am);
  for (long c = second; c < last; c++) {
    V v[MR], x[NV];
    for (int i = 0; i < MR; i++) {
      v[i] = a[i * LC + c] - V{};
#if defined(__AVX512F__) && defined(__GNUC__)
      asm("" : "+v"(v[i]));  // forces one load; the compiler would load it again for each product
#endif
    }
    for (int j = 0; j < NV; j++) x[j] = *(const V*)(d + c * PANEL<T> + j * VL);
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NV; j++) am[i][j] += v[i] * x[j];
    for (int j = 0; j < NV; j++) x[j] = *(const V*)(d2 + c * PANEL<T> + j * VL);
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NV; j++) as[i][j] += v[i] * x[j];
  }
}

// Prefetches a tile of four matrices, of which the last two are also written. They are not in the L1 cache; products of
// operands that are in it run meanwhile.
template <typename T, int MR, int NV>
static inline __attribute__((always_inline)) void ask_for(long ld, const T* one, const T* two, const T* to, const T* to2) {
  for (int i = 0; i < MR; i++)
    for (long j = 0; j < NV * Lanes<T>::VL; j += LINE<T>) {
      long at = i * ld + j;
      __builtin_prefetch(one + at), __builtin_prefetch(two + at);
      __builtin_prefetch(to + at, 1), __builtin_prefetch(to2 + at, 1);
    }
}

// m1 = b m + f s - a^T (w d), s1 = e s - a^T (w2 d), in one pass over the state; dw = w d, dw2 = w2 d. w2 is 0 before
// token `recent`.
template <typename T, int MR, int NV>
static inline __attribute__((always_inline)) void advance_tile(long C, long recent, const T* aT, long LC, const T* dw,
                                                               const T* dw2, long ld, const T* m, const T* s, T* m1,
                                                               T* s1, T b, T f, T e) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V am[MR][NV], as[MR][NV];
  ask_for<T, MR, NV>(ld, m, s, m1, s1);
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) am[i][j] = as[i][j] = V{};
  outer_tile<T, MR, NV>(recent, C, aT, LC, dw, dw2, am, as);
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) {
      long at = i * ld + j * VL;
      V mm = *(const V*)(m + at), ss = *(const V*)(s + at);
      *(V*)(m1 + at) = b * mm + f * ss - am[i][j];
      *(V*)(s1 + at) = e * ss - as[i][j];
    }
}

// The gradient of the state at the chunk's start from that at its end, in place:
// dm <- b dm + X^T dz, ds <- f dm + e ds + X^T dz2, where dz and dz2 are the gradient at z times start and times lag.
// dots[0..2] receive <m, dm>, <s, dm> and <s, ds>. From token `lagging` on, lag is `ratio` times start, so dz2 is not
// read, and dots[3] receives <s, X^T dz> of these tokens.
template <typename T, int MR, int NV>
static inline __attribute__((always_inline)) void retreat_tile(long C, long lagging, T ratio, const T* X, long LC,
                                                               const T* dz, const T* dz2, long ld, const T* m, const T* s,
                                                               T* dm, T* ds, T b, T f, T e, typename Lanes<T>::V* dots) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V am[MR][NV], as[MR][NV];
  ask_for<T, MR, NV>(ld, m, s, dm, ds);
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) am[i][j] = as[i][j] = V{};
  if (lagging < C) {
    outer_of<T, MR, NV>(lagging, C, X, LC, dz, am);
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NV; j++) {
        dots[3] += *(const V*)(s + i * ld + j * VL) * am[i][j];
        as[i][j] = ratio * am[i][j];
      }
  }
  outer_tile<T, MR, NV>(0, lagging, X, LC, dz, dz2, am, as);
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) {
      long at = i * ld + j * VL;
      V mm = *(const V*)(m + at), ss = *(const V*)(s + at), gm = *(V*)(dm + at), gs = *(V*)(ds + at);
      dots[0] += mm * gm;
      dots[1] += ss * gm;
      dots[2] += ss * gs;
      *(V*)(dm + at) = b * gm + am[i][j];
      *(V*)(ds + at) = f * gm + e * gs + as[i][j];
    }
}
