// The steps of one segment of MAC's walk that are no plain product (models/walk_cpu.py has the order of the steps).
// Each step divides its heads or rows among the threads. Lengths in comments: B rows of the batch, L tokens of a
// segment, S segments, H heads of the memory of width D, A heads of attention of width d. "sequence" tensors are
// [B, S * L, columns], the others [S, B, L, columns].
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#define TITANS_SEGMENT
#include "features.cpp"
#include "flush.hpp"
#include "gelu.hpp"
#include "matmul.hpp"
#include "workspace.hpp"

constexpr int MAX_LAYERS = 8;
constexpr double LAYER_NORM_EPS = 1e-5;

// models/walk_cpu.py reads the fields from here.
struct SegmentArguments {
  int64_t batch, segments, tokens, heads, head_dim, hidden, depth, residual;  // hidden: of the memory's layers
  int64_t attention_heads, width, prefix;  // width: A * d
  int64_t columns, groups, gate_layers, momentum, forgetting, taps, ring, threads;  // columns: of raw
  double read_eps, eps, write_scale;
  // sequence tensors; first holds the projections of x to query | gate [H * D], q | k | v [A * d]
  void *x, *first, *query, *d_first, *d_query;
  void *cos, *sin;              // [L, d / 2]
  void *prefix_k, *prefix_v;    // [B, A, prefix, d]
  // parameters and their gradients
  void *o_norm, *scale, *shift, *h_norm, *y_norm, *bias, *limits, *conv;  // conv: [3, taps, H * D]
  void *d_prefix_k, *d_prefix_v, *d_o_norm, *d_norm, *d_h_norm, *d_y_norm, *d_conv;
  // of which: [B, H, D], [S, B * H, 2, D], 2 x [threads, A * d], [3, B, taps, H * D]
  void *state[MAX_LAYERS], *d_state[MAX_LAYERS];  // [S, groups, B * H, 2 d_in, d_out], [B * H, 2 d_in, d_out]
  // What the memory forgets to; the states count from it. [H, d_in, d_out]; d_base: [S, B * H, d_in, d_out]. Absent: 0.
  void *base[MAX_LAYERS], *d_base[MAX_LAYERS];
  void *u, *h0, *h, *kv, *lse, *y, *normed, *raw, *gates, *tails;  // tails: [S + 1, 3, B, taps - 1, H * D]
  void *q, *k, *v;                                               // of one segment: [B, L, H * D]
  // backward; those of one segment are [B, L, columns]
  void *dq, *dk, *dv, *d_gates, *d_tails;        // one segment
  void *d_raw, *d_normed, *dy, *d_kv, *dh, *dh0, *du;  // d_raw, d_kv, dh0: [ring, ...]; d_normed, dh, du: one segment
};

template <typename T>
struct Segment {
  typedef typename Lanes<T>::V V;
  static constexpr long VL = Lanes<T>::VL;
  static constexpr long TOKENS = 64;  // of a block of the read
  static constexpr long ROWS = 16;    // queries of a block of attention
  const SegmentArguments& A;
  const long n, L, D, W, depth, d, dp, P, first_columns;
  long in[MAX_LAYERS], out[MAX_LAYERS], ld[MAX_LAYERS], wide;

  static long whole(long size) { return (size + VL - 1) / VL * VL; }
  Segment(const SegmentArguments& a, long segment)
      : A(a), n(segment), L(a.tokens), D(a.head_dim), W(a.heads * a.head_dim), depth(a.depth),
        d(a.width / a.attention_heads), dp(whole(d)), P(a.prefix), first_columns(2 * W + 3 * a.width) {
    wide = D;
    for (long l = 0; l < depth; l++) {
      in[l] = l == 0 ? D : A.hidden;
      out[l] = l == depth - 1 ? D : A.hidden;
      ld[l] = whole(out[l]);
      wide = std::max(wide, std::max(in[l], ld[l]));
    }
  }
  // Row of token t of batch row b: in a sequence tensor, in one with segments, in a ring, in one segment.
  T* sequence(void* base, long b, long t, long columns) const {
    return (T*)base + ((b * A.segments + n) * L + t) * columns;
  }
  T* stacked(void* base, long b, long t, long columns) const {
    return (T*)base + ((n * A.batch + b) * L + t) * columns;
  }
  T* ringed(void* base, long b, long t, long columns) const {
    return (T*)base + ((n % A.ring * A.batch + b) * L + t) * columns;
  }
  T* single(void* base, long b, long t, long columns) const { return (T*)base + (b * L + t) * columns; }

