// The layer's operations before and after the memory, each in one pass: short convolution, SiLU and unit norm before
// it, RMS norm and gate after it. memory/conv.py and memory/norms.py have the same functions in PyTorch operations.
// Tensors are [B, T, heads * head_dim] and contiguous. One thread computes one head of one row of the batch, so that
// sums over tokens have a fixed order.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "flush.hpp"
#include "gelu.hpp"

constexpr int MAX_PARTS = 3;

// Mirrors `FeatureArguments` in memory/cpu/features.py.
struct FeatureArguments {
  int64_t batch, tokens, heads, head_dim, taps, parts, unit, threads;  // the first `unit` parts get unit norm
  int64_t stride;                                                      // between two tokens of x and dx
  void *x[MAX_PARTS], *weight[MAX_PARTS], *tail[MAX_PARTS];            // tail: null = zeros
  void *y[MAX_PARTS];                                                  // forward
  void *dy[MAX_PARTS], *dx[MAX_PARTS], *d_weight[MAX_PARTS], *d_tail[MAX_PARTS];  // d_weight: [B, taps, width]
};

// Mirrors `GateArguments` in memory/cpu/features.py.
struct GateArguments {
  int64_t batch, tokens, heads, head_dim, threads, stride;  // stride: between two tokens of the gate
  double eps;
  void *y, *weight, *gate, *out;
  void *d_out, *dy, *d_weight, *d_gate;  // d_weight: [B, heads, head_dim]
};

constexpr long AHEAD = 8;  // distance of the prefetch, in tokens

// WIDTH: the width of a head as a compile-time constant, or 0 for any width.
template <typename T, int WIDTH>
struct Features {
  const FeatureArguments& A;
  int part;
  long b, h, width, W, back;
  std::vector<T> zero, space;

  Features(const FeatureArguments& args) : A(args), width(A.head_dim), W(A.heads * A.head_dim), back(A.taps - 1) {
    zero.assign(width, T(0)), space.resize(4 * width);
  }
  long D() const { return WIDTH ? WIDTH : width; }
  T* row(void* const* inside, void* const* before, long stride, long t) {
    if (t >= 0) return (T*)inside[part] + (b * A.tokens + t) * stride + h * D();
    return before[part] ? (T*)before[part] + (b * back + back + t) * W + h * D() : zero.data();
  }
  const T* tap(long j) const { return (const T*)A.weight[part] + j * W + h * D(); }
  // Stores SiLU of the convolution at token t in `into` and its derivative in `slope`; returns 1 / norm.
  T value(long t, T* __restrict into, T* __restrict slope) {
    T sum = 0;
    if (WIDTH && back == 3) {
      const T *x0 = row(A.x, A.tail, A.stride, t), *x1 = row(A.x, A.tail, A.stride, t - 1);
      const T *x2 = row(A.x, A.tail, A.stride, t - 2), *x3 = row(A.x, A.tail, A.stride, t - 3);
      const T *w0 = tap(0), *w1 = tap(1), *w2 = tap(2), *w3 = tap(3);
      if (t + AHEAD < A.tokens)  // tokens may be pages apart, beyond the hardware prefetcher
        for (long i = 0; i < D(); i += 64 / sizeof(T)) __builtin_prefetch(x0 + AHEAD * A.stride + i);
#pragma omp simd reduction(+ : sum)
      for (long i = 0; i < D(); i++) {
        T c = w0[i] * x0[i] + w1[i] * x1[i] + w2[i] * x2[i] + w3[i] * x3[i];
        T g = sigmoid(c), v = c * g;
        into[i] = v;
        slope[i] = g + v * (1 - g);
        sum += v * v;
      }
    } else {
      const T *x0 = row(A.x, A.tail, A.stride, t), *w0 = tap(0);
      for (long i = 0; i < D(); i++) into[i] = w0[i] * x0[i];
      for (long j = 1; j <= back; j++) {
        const T *xj = row(A.x, A.tail, A.stride, t - j), *wj = tap(j);
        for (long i = 0; i < D(); i++) into[i] += wj[i] * xj[i];
      }
#pragma omp simd reduction(+ : sum)
      for (long i = 0; i < D(); i++) {
        T g = sigmoid(into[i]), v = into[i] * g;
        into[i] = v;
        slope[i] = g + v * (1 - g);
        sum += v * v;
      }
    }
    return part < A.unit ? 1 / std::sqrt(std::max(sum, T(1e-24))) : T(1);
  }
  void forward(long first, long end) {
    T* slope = space.data();
    for (long t = first; t < end; t++) {
      T* __restrict y = row(A.y, A.y, W, t);
      T inverse = value(t, y, slope);
      if (part < A.unit)
        for (long i = 0; i < D(); i++) y[i] *= inverse;
    }
  }
  void backward(long first, long end) {
    T* dw = (T*)A.d_weight[part] + b * A.taps * W + h * D();
    T *__restrict u = space.data(), *__restrict s = u + D(), *__restrict d = s + D();
    for (long t = first; t < end; t++) {
      T inverse = value(t, u, s), along = 0;
      const T* __restrict g = row(A.dy, A.dy, W, t);
      if (part < A.unit) {
#pragma omp simd reduction(+ : along)
        for (long i = 0; i < D(); i++) {
          u[i] *= inverse;
          along += g[i] * u[i];
        }
#pragma omp simd
        for (long i = 0; i < D(); i++) d[i] = inverse * (g[i] - u[i] * along) * s[i];
      } else {
#pragma omp simd
        for (long i = 0; i < D(); i++) d[i] = g[i] * s[i];
      }
      for (long j = 0; j <= back; j++) {
        const T *__restrict x = row(A.x, A.tail, A.stride, t - j), *__restrict w = tap(j);
        T* __restrict dwj = dw + j * W;
#pragma omp simd
        for (long i = 0; i < D(); i++) dwj[i] += d[i] * x[i];
        if (t < j && !A.d_tail[part]) continue;
        T* __restrict dx = row(A.dx, A.d_tail, A.stride, t - j);
        if (j == 0)
#pragma omp simd
          for (long i = 0; i < D(); i++) dx[i] = w[i] * d[i];
        else
#pragma omp simd
          for (long i = 0; i < D(); i++) dx[i] += w[i] * d[i];
      }
    }
  }
};

