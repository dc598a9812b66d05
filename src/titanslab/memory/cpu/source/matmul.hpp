// Small matrix products for one core. Tokens (or output columns) are in the vector lanes, so n is a multiple of VL.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX512F__)
#define TITANS_VECTOR_BYTES 64
#elif defined(__AVX__)
#define TITANS_VECTOR_BYTES 32
#else
#define TITANS_VECTOR_BYTES 16
#endif

constexpr int REGISTERS = TITANS_VECTOR_BYTES == 64 ? 32 : 16;  // vector registers of the processor

template <typename T>
struct Lanes {
  typedef T V __attribute__((vector_size(TITANS_VECTOR_BYTES), aligned(TITANS_VECTOR_BYTES), may_alias));
  static constexpr long VL = TITANS_VECTOR_BYTES / sizeof(T);
};

enum Mode { SET, ADD, SUB };

// acc[i, :] = sum_p a[i*am + p*ak] b[p, :] for MR rows and NV vectors.
template <typename T, int MR, int NV, bool UNIT>
static inline __attribute__((always_inline)) void product_of(long k, const T* a, long am, long ak, const T* b, long ldb,
                                                          typename Lanes<T>::V (&acc)[MR][NV]) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) acc[i][j] = V{};
  for (long p = 0; p < k; p++, a += UNIT ? ak : 1, b += ldb) {
    V row[NV];
    for (int j = 0; j < NV; j++) row[j] = *(const V*)(b + j * VL);
    for (int i = 0; i < MR; i++) {
      T s = a[UNIT ? i : i * am];
      for (int j = 0; j < NV; j++) acc[i][j] += s * row[j];
    }
  }
}

// c[i, :] (op)= the product above, with the accumulators in registers. op is set, add or subtract, by `mode`.
template <typename T, int MR, int NV, bool UNIT>
static inline __attribute__((always_inline)) void tile_of(long k, const T* a, long am, long ak, const T* b, long ldb,
                                                       T* c, long ldc, Mode mode) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V acc[MR][NV];
  product_of<T, MR, NV, UNIT>(k, a, am, ak, b, ldb, acc);
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) {
      V* out = (V*)(c + i * ldc + j * VL);
      *out = mode == SET ? acc[i][j] : mode == ADD ? *out + acc[i][j] : *out - acc[i][j];
    }
}

template <typename T, int MR, int NV>
static inline __attribute__((always_inline)) void tile(long k, const T* a, long am, long ak, const T* b, long ldb,
                                                       T* c, long ldc, Mode mode) {
  if (am == 1)
    tile_of<T, MR, NV, true>(k, a, am, ak, b, ldb, c, ldc, mode);
  else  // ak == 1
    tile_of<T, MR, NV, false>(k, a, am, ak, b, ldb, c, ldc, mode);
}

template <typename T, int MR, int NV>
static void rows_left(long m, long k, const T* a, long am, long ak, const T* b, long ldb, T* c, long ldc, Mode mode) {
  if constexpr (MR > 0) {
    if (m == MR)
      tile<T, MR, NV>(k, a, am, ak, b, ldb, c, ldc, mode);
    else
      rows_left<T, MR - 1, NV>(m, k, a, am, ak, b, ldb, c, ldc, mode);
  }
}

template <typename T, int MR, int NV>
static void panel(long m, long k, const T* a, long am, long ak, const T* b, long ldb, T* c, long ldc, Mode mode) {
  long i = 0;
  for (; i + MR <= m; i += MR) tile<T, MR, NV>(k, a + i * am, am, ak, b, ldb, c + i * ldc, ldc, mode);
  if (i < m) rows_left<T, MR - 1, NV>(m - i, k, a + i * am, am, ak, b, ldb, c + i * ldc, ldc, mode);
}

