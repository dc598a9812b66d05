// What stands around the memory in its layer, in one pass each: short convolution, SiLU and unit norm before it
// (conv.py, norms.py), RMS norm and gate after it. Tensors are [B, T, heads * head_dim], contiguous; a thread takes a
// head's columns of a row of the batch, so that sums over tokens have one order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "flush.hpp"
#include "gelu.hpp"

constexpr int MAX_PARTS = 3;

// Mirrors `FeatureArguments` in features.py.
struct FeatureArguments {
  int64_t batch, tokens, heads, head_dim, taps, parts, unit, threads;  // the first `unit` parts get unit norm
  void *x[MAX_PARTS], *weight[MAX_PARTS], *tail[MAX_PARTS];            // tail: null = zeros
  void *y[MAX_PARTS];                                                  // forward
  void *dy[MAX_PARTS], *dx[MAX_PARTS], *d_weight[MAX_PARTS], *d_tail[MAX_PARTS];  // d_weight: [B, taps, width]
};

// Mirrors `GateArguments` in features.py.
struct GateArguments {
  int64_t batch, tokens, heads, head_dim, threads;
  double eps;
  void *y, *weight, *gate, *out;
  void *d_out, *dy, *d_weight, *d_gate;  // d_weight: [B, heads, head_dim]
};

template <typename T>
static inline T sigmoid(T z) {
  T e = exp_negative(z < 0 ? z : -z), s = 1 / (1 + e);
  return z < 0 ? e * s : s;
}

template <typename T>
struct Features {
  const FeatureArguments& A;
  int part;
  long b, h, D, W, back;
  std::vector<T> zero, z, dz, slope;

  Features(const FeatureArguments& args) : A(args), D(A.head_dim), W(A.heads * A.head_dim), back(A.taps - 1) {
    zero.assign(D, T(0)), z.resize(D), dz.resize(D), slope.resize(D);
  }
  T* row(void* const* inside, void* const* before, long t) {
    if (t >= 0) return (T*)inside[part] + (b * A.tokens + t) * W + h * D;
    return before[part] ? (T*)before[part] + (b * back + back + t) * W + h * D : zero.data();
  }
  const T* tap(long j) const { return (const T*)A.weight[part] + j * W + h * D; }
  // SiLU of the convolution at token t into `into`, and 1 / its norm
  T value(long t, T* __restrict into) {
    const T *x0 = row(A.x, A.tail, t), *w0 = tap(0);
    T* c = z.data();
    for (long i = 0; i < D; i++) c[i] = w0[i] * x0[i];
    for (long j = 1; j <= back; j++) {
      const T *xj = row(A.x, A.tail, t - j), *wj = tap(j);
      for (long i = 0; i < D; i++) c[i] += wj[i] * xj[i];
    }
    T sum = 0, *s = slope.data();
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < D; i++) {
      T g = sigmoid(c[i]), v = c[i] * g;
      into[i] = v;
      s[i] = g + v * (1 - g);
      sum += v * v;
    }
    return part < A.unit ? 1 / std::sqrt(std::max(sum, T(1e-24))) : T(1);
  }
  void forward() {
    for (long t = 0; t < A.tokens; t++) {
      T* y = row(A.y, A.y, t);
      T inverse = value(t, y);
      if (part < A.unit)
        for (long i = 0; i < D; i++) y[i] *= inverse;
    }
  }
  void backward() {
    T* dw = (T*)A.d_weight[part] + b * A.taps * W + h * D;
    std::vector<T> y(D);
    for (long t = 0; t < A.tokens; t++) {
      T inverse = value(t, y.data()), along = 0, *d = dz.data();
      const T *g = row(A.dy, A.dy, t), *s = slope.data();
      if (part < A.unit) {
        T* u = y.data();
#pragma omp simd reduction(+ : along)
        for (long i = 0; i < D; i++) {
          u[i] *= inverse;
          along += g[i] * u[i];
        }
        for (long i = 0; i < D; i++) d[i] = inverse * (g[i] - u[i] * along) * s[i];
      } else {
        for (long i = 0; i < D; i++) d[i] = g[i] * s[i];
      }
      for (long j = 0; j <= back; j++) {
        const T *x = row(A.x, A.tail, t - j), *w = tap(j);
        T* dwj = dw + j * W;
        for (long i = 0; i < D; i++) dwj[i] += d[i] * x[i];
        if (t < j && !A.d_tail[part]) continue;
        T* dx = row(A.dx, A.d_tail, t - j);
        if (j == 0)
          for (long i = 0; i < D; i++) dx[i] = w[i] * d[i];
        else
          for (long i = 0; i < D; i++) dx[i] += w[i] * d[i];
      }
    }
  }
};

template <typename T>
static void gated_norm(const GateArguments& A, long b, long h, bool backward) {
  long D = A.head_dim, W = A.heads * D;
  const T* w = (const T*)A.weight + h * D;
  T* dw = backward ? (T*)A.d_weight + b * W + h * D : nullptr;
  for (long t = 0; t < A.tokens; t++) {
    long at = (b * A.tokens + t) * W + h * D;
    const T *y = (const T*)A.y + at, *g = (const T*)A.gate + at;
    T sum = 0, along = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < D; i++) sum += y[i] * y[i];
    T inverse = 1 / std::sqrt(sum / D + (T)A.eps);
    if (!backward) {
      T* out = (T*)A.out + at;
      for (long i = 0; i < D; i++) out[i] = y[i] * inverse * w[i] * g[i];
      continue;
    }
    const T* d = (const T*)A.d_out + at;
    T *dy = (T*)A.dy + at, *dg = (T*)A.d_gate + at;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < D; i++) {
      T unit = y[i] * inverse, u = d[i] * g[i];
      dg[i] = d[i] * unit * w[i];
      dw[i] += u * unit;
      along += u * w[i] * unit;
    }
    along /= D;
    for (long i = 0; i < D; i++) dy[i] = inverse * (d[i] * g[i] * w[i] - y[i] * inverse * along);
  }
}

template <typename T>
static void run_features(const FeatureArguments& A, bool backward) {
  long columns = A.batch * A.heads, work = A.parts * columns;
  int threads = (int)std::max<int64_t>(1, std::min<int64_t>(A.threads, work));
#pragma omp parallel num_threads(threads)
  {
    FlushDenormals flush;
    Features<T> part(A);
#pragma omp for schedule(static)
    for (long i = 0; i < work; i++) {
      part.part = i / columns, part.b = i % columns / A.heads, part.h = i % A.heads;
      backward ? part.backward() : part.forward();
    }
  }
}

template <typename T>
static void run_gate(const GateArguments& A, bool backward) {
  long work = A.batch * A.heads;
  int threads = (int)std::max<int64_t>(1, std::min<int64_t>(A.threads, work));
#pragma omp parallel num_threads(threads)
  {
    FlushDenormals flush;
#pragma omp for schedule(static)
    for (long i = 0; i < work; i++) gated_norm<T>(A, i / A.heads, i % A.heads, backward);
  }
}

#ifndef TITANS_REAL
#define TITANS_REAL float
#endif
extern "C" void titans_features(const FeatureArguments* a, int backward) { run_features<TITANS_REAL>(*a, backward); }
extern "C" void titans_gated_norm(const GateArguments* a, int backward) { run_gate<TITANS_REAL>(*a, backward); }
extern "C" int64_t titans_arguments_size() { return sizeof(FeatureArguments); }
extern "C" int64_t titans_gate_arguments_size() { return sizeof(GateArguments); }