// RMS norm per head times the norm's weight and, with GATED, a gate; without it the gate is 1 and has no gradient.
template <typename T, int WIDTH, bool GATED>
static void gated_norm(const GateArguments& A, long b, long h, long first, long end, bool backward) {
  const long D = WIDTH ? WIDTH : A.head_dim, W = A.heads * D;
  const T* __restrict w = (const T*)A.weight + h * D;
  T* __restrict dw = backward ? (T*)A.d_weight + b * W + h * D : nullptr;
  for (long t = first; t < end; t++) {
    long at = (b * A.tokens + t) * W + h * D;
    const T* __restrict y = (const T*)A.y + at;
    const T* __restrict g = GATED ? (const T*)A.gate + (b * A.tokens + t) * A.stride + h * D : nullptr;
    T sum = 0, along = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < D; i++) sum += y[i] * y[i];
    T inverse = 1 / std::sqrt(sum / D + (T)A.eps);
    if (!backward) {
      T* __restrict out = (T*)A.out + at;
#pragma omp simd
      for (long i = 0; i < D; i++) out[i] = y[i] * inverse * w[i] * (GATED ? g[i] : 1);
      continue;
    }
    const T* __restrict d = (const T*)A.d_out + at;
    T *__restrict dy = (T*)A.dy + at, *__restrict dg = GATED ? (T*)A.d_gate + at : nullptr;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < D; i++) {
      T unit = y[i] * inverse, u = GATED ? d[i] * g[i] : d[i];
      if (GATED) dg[i] = d[i] * unit * w[i];
      dw[i] += u * unit;
      along += u * w[i] * unit;
    }
    along /= D;
#pragma omp simd
    for (long i = 0; i < D; i++) dy[i] = inverse * (d[i] * (GATED ? g[i] : 1) * w[i] - y[i] * inverse * along);
  }
}

// Calls fn(column, first, end) for each of `work` columns and each block of tokens. A thread goes through its columns
// for one block before the next block, so that a cache line with several columns is fetched once. The tokens of a
// column are computed in order for any number of threads.
template <typename F>
static void in_blocks(long work, long tokens, long wanted, F start) {
  constexpr long BLOCK = 16;
  int threads = (int)std::max<long>(1, std::min<long>(wanted, work));
#pragma omp parallel num_threads(threads)
  {
    FlushDenormals flush;
    auto fn = start();
    long count = omp_get_num_threads(), mine = omp_get_thread_num();
    long from = work * mine / count, to = work * (mine + 1) / count;
    for (long t = 0; t < tokens; t += BLOCK)
      for (long column = from; column < to; column++) fn(column, t, std::min(t + BLOCK, tokens));
  }
}

template <typename T, int WIDTH>
static void run_features(const FeatureArguments& A, bool backward) {
  long columns = A.batch * A.heads;
  in_blocks(A.parts * columns, A.tokens, A.threads, [&] {
    return [part = Features<T, WIDTH>(A), backward, columns](long i, long first, long end) mutable {
      part.part = i / columns, part.b = i % columns / part.A.heads, part.h = i % part.A.heads;
      backward ? part.backward(first, end) : part.forward(first, end);
    };
  });
}

template <typename T, int WIDTH>
static void run_gate(const GateArguments& A, bool backward) {
  in_blocks(A.batch * A.heads, A.tokens, A.threads, [&] {
    return [&](long i, long first, long end) {
      auto norm = A.gate ? gated_norm<T, WIDTH, true> : gated_norm<T, WIDTH, false>;
      norm(A, i / A.heads, i % A.heads, first, end, backward);
    };
  });
}

// Calls fn with the width of a head as a compile-time constant, or with 0 for a width that has no code of its own. Heads
// whose width the compiler knows take a third of the time, the more so where it is no multiple of the vectors'.
template <typename F>
static void for_width(long width, F fn) {
  if (width == 64)
    fn(std::integral_constant<int, 64>{});
  else if (width == 40)
    fn(std::integral_constant<int, 40>{});
  else if (width == 32)
    fn(std::integral_constant<int, 32>{});
  else if (width == 16)
    fn(std::integral_constant<int, 16>{});
  else
    fn(std::integral_constant<int, 0>{});
}

#ifndef TITANS_SEGMENT  // segment.cpp includes this file for its functions alone
#ifndef TITANS_REAL
#define TITANS_REAL float
#endif
extern "C" void titans_features(const FeatureArguments* a, int backward) {
  for_width(a->head_dim, [&](auto width) { run_features<TITANS_REAL, width()>(*a, backward); });
}
extern "C" void titans_gated_norm(const GateArguments* a, int backward) {
  for_width(a->head_dim, [&](auto width) { run_gate<TITANS_REAL, width()>(*a, backward); });
}
extern "C" int64_t titans_arguments_size() { return sizeof(FeatureArguments); }
extern "C" int64_t titans_gate_arguments_size() { return sizeof(GateArguments); }
#endif