// c[m, n] (op)= a[m, k] b[k, n]; a has strides am, ak, one of them 1; b and c are row-major with aligned rows.
template <typename T>
static void matmul(long m, long n, long k, const T* a, long am, long ak, const T* b, long ldb, T* c, long ldc,
                   Mode mode = SET) {
  constexpr long VL = Lanes<T>::VL;
  long j = 0;
#if TITANS_VECTOR_BYTES == 64
  for (; j + 4 * VL <= n; j += 4 * VL) panel<T, 6, 4>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
  if (am == 1) {
    for (; j + 2 * VL <= n; j += 2 * VL) panel<T, 12, 2>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
    for (; j + VL <= n; j += VL) panel<T, 16, 1>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
  } else {  // each row of a needs a pointer; fewer rows, so that the pointers stay in registers
    for (; j + 2 * VL <= n; j += 2 * VL) panel<T, 8, 2>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
    for (; j + VL <= n; j += VL) panel<T, 8, 1>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
  }
#else
  for (; j + 2 * VL <= n; j += 2 * VL) panel<T, 6, 2>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
  for (; j + VL <= n; j += VL) panel<T, 8, 1>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
#endif
}

// Accumulators of a tile, MR rows by NV vectors, of p = P b and q = Q b; P and Q have the same strides.
template <typename T, int MR, int NV>
struct Pair {
  typename Lanes<T>::V p[MR][NV], q[MR][NV];
};

template <typename T, int MR, int NV, bool UNIT>
static inline __attribute__((always_inline)) void pair_of(long k, const T* P, const T* Q, long am, long ak, const T* b,
                                                       long ldb, Pair<T, MR, NV>& acc) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) acc.p[i][j] = acc.q[i][j] = V{};
  for (long x = 0; x < k; x++, P += UNIT ? ak : 1, Q += UNIT ? ak : 1, b += ldb) {
    V row[NV];
    for (int j = 0; j < NV; j++) row[j] = *(const V*)(b + j * VL);
    for (int i = 0; i < MR; i++) {
      T u = P[UNIT ? i : i * am], w = Q[UNIT ? i : i * am];
      for (int j = 0; j < NV; j++) {
        acc.p[i][j] += u * row[j];
        acc.q[i][j] += w * row[j];
      }
    }
  }
}

// The part of a square matrix s[p, lane] that is not zero.
enum Triangle { UPPER, LOWER };

// acc[i, v] -= sum_p a[i*am + p] s[p, v] over the rows p of s with from <= p < to, for vectors V0 <= v < V1.
template <typename T, int MR, int NV, int V0, int V1>
static inline __attribute__((always_inline)) void minus_rows(long from, long to, const T* a, long am, const T* s,
                                                          long lds, typename Lanes<T>::V (&acc)[MR][NV]) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  for (long p = from; p < to; p++) {
    V row[NV];
    for (int v = V0; v < V1; v++) row[v] = *(const V*)(s + p * lds + v * VL);
    for (int i = 0; i < MR; i++) {
      T x = a[i * am + p];
      for (int v = V0; v < V1; v++) acc[i][v] -= x * row[v];
    }
  }
}