  // ---- the read f(q; M) with M as it is, its RMS norm and its gate; tokens are in the lanes ----
  struct Read {
    T *a[MAX_LAYERS], *slope[MAX_LAYERS], *z, *unit, *y, *gate, *u, *mean, *rstd, *inverse, *along;
    T *dy, *dz, *dx, *rows, *dW[MAX_LAYERS];
  };
  Read read_space(bool backward, Taker<T>& take) const {
    Read R{};
    for (long l = 0; l < depth; l++) {
      R.a[l] = take(in[l] * TOKENS);
      if (l < depth - 1) R.slope[l] = take(out[l] * TOKENS);
      if (backward) R.dW[l] = take(in[l] * ld[l]);
    }
    R.z = take(wide * TOKENS), R.unit = take(D * TOKENS), R.y = take(D * TOKENS), R.gate = take(D * TOKENS);
    R.u = take(D * TOKENS), R.mean = take(TOKENS), R.rstd = take(TOKENS), R.inverse = take(TOKENS);
    R.along = take(TOKENS);
    if (!backward) return R;
    R.dy = take(D * TOKENS), R.dz = take(wide * TOKENS), R.dx = take(wide * TOKENS), R.rows = take(TOKENS * wide);
    return R;
  }
  // into[c] = mean over the width of x * y, or of x
  void column_mean(const T* x, const T* y, T* into) const {
    std::fill_n(into, TOKENS, T(0));
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < TOKENS; c++) into[c] += y ? x[i * TOKENS + c] * y[i * TOKENS + c] : x[i * TOKENS + c];
#pragma omp simd
    for (long c = 0; c < TOKENS; c++) into[c] /= D;
  }
  void gather(const T* rows, long count, long stride, T* to) const {
    if (count < TOKENS) std::fill_n(to, D * TOKENS, T(0));
    transpose(count, D, rows, stride, to, TOKENS);
  }
  const T* state_of(long b, long h, long l) const {
    return (T*)A.state[l] + (n * A.groups * A.batch * A.heads + b * A.heads + h) * 2 * in[l] * out[l];
  }
  const T* base_of(long h, long l) const { return (T*)A.base[l] + h * in[l] * out[l]; }
  // The outputs of tokens t .. t + count of head h of row b.
  void read_block(Read& R, long b, long h, long t, long count) const {
    gather(sequence(A.query, b, t, W) + h * D, count, W, R.a[0]);
    gather(sequence(A.first, b, t, first_columns) + W + h * D, count, first_columns, R.gate);
    for (long l = 0; l < depth; l++) {
      matmul(out[l], TOKENS, in[l], state_of(b, h, l), 1, out[l], R.a[l], TOKENS, R.z, TOKENS);
      if (A.base[l]) matmul(out[l], TOKENS, in[l], base_of(h, l), 1, out[l], R.a[l], TOKENS, R.z, TOKENS, ADD);
      if (l < depth - 1) gelu_and_slope(out[l] * TOKENS, R.z, R.a[l + 1], R.slope[l]);
    }
    if (A.scale) {
      column_mean(R.z, nullptr, R.mean);
      for (long i = 0; i < D; i++)
#pragma omp simd
        for (long c = 0; c < TOKENS; c++) R.unit[i * TOKENS + c] = R.z[i * TOKENS + c] - R.mean[c];
      column_mean(R.unit, R.unit, R.rstd);
#pragma omp simd
      for (long c = 0; c < TOKENS; c++) R.rstd[c] = 1 / std::sqrt(R.rstd[c] + (T)LAYER_NORM_EPS);
    }
    for (long i = 0; i < D; i++) {
      T w = A.scale ? ((T*)A.scale)[h * D + i] : 1, s = A.shift ? ((T*)A.shift)[h * D + i] : 0;
#pragma omp simd
      for (long c = 0; c < TOKENS; c++) {
        long at = i * TOKENS + c;
        T z = R.z[at];
        if (A.scale) R.unit[at] *= R.rstd[c], z = R.unit[at] * w + s;
        R.y[at] = A.residual ? z + R.a[0][at] : z;
      }
    }
    column_mean(R.y, R.y, R.inverse);
#pragma omp simd
    for (long c = 0; c < TOKENS; c++) R.inverse[c] = 1 / std::sqrt(R.inverse[c] + (T)A.read_eps);
    for (long i = 0; i < D; i++) {
      T w = ((T*)A.o_norm)[h * D + i];
#pragma omp simd
      for (long c = 0; c < TOKENS; c++)
        R.u[i * TOKENS + c] = R.y[i * TOKENS + c] * R.inverse[c] * w * R.gate[i * TOKENS + c];
    }
  }
  void read(Read& R, long b, long h) const {
    for (long t = 0; t < L; t += TOKENS) {
      long count = std::min(TOKENS, L - t);
      read_block(R, b, h, t, count);
      transpose(D, count, R.u, TOKENS, ringed(A.u, b, t, W) + h * D, W);
    }
  }
  void read_backward(Read& R, long b, long h) const {
    for (long l = 0; l < depth; l++) std::fill_n(R.dW[l], in[l] * ld[l], T(0));
    const long head = b * A.heads + h;
    T *d_o_norm = (T*)A.d_o_norm + head * D, *d_scale = (T*)A.d_norm + (n * A.batch * A.heads + head) * 2 * D;
    for (long t = 0; t < L; t += TOKENS) {
      long count = std::min(TOKENS, L - t);
      read_block(R, b, h, t, count);
      transpose(D, count, R.u, TOKENS, ringed(A.u, b, t, W) + h * D, W);
      gather(single(A.du, b, t, W) + h * D, count, W, R.u);
      // of the gate and of the RMS norm; u holds its gradient from here on, then that of the gate
      std::fill_n(R.along, TOKENS, T(0));
      for (long i = 0; i < D; i++) {
        T w = ((T*)A.o_norm)[h * D + i], sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long c = 0; c < TOKENS; c++) {
          long at = i * TOKENS + c;
          T unit = R.y[at] * R.inverse[c], g = R.u[at] * R.gate[at];
          R.u[at] *= unit * w;
          R.dy[at] = g * w;
          sum += g * unit;
          R.along[c] += g * w * unit;
        }
        d_o_norm[i] += sum;
      }
#pragma omp simd
      for (long c = 0; c < TOKENS; c++) R.along[c] /= D;
      for (long i = 0; i < D; i++)
#pragma omp simd
        for (long c = 0; c < TOKENS; c++) {
          long at = i * TOKENS + c;
          R.dy[at] = R.inverse[c] * (R.dy[at] - R.y[at] * R.inverse[c] * R.along[c]);
        }
      transpose(D, count, R.u, TOKENS, sequence(A.d_first, b, t, first_columns) + W + h * D, first_columns);
      // of LayerNorm
      T* dz = R.dz;
      if (A.scale) {
        std::fill_n(R.mean, TOKENS, T(0)), std::fill_n(R.along, TOKENS, T(0));
        for (long i = 0; i < D; i++) {
          T w = ((T*)A.scale)[h * D + i], sum = 0, both = 0;
#pragma omp simd reduction(+ : sum, both)
          for (long c = 0; c < TOKENS; c++) {
            long at = i * TOKENS + c;
            sum += R.dy[at], both += R.dy[at] * R.unit[at];
            R.mean[c] += R.dy[at] * w, R.along[c] += R.dy[at] * w * R.unit[at];
          }
          d_scale[i] += both, d_scale[D + i] += sum;
        }
        for (long i = 0; i < D; i++) {
          T w = ((T*)A.scale)[h * D + i];
#pragma omp simd
          for (long c = 0; c < TOKENS; c++) {
            long at = i * TOKENS + c;
            dz[at] = R.rstd[c] * (R.dy[at] * w - (R.mean[c] + R.unit[at] * R.along[c]) / D);
          }
        }
      } else {
        std::copy_n(R.dy, D * TOKENS, dz);
      }
      for (long l = depth - 1; l >= 0; l--) {
        transpose(out[l], TOKENS, dz, TOKENS, R.rows, ld[l]);
        matmul(in[l], ld[l], TOKENS, R.a[l], TOKENS, 1, R.rows, ld[l], R.dW[l], ld[l], ADD);
        T* dx = l == 0 && A.residual ? R.dy : R.dx;
        matmul(in[l], TOKENS, out[l], state_of(b, h, l), out[l], 1, dz, TOKENS, dx, TOKENS, dx == R.dy ? ADD : SET);
        if (A.base[l]) matmul(in[l], TOKENS, out[l], base_of(h, l), out[l], 1, dz, TOKENS, dx, TOKENS, ADD);
        if (l > 0)
          for (long i = 0; i < in[l] * TOKENS; i++) dz[i] = dx[i] * R.slope[l - 1][i];
        else
          transpose(D, count, dx, TOKENS, sequence(A.d_query, b, t, W) + h * D, W);
      }
    }
    for (long l = 0; l < depth; l++) {
      T* to = (T*)A.d_state[l] + (b * A.heads + h) * 2 * in[l] * out[l];
      T* into = A.base[l] ? (T*)A.d_base[l] + (n * A.batch * A.heads + b * A.heads + h) * in[l] * out[l] : nullptr;
      for (long i = 0; i < in[l]; i++)
        for (long j = 0; j < out[l]; j++) {
          to[i * out[l] + j] += R.dW[l][i * ld[l] + j];
          if (into) into[i * out[l] + j] += R.dW[l][i * ld[l] + j];
        }
    }
  }

  // ---- attention over [prefix | h_j, j <= i | s_j, j <= i] ----
  // Keys stand in columns: first the prefix, padded to whole vectors, then for each block of queries its h and its
  // tokens. A block of queries sees all columns before a place, and a triangle of its own.
  struct Attend {
    long blocks, prefix, columns;
    T *KT, *VT, *K, *V, *q, *scores, *o, *d_o, *d_scores, *dK, *dV, *dq;
  };
  Attend attend_space(bool backward, Taker<T>& take) const {
    Attend S{};
    S.blocks = (L + ROWS - 1) / ROWS, S.prefix = whole(P), S.columns = S.prefix + 2 * ROWS * S.blocks;
    if (S.columns * sizeof(T) % 256 == 0) S.columns += VL;  // rows a power of two apart would share few cache lines
    S.KT = take(d * S.columns), S.K = take(S.columns * dp), S.V = take(S.columns * dp), S.q = take(ROWS * dp);
    S.scores = take(ROWS * S.columns), S.o = take(ROWS * dp);
    if (!backward) return S;
    S.VT = take(d * S.columns), S.d_o = take(ROWS * dp), S.dq = take(ROWS * dp);
    S.d_scores = take(ROWS * S.columns), S.dK = take(S.columns * dp), S.dV = take(S.columns * dp);
    return S;
  }
  // Rotates a head at position t by `sign` times its angle: to = factor * rotated x.
  void rotate(const T* x, long t, T sign, T factor, T* to) const {
    const T *cos = (T*)A.cos + t * (d / 2), *sin = (T*)A.sin + t * (d / 2);
    for (long i = 0; i < d / 2; i++) {
      T a = x[i], b = x[i + d / 2], s = sign * sin[i];
      to[i] = factor * (a * cos[i] - b * s);
      to[i + d / 2] = factor * (b * cos[i] + a * s);
    }
  }
  long column(const Attend& S, long t, bool own) const {
    return S.prefix + t / ROWS * 2 * ROWS + own * ROWS + t % ROWS;
  }
  T* row_of(void* first, void* kv, long b, long t, long h, bool own, bool value) const {  // k or v of s_t or h_t
    return own ? sequence(first, b, t, first_columns) + 2 * W + (1 + value) * A.width + h * d
               : (T*)kv + (b * L + t) * 2 * A.width + value * A.width + h * d;
  }
  void load_keys(Attend& S, long b, long h, bool backward) const {
    auto put = [&](long c, const T* value) { std::copy_n(value, d, S.V + c * dp); };
    for (long p = 0; p < P; p++) {
      long at = ((b * A.attention_heads + h) * P + p) * d;
      std::copy_n((T*)A.prefix_k + at, d, S.K + p * dp);
      put(p, (T*)A.prefix_v + at);
    }
    for (long t = 0; t < L; t++)
      for (int own = 0; own < 2; own++) {
        rotate(row_of(A.first, A.kv, b, t, h, own, false), t, 1, 1, S.K + column(S, t, own) * dp);
        put(column(S, t, own), row_of(A.first, A.kv, b, t, h, own, true));
      }
    transpose(S.columns, d, S.K, dp, S.KT, S.columns);
    if (backward) transpose(S.columns, d, S.V, dp, S.VT, S.columns);
  }
  void load_queries(Attend& S, long b, long h, long t, long count) const {
    for (long r = 0; r < count; r++)
      rotate(sequence(A.first, b, t + r, first_columns) + 2 * W + h * d, t + r, 1, 1 / std::sqrt((T)d), S.q + r * dp);
  }
  // Sets the scores that query r of a block of `seen` columns does not see to `value`.
  void hide(const Attend& S, T* scores, long r, long seen, T value) const {
    std::fill(scores + P, scores + S.prefix, value);
    std::fill(scores + seen - 2 * ROWS + r + 1, scores + seen - ROWS, value);
    std::fill(scores + seen - ROWS + r + 1, scores + seen, value);
  }
  static V larger(V a, V b) { return a > b ? a : b; }
  void attend(Attend& S, long b, long h) const {
    load_keys(S, b, h, false);
    for (long block = 0; block < S.blocks; block++) {
      long t = block * ROWS, count = std::min(ROWS, L - t), seen = S.prefix + 2 * ROWS * (block + 1);
      load_queries(S, b, h, t, count);
      matmul(count, seen, d, S.q, dp, 1, S.KT, S.columns, S.scores, S.columns);
      T total[ROWS];
      for (long r = 0; r < count; r++) {
        T* s = S.scores + r * S.columns;
        hide(S, s, r, seen, -std::numeric_limits<T>::infinity());
        V top = *(V*)s;
        for (long c = VL; c < seen; c += VL) top = larger(top, *(V*)(s + c));
        T most = top[0], sum = 0;
        for (long i = 1; i < VL; i++) most = std::max(most, top[i]);
#pragma omp simd reduction(+ : sum)
        for (long c = 0; c < seen; c++) {
          s[c] = exp_negative(s[c] - most);
          sum += s[c];
        }
        hide(S, s, r, seen, 0);
        total[r] = 1 / sum;
        ((T*)A.lse)[((n * A.batch + b) * A.attention_heads + h) * L + t + r] = most + std::log(sum);
      }
      matmul(count, dp, seen, S.scores, S.columns, 1, S.V, dp, S.o, dp);
      for (long r = 0; r < count; r++) {
        const T* x = sequence(A.x, b, t + r, A.width) + h * d;
        T* y = stacked(A.y, b, t + r, A.width) + h * d;
        for (long i = 0; i < d; i++) y[i] = x[i] + S.o[r * dp + i] * total[r];
      }
    }
  }
  void attend_backward(Attend& S, long b, long h) const {
    load_keys(S, b, h, true);
    std::fill_n(S.dK, S.columns * dp, T(0)), std::fill_n(S.dV, S.columns * dp, T(0));
    for (long block = 0; block < S.blocks; block++) {
      long t = block * ROWS, count = std::min(ROWS, L - t), seen = S.prefix + 2 * ROWS * (block + 1);
      load_queries(S, b, h, t, count);
      for (long r = 0; r < count; r++) std::copy_n(stacked(A.dy, b, t + r, A.width) + h * d, d, S.d_o + r * dp);
      matmul(count, seen, d, S.q, dp, 1, S.KT, S.columns, S.scores, S.columns);
      matmul(count, seen, d, S.d_o, dp, 1, S.VT, S.columns, S.d_scores, S.columns);
      for (long r = 0; r < count; r++) {
        T *s = S.scores + r * S.columns, *ds = S.d_scores + r * S.columns, along = 0;
        T lse = ((T*)A.lse)[((n * A.batch + b) * A.attention_heads + h) * L + t + r];
        const T *x = sequence(A.x, b, t + r, A.width) + h * d, *y = stacked(A.y, b, t + r, A.width) + h * d;
        for (long i = 0; i < d; i++) along += S.d_o[r * dp + i] * (y[i] - x[i]);
#pragma omp simd
        for (long c = 0; c < seen; c++) {
          T p = exp_negative(s[c] - lse);
          s[c] = p;
          ds[c] = p * (ds[c] - along);
        }
        hide(S, s, r, seen, 0), hide(S, ds, r, seen, 0);
      }
      matmul(count, dp, seen, S.d_scores, S.columns, 1, S.K, dp, S.dq, dp);
      matmul(seen, dp, count, S.d_scores, 1, S.columns, S.q, dp, S.dK, dp, ADD);
      matmul(seen, dp, count, S.scores, 1, S.columns, S.d_o, dp, S.dV, dp, ADD);
      for (long r = 0; r < count; r++)
        rotate(S.dq + r * dp, t + r, -1, 1 / std::sqrt((T)d),
               sequence(A.d_first, b, t + r, first_columns) + 2 * W + h * d);
    }
    void* d_kv = ringed(A.d_kv, 0, 0, 2 * A.width);
    for (long t = 0; t < L; t++)
      for (int own = 0; own < 2; own++) {
        long c = column(S, t, own);
        rotate(S.dK + c * dp, t, -1, 1, row_of(A.d_first, d_kv, b, t, h, own, false));
        std::copy_n(S.dV + c * dp, d, row_of(A.d_first, d_kv, b, t, h, own, true));
      }
    for (long p = 0; p < P; p++) {
      long at = ((b * A.attention_heads + h) * P + p) * d;
      for (long i = 0; i < d; i++)
        ((T*)A.d_prefix_k)[at + i] += S.dK[p * dp + i], ((T*)A.d_prefix_v)[at + i] += S.dV[p * dp + i];
    }
  }

  // ---- RMS norm of rows of the model's width ----
  T inverse_rms(const T* x) const {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < A.width; i++) sum += x[i] * x[i];
    return 1 / std::sqrt(sum / A.width + (T)A.eps);
  }
  void norm(const T* x, const void* weight, T* out) const {
    T inverse = inverse_rms(x);
    for (long i = 0; i < A.width; i++) out[i] = x[i] * inverse * ((const T*)weight)[i];
  }
  // dx (op)= gradient of x, d_weight += gradient of the weight
  void norm_backward(const T* g, const T* x, const void* weight, T* dx, T* d_weight, Mode mode) const {
    const T* w = (const T*)weight;
    T inverse = inverse_rms(x), along = 0;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < A.width; i++) {
      T unit = x[i] * inverse;
      d_weight[i] += g[i] * unit;
      along += g[i] * w[i] * unit;
    }
    along /= A.width;
    for (long i = 0; i < A.width; i++) {
      T value = inverse * (g[i] * w[i] - x[i] * inverse * along);
      dx[i] = mode == SET ? value : dx[i] + value;
    }
  }

  // ---- theta, eta, alpha from raw's last columns, as in NeuralMemory.activate ----
  void gates_of(long b, long t, bool backward) const {
    const long G = A.gate_layers, count = A.heads * G, used = count * (1 + A.momentum + A.forgetting);
    const T *raw = stacked(A.raw, b, t, A.columns) + 3 * W, *bias = (const T*)A.bias;
    std::vector<T> s(used);
#pragma omp simd
    for (long i = 0; i < used; i++) s[i] = sigmoid(raw[i] + bias[i]);
    T* into = backward ? ringed(A.d_raw, b, t, A.columns) + 3 * W : nullptr;
    if (backward) std::fill_n(into + used, A.columns - 3 * W - used, T(0));
    for (long h = 0; h < A.heads; h++)
      for (long g = 0; g < G; g++) {
        long i = h * G + g, e = count + i, f = (1 + A.momentum) * count + i;
        T limit = ((const T*)A.limits)[g] * (T)A.write_scale;
        T eta = A.momentum ? s[e] : 0, alpha = A.forgetting ? s[f] : 0;
        auto at = [&](void* gates, long block, long which) -> T& {
          return ((T*)gates)[((((block * 3 + which) * G + g) * A.batch + b) * L + t) * A.heads + h];
        };
        if (!backward) {
          at(A.gates, n, 0) = s[i] * (1 - eta) * limit, at(A.gates, n, 1) = eta, at(A.gates, n, 2) = alpha;
          continue;
        }
        T d_theta = at(A.d_gates, 0, 0) * limit;
        into[i] = d_theta * (1 - eta) * s[i] * (1 - s[i]);
        if (A.momentum) into[e] = (at(A.d_gates, 0, 1) - d_theta * s[i]) * eta * (1 - eta);
        if (A.forgetting) into[f] = at(A.d_gates, 0, 2) * alpha * (1 - alpha);
      }
  }

  // ---- short convolutions of q, k, v; the tails of the next segment are copied out ----
  long tail_size() const { return A.batch * (A.taps - 1) * W; }
  void copy_tails() const {
    for (long part = 0; part < 3; part++)
      for (long b = 0; b < A.batch; b++)
        for (long j = 0; j < A.taps - 1; j++)
          std::copy_n(stacked(A.raw, b, L - A.taps + 1 + j, A.columns) + part * W, W,
                      (T*)A.tails + ((n + 1) * 3 + part) * tail_size() + (b * (A.taps - 1) + j) * W);
  }
  void features(bool backward) const {
    FeatureArguments F{A.batch, L, A.heads, D, A.taps, 3, 2, A.threads, A.columns};
    T* next = (T*)A.d_tails;  // gradients of the tails after this segment, then of those before it
    std::vector<T> after(next, next + (backward ? 3 * tail_size() : 0));
    if (backward) std::fill_n(next, 3 * tail_size(), T(0));
    void *y[3] = {A.q, A.k, A.v}, *dy[3] = {A.dq, A.dk, A.dv};
    for (long part = 0; part < 3; part++) {
      F.x[part] = stacked(A.raw, 0, 0, A.columns) + part * W, F.weight[part] = (T*)A.conv + part * A.taps * W;
      F.tail[part] = (T*)A.tails + (n * 3 + part) * tail_size();
      F.y[part] = y[part], F.dy[part] = dy[part];
      if (!backward) continue;
      F.d_weight[part] = (T*)A.d_conv + part * A.batch * A.taps * W;
      F.dx[part] = ringed(A.d_raw, 0, 0, A.columns) + part * W, F.d_tail[part] = next + part * tail_size();
    }
    for_width(F.head_dim, [&](auto width) { run_features<T, width()>(F, backward); });
    for (long i = 0; i < (long)after.size(); i++) {
      long part = i / tail_size(), b = i % tail_size() / ((A.taps - 1) * W), j = i / W % (A.taps - 1);
      ringed(A.d_raw, b, L - A.taps + 1 + j, A.columns)[part * W + i % W] += after[i];
    }
  }
};

