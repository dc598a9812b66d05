// Small matrix products for one core. Tokens (or output columns) are the vector lanes, so n is a multiple of VL.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__)
#define TITANS_VECTOR_BYTES 64
#elif defined(__AVX__)
#define TITANS_VECTOR_BYTES 32
#else
#define TITANS_VECTOR_BYTES 16
#endif

template <typename T>
struct Lanes {
  typedef T V __attribute__((vector_size(TITANS_VECTOR_BYTES), aligned(TITANS_VECTOR_BYTES), may_alias));
  static constexpr long VL = TITANS_VECTOR_BYTES / sizeof(T);
};

enum Mode { SET, ADD, SUB };

// c[i, :] (op)= sum_p a[i*am + p*ak] b[p, :] for MR rows and NV vectors, accumulators in registers.
template <typename T, int MR, int NV, bool UNIT>
static inline __attribute__((always_inline)) void tile_of(long k, const T* a, long am, long ak, const T* b, long ldb,
                                                       T* c, long ldc, Mode mode) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V acc[MR][NV];
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
  } else {  // a pointer for each row of a: fewer of them, so that they stay in registers
    for (; j + 2 * VL <= n; j += 2 * VL) panel<T, 8, 2>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
    for (; j + VL <= n; j += VL) panel<T, 8, 1>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
  }
#else
  for (; j + 2 * VL <= n; j += 2 * VL) panel<T, 6, 2>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
  for (; j + VL <= n; j += VL) panel<T, 8, 1>(m, k, a, am, ak, b + j, ldb, c + j, ldc, mode);
#endif
}

// The same for a few tokens (n < VL, ldb = ldc = n): lanes run along a's contiguous dimension instead. `b1`, `c1` hold
// max(m, k) numbers.
template <typename T>
static void matmul_narrow(long m, long n, long k, const T* __restrict a, long am, long ak, const T* __restrict b,
                          T* __restrict c, Mode mode, T* __restrict b1, T* __restrict c1) {
  for (long j = 0; j < n; j++) {
    for (long p = 0; p < k; p++) b1[p] = b[p * n + j];
    if (ak == 1 && k > 4) {
      for (long i = 0; i < m; i++) {
        T sum = 0;
        const T* row = a + i * am;
#pragma omp simd reduction(+ : sum)
        for (long p = 0; p < k; p++) sum += row[p] * b1[p];
        c1[i] = sum;
      }
    } else {
      for (long i = 0; i < m; i++) c1[i] = 0;
      for (long p = 0; p < k; p++) {
        T s = b1[p];
        const T* row = a + p * ak;
        if (am == 1)
          for (long i = 0; i < m; i++) c1[i] += s * row[i];
        else
          for (long i = 0; i < m; i++) c1[i] += s * row[i * am];
      }
    }
    for (long i = 0; i < m; i++) {
      T* out = c + i * n + j;
      *out = mode == SET ? c1[i] : mode == ADD ? *out + c1[i] : *out - c1[i];
    }
  }
}

// dst[j, i] = src[i, j]; rows x columns of src.
template <typename T>
static void transpose(long rows, long columns, const T* __restrict src, long lds, T* __restrict dst, long ldd) {
  constexpr long B = 8;
  for (long i0 = 0; i0 < rows; i0 += B)
    for (long j0 = 0; j0 < columns; j0 += B) {
      long i1 = i0 + B < rows ? i0 + B : rows, j1 = j0 + B < columns ? j0 + B : columns;
      if (i1 - i0 == B && j1 - j0 == B) {
        T block[B][B];
        for (long i = 0; i < B; i++)
          for (long j = 0; j < B; j++) block[j][i] = src[(i0 + i) * lds + j0 + j];
        for (long j = 0; j < B; j++)
          for (long i = 0; i < B; i++) dst[(j0 + j) * ldd + i0 + i] = block[j][i];
      } else {
        for (long i = i0; i < i1; i++)
          for (long j = j0; j < j1; j++) dst[j * ldd + i] = src[i * lds + j];
      }
    }
}