// acc[i, :] -= sum_p a[i*am + p] s[p, :] for the lanes from j on of a triangular s of `size` rows. This call takes the
// rows from `from` on, in steps of VL rows; STEP is the number of the step. The number of vectors in a row is a
// compile-time constant, so the sums stay in registers.
template <Triangle PART, typename T, int MR, int NV, int STEP>
static inline __attribute__((always_inline)) void minus_triangle(long size, const T* a, long am, const T* s, long lds,
                                                              long j, typename Lanes<T>::V (&acc)[MR][NV], long from) {
  constexpr long VL = Lanes<T>::VL;
  if constexpr (STEP < NV) {
    // UPPER has the vectors from STEP on, LOWER the vectors up to STEP
    constexpr int V0 = PART == UPPER ? STEP : 0, V1 = PART == UPPER ? NV : STEP + 1;
    long to = PART == LOWER && V1 == NV ? size : std::min(j + (STEP + 1) * VL, size);
    minus_rows<T, MR, NV, V0, V1>(from, to, a, am, s + j, lds, acc);
    minus_triangle<PART, T, MR, NV, STEP + 1>(size, a, am, s, lds, j, acc, to);
  }
}
template <Triangle PART, typename T, int MR, int NV>
static inline __attribute__((always_inline)) void minus_triangle(long size, const T* a, long am, const T* s, long lds,
                                                              long j, typename Lanes<T>::V (&acc)[MR][NV]) {
  minus_triangle<PART, T, MR, NV, 0>(size, a, am, s, lds, j, acc, PART == UPPER ? 0 : std::min(j, size));
}

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
// One stage of a square transpose: rows i and i + S exchange their off-diagonal blocks of S lanes.
template <int S, typename V, int... I>
static inline __attribute__((always_inline)) void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int N = sizeof...(I);
  V low = __builtin_shufflevector(a, b, ((I & S) ? N + I - S : I)...);
  b = __builtin_shufflevector(a, b, ((I & S) ? N + I : I + S)...);
  a = low;
}
template <typename T, int S>
static inline __attribute__((always_inline)) void exchange_all(typename Lanes<T>::V* rows) {
  constexpr int N = Lanes<T>::VL;
  if constexpr (S < N) {
    for (int i = 0; i < N; i++)
      if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, N>{});
    exchange_all<T, 2 * S>(rows);
  }
}
// Lane i of rows[0] becomes the sum of the lanes of rows[i].
template <typename T, int S>
static inline __attribute__((always_inline)) void add_exchanged(typename Lanes<T>::V* rows) {
  constexpr int N = Lanes<T>::VL;
  if constexpr (S < N) {
    for (int i = 0; i < N; i += 2 * S) {
      exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, N>{});
      rows[i] += rows[i + S];
    }
    add_exchanged<T, 2 * S>(rows);
  }
}
#define TITANS_SHUFFLES 1
#endif

// Calls put(j, i, x) for all of src: x is column j from row i on, a vector of VL elements, or one element at the edges.
template <typename T, typename F>
static inline void transpose_with(long rows, long columns, const T* src, long lds, F put) {
  constexpr long VL = Lanes<T>::VL;
  long whole = 0, wide = 0;
#ifdef TITANS_SHUFFLES
  typedef T Loose __attribute__((vector_size(TITANS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  whole = rows / VL * VL, wide = columns / VL * VL;
  for (long i0 = 0; i0 < whole; i0 += VL)
    for (long j0 = 0; j0 < wide; j0 += VL) {
      typename Lanes<T>::V block[VL];
#pragma GCC unroll 16
      for (long i = 0; i < VL; i++) block[i] = *(const Loose*)(src + (i0 + i) * lds + j0);
      exchange_all<T, 1>(block);
#pragma GCC unroll 16
      for (long j = 0; j < VL; j++) put(j0 + j, i0, block[j]);
    }
#endif
  for (long i = 0; i < rows; i++)
    for (long j = i < whole ? wide : 0; j < columns; j++) put(j, i, src[i * lds + j]);
}

// dst[j, i] = src[i, j]; `rows` and `columns` are those of src.
template <typename T>
static void transpose(long rows, long columns, const T* src, long lds, T* dst, long ldd) {
  transpose_with(rows, columns, src, lds, [=](long j, long i, auto x) {
    typedef decltype(x) X __attribute__((aligned(sizeof(T)), may_alias));
    *(X*)(dst + j * ldd + i) = x;
  });
}

// Two transposes in one pass: one[j, i] = f[j] src[i, j], other[j, i] = g[j] src[i, j].
template <typename T>
static void transpose_scaled(long rows, long columns, const T* src, long lds, const T* f, T* one, const T* g, T* other,
                             long ldd) {
  transpose_with(rows, columns, src, lds, [=](long j, long i, auto x) {
    typedef decltype(x) X __attribute__((aligned(sizeof(T)), may_alias));
    *(X*)(one + j * ldd + i) = f[j] * x;
    *(X*)(other + j * ldd + i) = g[j] * x;
  });
}