enum Step {
  READ, NORM, ATTEND, FEATURES,  // forward; backward computes NORM and FEATURES again
  FEATURES_BACKWARD, Y_BACKWARD, ATTEND_BACKWARD, NORM_BACKWARD, READ_BACKWARD,
};

template <typename T>
static int run(const SegmentArguments& A, int step, long n) {
  Segment<T> segment(A, n);
  typedef typename Segment<T>::Read Read;
  typedef typename Segment<T>::Attend Attend;
  const long rows = A.batch * A.tokens;
  const bool backward = step >= FEATURES_BACKWARD;
  if (step == FEATURES || step == FEATURES_BACKWARD) segment.features(backward);
  const bool again = step == FEATURES && A.dq;  // in backward, where the gates and tails are there
  if (step == FEATURES && !again) segment.copy_tails();
  bool reads = step == READ || step == READ_BACKWARD, attends = step == ATTEND || step == ATTEND_BACKWARD;
  Taker<T> counter{nullptr};
  if (reads) segment.read_space(backward, counter);
  if (attends) segment.attend_space(backward, counter);
  int failed = 0;
#pragma omp parallel num_threads((int)A.threads)
  {
    FlushDenormals flush;
    static thread_local Arena<T> arena;
    const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (reads || attends) {
      bool ready = arena.reserve(counter.count + 64);
      if (!ready) {
#pragma omp atomic write
        failed = 1;
      }
      Taker<T> take{&arena};
      Read R = reads && ready ? segment.read_space(backward, take) : Read{};
      Attend S = attends && ready ? segment.attend_space(backward, take) : Attend{};
      const long heads = reads ? A.heads : A.attention_heads;
#pragma omp for schedule(dynamic, 1)
      for (long i = 0; i < A.batch * heads; i++) {
        if (!ready) continue;
        long b = i / heads, h = i % heads;
        if (reads) backward ? segment.read_backward(R, b, h) : segment.read(R, b, h);
        if (attends) backward ? segment.attend_backward(S, b, h) : segment.attend(S, b, h);
      }
    }
    for (long i = rows * thread / threads; i < rows * (thread + 1) / threads; i++) {
      long b = i / A.tokens, t = i % A.tokens;
      T* d_weight = (T*)(step == Y_BACKWARD ? A.d_y_norm : A.d_h_norm) + thread * A.width;
      auto at = [&](void* base) { return segment.stacked(base, b, t, A.width); };
      if (step == NORM) segment.norm(at(A.h0), A.h_norm, segment.ringed(A.h, b, t, A.width));
      if (step == ATTEND) segment.norm(at(A.y), A.y_norm, at(A.normed));
      if ((step == FEATURES && !again) || step == FEATURES_BACKWARD) segment.gates_of(b, t, backward);
      if (step == Y_BACKWARD)
        segment.norm_backward(segment.single(A.d_normed, b, t, A.width), at(A.y), A.y_norm, at(A.dy), d_weight, ADD);
      if (step == NORM_BACKWARD)
        segment.norm_backward(segment.single(A.dh, b, t, A.width), at(A.h0), A.h_norm,
                              segment.ringed(A.dh0, b, t, A.width), d_weight, SET);
    }
  }
  return failed;
}

#ifndef TITANS_REAL
#define TITANS_REAL float
#endif
extern "C" int titans_segment(const SegmentArguments* a, int step, int n) { return run<TITANS_REAL>(*a, step, n); }
extern "C" int64_t titans_arguments_size() { return sizeof(SegmentArguments); }
