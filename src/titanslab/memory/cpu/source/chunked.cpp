// The exact parallel form of the neural memory on a CPU. A thread computes one (batch, head) row from the first chunk
// to the last, with the row's state in its core's cache. memory/chunked/equations.py and memory/decay.py have the same
// functions in PyTorch operations, for machines without a compiler; docs/exact_form.md derives them.
// Activations are [width, tokens] ("T" in a name), with tokens in the vector lanes, padded with zeros to whole vectors.
// Products with the momentum leave out the tokens to which it contributes less than rounding (decay.hpp).
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "arguments.hpp"
#include "gelu.hpp"
#include "matmul.hpp"
#include "pages.hpp"
#include "tiles.hpp"
#include "workspace.hpp"

// Decay coefficients of one chunk for one layer of gates (memory/decay.py).
template <typename T>
struct Decay {
  T *theta, *eta, *keep, *real;  // [C]
  T *carried, *combined;         // E, G: [C, C+1]; column 0 belongs to the state before the chunk
  T *start, *lag;                // [LC]
  T *mixT, *w, *w2;              // [C, LC] (row = write, lane = token), [C], [C]: shares of the writes in M_t, M', S'
  T b, f, e;                     // shares of M and S in M', share of S in S'
  long recent;                   // before this token w2 is 0, to rounding: its writes have faded from S'
  long lagging;                  // from this token on lag is ratio * start, to rounding
  T ratio;
};

// Activations of one block of short chunks, one row per token (short_chunks.hpp).
template <typename T>
struct TokenRows {
  T *a[MAX_LAYERS], *z[MAX_LAYERS], *slope[MAX_LAYERS], *back[MAX_LAYERS], *d[MAX_LAYERS];
  T *v, *unit, *rstd, *error, *raw;
};

template <typename T>
struct Activations {  // activations of the keys of one chunk, names as in memory/chunked/equations.py
  T *a[MAX_LAYERS], *z[MAX_LAYERS], *slope[MAX_LAYERS], *back[MAX_LAYERS], *d[MAX_LAYERS];
  T *v, *unit, *rstd, *error, *raw;
  TokenRows<T> rows;
};

template <typename T>
struct State {
  T *m[MAX_LAYERS], *s[MAX_LAYERS];
};

template <typename T>
struct Row {
  const Arguments& A;
  typedef typename Lanes<T>::V V;
  static constexpr long VL = Lanes<T>::VL;
  long D, L, C, LC, N, in[MAX_LAYERS], out[MAX_LAYERS], columns[MAX_LAYERS], ld[MAX_LAYERS], width[MAX_LAYERS], wide, group, gates;
  long b = 0, h = 0, r = 0;
  State<T> now, anchor, grad, grad_anchor;
  State<T> base, whole, grad_base, grad_whole;  // with A.base: m of the base, of base and state, and their gradients
  std::vector<State<T>> states;
  std::vector<Activations<T>> acts;
  Decay<T> decays[MAX_LAYERS];
  T *qT, *X[MAX_LAYERS], *Xs[MAX_LAYERS], *Z, *Zs[MAX_LAYERS], *bX, *fX, *scores, *mixed, *mixRows, *asked[MAX_LAYERS], *rowsA, *rowsB, *tmp, *tmp2;
  T *unit, *rstd, *dZ, *dX, *dA[MAX_LAYERS], *dD[MAX_LAYERS], *extra[MAX_LAYERS], *dhT[MAX_LAYERS];
  T *dmix[MAX_LAYERS], *dstart[MAX_LAYERS], *dlag[MAX_LAYERS], *dw[MAX_LAYERS], *dw2[MAX_LAYERS];
  T *lamG, *lamE, *dtheta, *dnorm, *sums, *fading, *fading_less_one, *blended;
  T dends[MAX_LAYERS][3];
  TokenRows<T> tokens;  // gradients of a block of short chunks
  T *pieces, *weighted, *mixedT, *weightedT;
  T* dB;  // the base's part of the gradient of a layer's input
  T *pm, *ps, *seen, *asking;  // for short chunks: products of tokens with the state and with one another

  Row(const Arguments& args, bool backward, Taker<T>& take) : A(args) {
    D = A.head_dim, L = A.depth, C = A.chunk, N = A.chunks, gates = A.gate_layers;
    group = backward ? A.group : 0;
    LC = (C + VL - 1) / VL * VL;
    wide = D;
    for (long l = 0; l < L; l++) {
      in[l] = l == 0 ? D : A.hidden;
      out[l] = l == L - 1 ? D : A.hidden;
      columns[l] = ld[l] = (out[l] + VL - 1) / VL * VL;
      // rows whose length is a power of two would all fall on a few lines of the L1 cache
      if (!A.inner && ld[l] * sizeof(T) % 128 == 0) ld[l] += LINE<T>;
      width[l] = (in[l] + VL - 1) / VL * VL;
      wide = std::max(wide, std::max(width[l], ld[l]));
    }
    auto state = [&](State<T>& s, bool momentum) {
      for (long l = 0; l < L; l++) {
        s.m[l] = take(in[l] * ld[l]);
        s.s[l] = momentum ? take(in[l] * ld[l]) : nullptr;
      }
    };
    state(now, true);
    state(anchor, false);
    if (A.base[0]) state(base, false), state(whole, false);
    if (A.inner) pm = take(A.inner * wide), ps = take(A.inner * wide), seen = take(LC), asking = take(LC);
    auto rows_of = [&](TokenRows<T>& o) {
      for (long l = 0; l < L; l++) {
        o.a[l] = take(C * width[l]), o.z[l] = take(C * ld[l]), o.d[l] = take(C * ld[l]);
        o.slope[l] = take(C * ld[l]), o.back[l] = take(C * ld[l]);
      }
      o.v = take(C * width[0]), o.unit = take(C * width[0]), o.error = take(C * width[0]);
      o.raw = take(C * width[0]), o.rstd = take(C);
    };
    acts.resize(backward ? group : 1);
    for (auto& t : acts) {
      for (long l = 0; l < L; l++) {
        t.a[l] = take(in[l] * LC);
        t.z[l] = take(out[l] * LC);
        t.d[l] = take(out[l] * LC);
        t.slope[l] = l < L - 1 ? take(out[l] * LC) : nullptr;
        t.back[l] = l < L - 1 ? take(out[l] * LC) : nullptr;
      }
      t.v = take(D * LC), t.unit = take(D * LC), t.error = take(D * LC), t.rstd = take(LC);
      t.raw = A.grad_clip > 0 ? take(D * LC) : nullptr;
      if (A.inner) rows_of(t.rows);
    }
    for (long g = 0; g < gates; g++) {
      Decay<T>& c = decays[g];
      c.theta = take(C), c.eta = take(C), c.keep = take(C), c.real = take(C), c.w = take(C), c.w2 = take(C);
      c.carried = take(C * (C + 1)), c.combined = take(C * (C + 1));
      c.start = take(LC), c.lag = take(LC), c.mixT = take(C * LC);
    }
    qT = take(D * LC), Z = take(wide * LC), bX = take(wide * LC), fX = take(wide * LC);
    for (long l = 0; l < L; l++) {
      X[l] = l ? take(in[l] * LC) : qT;
      Xs[l] = l < L - 1 ? take(out[l] * LC) : nullptr;
      asked[l] = take(LC * LC);
      Zs[l] = Z;
    }
    scores = take(LC * LC), mixed = take(LC * LC), mixRows = take(C * LC);
    long panels = (wide + PANEL<T> - 1) / PANEL<T> * PANEL<T>;
    rowsA = take(LC * panels), rowsB = take(LC * panels), tmp = take(wide * LC), tmp2 = take(wide * LC);
    unit = take(D * LC), rstd = take(LC), sums = take(8 * LC);
    fading = take(C), fading_less_one = take(C);
    long most = 0;
    for (long l = 0; l < L; l++) most = std::max(most, in[l] * ld[l]);
    blended = take(most);
    if (!backward) return;
    states.resize(group + 1);
    for (auto& s : states) state(s, true);
    state(grad, true);
    state(grad_anchor, false);
    if (A.base[0]) state(grad_base, false), state(grad_whole, false), dB = take(wide * LC);
    dZ = take(wide * LC), dX = take(wide * LC);
    for (long l = 0; l < L; l++) {
      dA[l] = take(in[l] * LC), dD[l] = take(out[l] * LC);
      extra[l] = take(out[l] * LC), dhT[l] = take(out[l] * LC);
      dmix[l] = take(C * LC), dstart[l] = take(LC), dlag[l] = take(LC), dw[l] = take(LC), dw2[l] = take(LC);
    }
    lamG = take(C + 1), lamE = take(C + 1), dtheta = take(C + 1), dnorm = take(2 * D);
    if (A.inner) rows_of(tokens);
    weighted = take(LC * LC), mixedT = take(LC * LC), weightedT = take(LC * LC);
    pieces = take(D);
  }

  // c[m, tokens] (op)= a[m, k] b[k, tokens]
  void apply(long m, long k, const T* a, long am, long ak, const T* b, T* c, Mode mode = SET) const {
    matmul(m, LC, k, a, am, ak, b, LC, c, LC, mode);
  }

  // Calls fn(i, rows) for groups of H rows, and for smaller groups at the end.
  template <int H, typename F>
  static void groups_of(long rows, long i, F fn) {
    for (; i + H <= rows; i += H) fn(i, Size<H>{});
    if constexpr (H > 1) groups_of<(H > 4 ? 4 : H / 2)>(rows, i, fn);
  }
  // Calls fn(i, j, rows, vectors) for tiles that cover `rows` x `columns`; a tile begins at row i and column j. The
  // sizes are for sums over a chunk's tokens.
  template <typename F>
  void tiles(long rows, long columns, F fn) const {
    long j = 0;
    auto down = [&](auto height, auto vectors) {
      groups_of<height()>(rows, 0, [&](long i, auto tall) { fn(i, j, tall, vectors); });
      j += vectors() * VL;
    };
#if TITANS_VECTOR_BYTES == 64
    while (j + 4 * VL <= columns) down(Size<3>{}, Size<4>{});
    while (j + 2 * VL <= columns) down(Size<4>{}, Size<2>{});
#else
    // a tile of 6 rows spills registers once per tile, which is cheap if its sums have 32 tokens or more
    while (j + 2 * VL <= columns) C < 32 ? down(Size<3>{}, Size<2>{}) : down(Size<6>{}, Size<2>{});
#endif
    while (j < columns) down(Size<4>{}, Size<1>{});
  }

  const Decay<T>& decay(long l) const { return decays[std::min(l, gates - 1)]; }

  // ---- moving data ----
  void load(const void* from, long l, T* m, T* s) const {
    const T* src = (const T*)from + r * (s ? 2 : 1) * in[l] * out[l];
    for (long i = 0; i < in[l]; i++) std::copy_n(src + i * out[l], out[l], m + i * ld[l]);
    if (s)
      for (long i = 0; i < in[l]; i++) std::copy_n(src + (in[l] + i) * out[l], out[l], s + i * ld[l]);
  }
  void store(void* to, long block, long l, const T* m, const T* s) const {
    T* dst = (T*)to + (block * A.batch * A.heads + r) * (s ? 2 : 1) * in[l] * out[l];
    for (long i = 0; i < in[l]; i++) std::copy_n(m + i * ld[l], out[l], dst + i * out[l]);
    if (s)
      for (long i = 0; i < in[l]; i++) std::copy_n(s + i * ld[l], out[l], dst + (in[l] + i) * out[l]);
  }
  long token(long n, long c) const { return A.index ? A.index[(b * N + n) * C + c] : n * C + c; }
  void gather(const void* from, long n, T* xT) const {
    const T* src = (const T*)from;
    if (!A.index) return transpose(C, D, src + ((b * A.tokens + n * C) * A.heads + h) * D, A.heads * D, xT, LC);
    for (long c = 0; c < C; c++) {
      long t = token(n, c);
      const T* x = src + ((b * A.tokens + std::max(t, 0L)) * A.heads + h) * D;
      T* into = rowsB + c * D;
      if (t < 0)
        std::fill_n(into, D, T(0));
      else
        std::copy_n(x, D, into);
    }
    transpose(C, D, rowsB, D, xT, LC);
  }
  void scatter(const T* xT, long n, void* to) const {
    if (!A.index)
      return transpose(D, C, xT, LC, (T*)to + ((b * A.tokens + n * C) * A.heads + h) * D, A.heads * D);
    transpose(D, C, xT, LC, rowsB, D);
    for (long c = 0; c < C; c++) {
      long t = token(n, c);
      if (t >= 0) std::copy_n(rowsB + c * D, D, (T*)to + ((b * A.tokens + t) * A.heads + h) * D);
    }
  }
  T* gate(void* base, long which, long g, long t) const {
    return (T*)base + (((which * gates + g) * A.batch + b) * A.tokens + t) * A.heads + h;
  }

  // ---- decay coefficients: decay.hpp ----
  void gates_of(long n, long g);
  void end_coefficients(long n);
  void coefficients(long n);
  void fade(Decay<T>& c);
  void gate_gradients(long n);

  // ---- LayerNorm over the width, one token per lane ----
  void column_mean(const T* x, const T* y, T* into) const {  // mean of x, or of x * y
    std::fill_n(into, LC, T(0));
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) into[c] += y ? x[i * LC + c] * y[i * LC + c] : x[i * LC + c];
#pragma omp simd
    for (long c = 0; c < LC; c++) into[c] /= D;
  }
  void normalize(const T* z, T* u, T* rs) const {
    T *mean = sums, *var = sums + LC;
    column_mean(z, nullptr, mean);
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) u[i * LC + c] = z[i * LC + c] - mean[c];
    column_mean(u, u, var);
#pragma omp simd
    for (long c = 0; c < LC; c++) rs[c] = 1 / std::sqrt(var[c] + (T)NORM_EPS);
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) u[i * LC + c] *= rs[c];
  }
  // into (op)= (dLayerNorm(z)/dz)^T g, with g = x or x * weight
  void normalize_backward(const T* x, const T* weight, const T* u, const T* rs, T* into, Mode mode) const {
    T *mean = sums, *along = sums + LC;
    std::fill_n(mean, 2 * LC, T(0));
    for (long i = 0; i < D; i++) {
      T wi = weight ? weight[i] : T(1);
#pragma omp simd
      for (long c = 0; c < LC; c++) {
        T g = x[i * LC + c] * wi;
        mean[c] += g;
        along[c] += g * u[i * LC + c];
      }
    }
#pragma omp simd
    for (long c = 0; c < 2 * LC; c++) mean[c] /= D;
    for (long i = 0; i < D; i++) {
      T wi = weight ? weight[i] : T(1);
#pragma omp simd
      for (long c = 0; c < LC; c++) {
        long at = i * LC + c;
        T value = rs[c] * (x[at] * wi - mean[c] - u[at] * along[c]);
        into[at] = mode == SET ? value : into[at] + value;
      }
    }
  }
  // into = gradient in z of sum(outer * normalize_backward(g)), g = 2 error * weight
  void normalize_double_backward(const T* outer, const T* error, const T* weight, const T* u, const T* rs, T* into) {
    T *along = sums, *gmean = sums + LC, *second = sums + 2 * LC, *value = sums + 3 * LC;
    T *t1 = sums + 4 * LC, *t2 = sums + 5 * LC;
    std::fill_n(sums, 6 * LC, T(0));
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) {
        long at = i * LC + c;
        T g = 2 * error[at] * weight[i];
        along[c] += outer[at] * u[at];
        gmean[c] += g / D;
        second[c] += g * u[at] / D;
      }
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) {
        long at = i * LC + c;
        value[c] += outer[at] * (2 * error[at] * weight[i] - gmean[c]);
      }
#pragma omp simd
    for (long c = 0; c < LC; c++) value[c] -= second[c] * along[c];
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) {
        long at = i * LC + c;
        T x = -rs[c] * (outer[at] * second[c] + 2 * error[at] * weight[i] * (along[c] / D));
        into[at] = x;
        t1[c] += x / D;
        t2[c] += x * u[at] / D;
      }
    for (long i = 0; i < D; i++)
#pragma omp simd
      for (long c = 0; c < LC; c++) {
        long at = i * LC + c;
        into[at] = rs[c] * (into[at] - t1[c] - u[at] * t2[c]) - rs[c] * rs[c] * u[at] * (value[c] / D);
      }
  }

  const T* scale() const { return A.scale ? (const T*)A.scale + h * D : nullptr; }
  const T* shift() const { return A.shift ? (const T*)A.shift + h * D : nullptr; }

  // Points the expensive activations of chunk n at their places in `A.activations`, for backward.
  void keep(long n, Activations<T>& t) {
    T* next = (T*)A.activations + (n * A.batch * A.heads + r) * A.activation_reals;
    auto place = [&](T*& at, long rows) { at = next, next += rows * LC; };
    for (long l = 0; l < L; l++) {
      place(asked[l], LC), place(Zs[l], out[l]);
      if (l < L - 1) place(t.z[l], out[l]), place(t.back[l], out[l]);
    }
    place(t.d[L - 1], D), place(t.unit, D), place(t.error, D), place(t.rstd, 1);
    if (A.grad_clip > 0) place(t.raw, D);
  }
  // Computes the other activations of a chunk from the kept ones.
  void recall(long n, Activations<T>& t) {
    keep(n, t);
    gather(A.k, n, t.a[0]);
    for (long l = 0; l < L - 1; l++) {
      gelu_and_slope(out[l] * LC, t.z[l], t.a[l + 1], t.slope[l]);
      mul_into(t.d[l], t.back[l], t.slope[l], out[l] * LC);
    }
  }
  // Computes the layer inputs X, the slopes Xs and the last product Z of a chunk's read from the kept activations.
  void recall_read(long n) {
    gather(A.q, n, qT);
    for (long l = 0; l < L - 1; l++) gelu_and_slope(out[l] * LC, Zs[l], X[l + 1], Xs[l]);
    std::copy_n(Zs[L - 1], D * LC, Z);
  }

  // ---- inner gradient of a chunk at the weights W, as its factors a and d ----
  void slopes(long n, T* const* W, Activations<T>& t) {
    gather(A.k, n, t.a[0]);
    gather(A.v, n, t.v);
    for (long l = 0; l < L; l++) {
      apply(out[l], in[l], W[l], 1, ld[l], t.a[l], t.z[l]);
      if (l < L - 1) gelu_and_slope(out[l] * LC, t.z[l], t.a[l + 1], t.slope[l]);
    }
    const T *w = scale(), *bias = shift(), *x = t.z[L - 1];
    if (w) {
      normalize(t.z[L - 1], t.unit, t.rstd);
      x = t.unit;
    }
    for (long i = 0; i < D; i++)
      for (long c = 0; c < LC; c++) {
        long at = i * LC + c;
        T value = (w ? x[at] * w[i] + bias[i] : x[at]) - t.v[at];
        t.error[at] = A.residual ? value + t.a[0][at] : value;
      }
    T* d = t.d[L - 1];
    if (w) {
      normalize_backward(t.error, w, t.unit, t.rstd, d, SET);
      for (long i = 0; i < D * LC; i++) d[i] *= 2;
    } else {
      for (long i = 0; i < D * LC; i++) d[i] = 2 * t.error[i];
    }
    if (A.grad_clip > 0) {
      std::copy_n(d, D * LC, t.raw);
      clip_factor(t.raw);
      for (long i = 0; i < D; i++)
        for (long c = 0; c < LC; c++) d[i * LC + c] *= std::min(sums[c], T(1));
    }
    for (long l = L - 2; l >= 0; l--) {
      apply(out[l], out[l + 1], W[l + 1], ld[l + 1], 1, t.d[l + 1], t.back[l]);
      for (long i = 0; i < out[l] * LC; i++) t.d[l][i] = t.back[l][i] * t.slope[l][i];
    }
  }
  // sums[c] = clip / |d_c|, sums[LC + c] = 1 / |d_c|
  void clip_factor(const T* d) {
    std::fill_n(sums, LC, T(0));
    for (long i = 0; i < D; i++)
      for (long c = 0; c < LC; c++) sums[c] += d[i * LC + c] * d[i * LC + c];
    for (long c = 0; c < LC; c++) {
      T inverse = 1 / std::sqrt(std::max(sums[c], T(1e-38)));
      sums[LC + c] = inverse;
      sums[c] = (T)A.grad_clip * inverse;
    }
  }

  void advance(const Activations<T>& t, const State<T>& from, State<T>& to) {
    for (long l = 0; l < L; l++) {
      const Decay<T>& c = decay(l);
      long w = ld[l];
      as_two_rows(t.d[l], l, c.w, c.w2);
      tiles(in[l], columns[l], [&](long i, long j, auto rows, auto vectors) {
        long at = i * w + j;
        advance_tile<T, rows(), vectors()>(C, c.recent, t.a[l] + i * LC, LC, rowsA + panel(j), rowsB + panel(j), w,
                                           from.m[l] + at, from.s[l] + at, to.m[l] + at, to.s[l] + at, c.b, c.f, c.e);
      });
    }
  }

  // ---- products whose tiles are finished while they are in registers ----
  // Tokens from `first` to `last` (whole vectors) need the products with P and with Q; the others need that with
  // `alone`.
  struct Both {
    long first, last;
    const T* alone;
  };
  // Optional sums over the products: p[token] += sum_i x[i, token] (P b)[i, token], and q the same with Q b; x [m, LC].
  struct Dots {
    const T* x;
    T *p, *q;
  };
  // to[m, tokens] = finish(i, f[token] (P b) + g[token] (Q b) - a s) for the triangular s [C, LC] and a [m, LC]; i is
  // the index in [m, LC], and values are vectors. For tokens outside `both`, P b is alone b, and Q b is 0. For writes
  // (LOWER) f, g and the sums in `dots` change their sign.
  template <Triangle PART, bool DOTS, typename F>
  void pair(long m, long k, const T* P, const T* Q, Both both, long am, long ak, const T* b, const T* f, const T* g,
            const T* a, const T* s, T* to, Dots dots, F finish) {
    auto tile = [&](long i, long j, auto rows, auto vectors, auto two) {
      constexpr int MR = rows(), NV = vectors();
      constexpr T SIGN = PART == LOWER ? -1 : 1;
      Pair<T, MR, NV> acc;
      const T* left = two() ? P : both.alone;
      if constexpr (two() && 2 * MR * NV < REGISTERS) {
        am == 1 ? pair_of<T, MR, NV, true>(k, P + i, Q + i, am, ak, b + j, LC, acc)
                : pair_of<T, MR, NV, false>(k, P + i * am, Q + i * am, am, ak, b + j, LC, acc);
      } else {
        am == 1 ? product_of<T, MR, NV, true>(k, left + i, am, ak, b + j, LC, acc.p)
                : product_of<T, MR, NV, false>(k, left + i * am, am, ak, b + j, LC, acc.p);
        if constexpr (two())
          am == 1 ? product_of<T, MR, NV, true>(k, Q + i, am, ak, b + j, LC, acc.q)
                  : product_of<T, MR, NV, false>(k, Q + i * am, am, ak, b + j, LC, acc.q);
      }
      for (int v = 0; v < NV; v++) {
        long token = j + v * VL;
        if constexpr (DOTS) {
          V along_p{}, along_q{};
          for (int r = 0; r < MR; r++) {
            V x = at(dots.x + (i + r) * LC + token);
            along_p += x * acc.p[r][v];
            if constexpr (two()) along_q += x * acc.q[r][v];
          }
          add_to(dots.p + token, SIGN * along_p);
          if constexpr (two()) add_to(dots.q + token, SIGN * along_q);
        }
        V with_p = SIGN * at(f + token), with_q = SIGN * at(g + token);
        for (int r = 0; r < MR; r++) {
          acc.p[r][v] *= with_p;
          if constexpr (two()) acc.p[r][v] += with_q * acc.q[r][v];
        }
      }
      minus_triangle<PART, T, MR, NV>(C, a + i * LC, LC, s, LC, j, acc.p);
      for (int r = 0; r < MR; r++)
        for (int v = 0; v < NV; v++) {
          long place = (i + r) * LC + j + v * VL;
          *(V*)(to + place) = finish(place, acc.p[r][v]);
        }
    };
    auto group = [&](long i, auto rows) {
      auto across = [&](long j, long end, auto two) {
        for (; j + 2 * VL <= end; j += 2 * VL) tile(i, j, rows, Size<2>{}, two);
        for (; j < end; j += VL) tile(i, j, rows, Size<1>{}, two);
      };
      across(0, both.first, std::false_type{});
      across(both.first, both.last, std::true_type{});
      across(both.last, LC, std::false_type{});
    };
    REGISTERS < 32 && C < 32 && both.first < both.last ? groups_of<3>(m, 0, group) : groups_of<6>(m, 0, group);
  }
  // The tokens of a chunk's writes whose gradients need ds besides `dm`, the gradient of the weights at its end.
  Both writes(const Decay<T>& c, const T* dm) const { return {c.recent, LC, dm}; }
  // The tokens of its reads that need the momentum besides the weights at its start.
  Both reads(const Decay<T>& c, long l, const State<T>& from) const {
    if (c.lagging >= C) return {0, LC, nullptr};
    if (c.ratio == 0) return {0, c.lagging, from.m[l]};
    for (long i = 0; i < in[l] * ld[l]; i++) blended[i] = from.m[l][i] + c.ratio * from.s[l][i];
    return {0, c.lagging, blended};
  }
  static V at(const T* x) { return *(const V*)x; }
  static void add_to(T* to, V x) { *(V*)to += x; }

  // into[i, token] = <a_i, x_token> for each token and the writes i up to it; a, x [k, LC].
  void scores_of(long k, const T* a, const T* x, T* into) {
    for (long j = 0; j < LC; j += 2 * VL) {
      long both = std::min(j + VL, C), n = std::min(2 * VL, LC - j);
      matmul(both, n, k, a, 1, LC, x + j, LC, into + j, LC);
      if (j + VL < C) {
        long row = j + VL, rest = std::min(C - row, VL);
        matmul(rest, VL, k, a + row, 1, LC, x + row, LC, into + row * LC + row, LC);
      }
    }
  }

  // The read f(q_t; M_t) of a chunk without its norm and residual. Stores the layer inputs X, the slopes Xs, the scores
  // of queries and keys (`asked`), and the last product Z.
  void read(long n, const Activations<T>& t, const State<T>& from) {
    gather(A.q, n, qT);
    for (long l = 0; l < L; l++) {
      const Decay<T>& c = decay(l);
      scores_of(in[l], t.a[l], X[l], asked[l]);
      mul_into(mixed, asked[l], c.mixT, C * LC);
      pair<UPPER, false>(out[l], in[l], from.m[l], from.s[l], reads(c, l, from), 1, ld[l], X[l], c.start, c.lag, t.d[l],
                         mixed, Zs[l], {}, [](long, V x) { return x; });
      if (A.base[0]) apply(out[l], in[l], base.m[l], 1, ld[l], X[l], Zs[l], ADD);
      if (l < L - 1) gelu_and_slope(out[l] * LC, Zs[l], X[l + 1], Xs[l]);
    }
    if (Zs[L - 1] != Z) std::copy_n(Zs[L - 1], D * LC, Z);
  }

  void begin(long row) {
    r = row, b = row / A.heads, h = row % A.heads;
    for (long l = 0; A.base[0] && l < L; l++) {
      const T* from = (const T*)A.base[l] + h * in[l] * out[l];
      for (long i = 0; i < in[l]; i++) std::copy_n(from + i * out[l], out[l], base.m[l] + i * ld[l]);
    }
  }
  // The weights of a state together with the base.
  T* const* weights(const State<T>& state) {
    if (!A.base[0]) return state.m;
    for (long l = 0; l < L; l++)
      for (long i = 0; i < in[l] * ld[l]; i++) whole.m[l][i] = state.m[l][i] + base.m[l][i];
    return whole.m;
  }
  // Applies a reset at the start of chunk n; returns the anchor, the weights at which its gradient is taken.
  T* const* enter(long n, State<T>& state) {
    if (A.resets && A.resets[n * A.batch + b])
      for (long l = 0; l < L; l++) load(A.initial[l], l, state.m[l], state.s[l]);
    if (!goes_on(n)) return weights(state);
    for (long l = 0; l < L; l++) load(A.anchor[l], l, anchor.m[l], nullptr);
    return anchor.m;
  }
  bool goes_on(long n) const { return n == 0 && A.continues && A.continues[b]; }

  void forward() {
    for (long l = 0; l < L; l++) load(A.state[l], l, now.m[l], now.s[l]);
    if (A.running[0] && A.last[b] < 0) {
      T* const* W = weights(now);
      for (long l = 0; l < L; l++) {
        if (A.anchor[0]) load(A.anchor[l], l, anchor.m[l], nullptr);
        store(A.running[l], 0, l, A.anchor[0] ? anchor.m[l] : W[l], nullptr);
      }
    }
    for (long n = 0; n < N; n++) {
      if (n % A.group == 0)
        for (long l = 0; l < L; l++) store(A.kept[l], n / A.group, l, now.m[l], now.s[l]);
      T* const* W = enter(n, now);
      if (A.running[0] && n == A.last[b])
        for (long l = 0; l < L; l++) store(A.running[l], 0, l, W[l], nullptr);
      Activations<T>& t = acts[0];
      if (A.activations) {
        keep(n, t);
        for (long l = 0; l < L; l++) std::fill_n(asked[l], LC * LC, T(0));  // scores of later writes are not computed
      }
      coefficients(n);
      A.inner ? slopes_short(n, now, W, t) : slopes(n, W, t);
      column_mean(t.error, t.error, sums);
      for (long c = 0; c < C; c++) {
        long at = token(n, c);
        if (at >= 0) ((T*)A.loss)[(b * A.tokens + at) * A.heads + h] = sums[c] * D;
      }
      read(n, t, now);
      const T *w = scale(), *bias = shift();
      if (w) {
        normalize(Z, unit, rstd);
        for (long i = 0; i < D; i++)
          for (long c = 0; c < LC; c++) Z[i * LC + c] = unit[i * LC + c] * w[i] + bias[i];
      }
      if (A.residual)
        for (long i = 0; i < D * LC; i++) Z[i] += qT[i];
      scatter(Z, n, A.y);
      advance(t, now, now);
    }
    for (long l = 0; l < L; l++) store(A.end[l], 0, l, now.m[l], now.s[l]);
    if (A.running[0] && A.offset[b] == 0) {
      T* const* W = weights(now);
      for (long l = 0; l < L; l++) store(A.running[l], 0, l, W[l], nullptr);
    }
  }

  void backward() {
    bool carry = false;  // the end anchor has a gradient, and that anchor is the one of chunk last[b]
    for (long l = 0; l < L; l++) {
      load(A.d_end[l], l, grad.m[l], grad.s[l]);
      if (A.base[0]) std::fill_n(grad_base.m[l], in[l] * ld[l], T(0));
    }
    if (A.d_running[0]) {
      carry = A.offset[b] != 0 && A.last[b] >= 0;
      for (long l = 0; l < L; l++) {
        load(A.d_running[l], l, grad_anchor.m[l], nullptr);
        if (A.offset[b] == 0) {
          add(grad.m[l], grad_anchor.m[l], l);
          if (A.base[0]) add(grad_base.m[l], grad_anchor.m[l], l);
        } else if (!carry)
          store(A.d_anchor[l], 0, l, grad_anchor.m[l], nullptr);
      }
    }
    std::fill_n(dnorm, 2 * D, T(0));
    long groups = (N + A.group - 1) / A.group;
    for (long g = groups - 1; g >= 0; g--) {
      long first = g * A.group, last = std::min(N, first + A.group);
      for (long l = 0; l < L; l++) {
        const T* kept = (const T*)A.kept[l] + g * A.batch * A.heads * 2 * in[l] * out[l];
        load(kept, l, states[0].m[l], states[0].s[l]);
      }
      for (long n = first; n < last; n++) {
        State<T>& state = states[n - first];
        T* const* W = enter(n, state);
        A.inner ? coefficients(n) : end_coefficients(n);
        if (A.activations)
          recall(n, acts[n - first]);
        else
          A.inner ? slopes_short(n, state, W, acts[n - first]) : slopes(n, W, acts[n - first]);
        if (n + 1 == last) break;
        advance(acts[n - first], state, states[n - first + 1]);
      }
      for (long n = last - 1; n >= first; n--) {
        State<T>& state = states[n - first];
        coefficients(n);
        bool own = !goes_on(n);
        if (!own)
          for (long l = 0; l < L; l++) load(A.anchor[l], l, anchor.m[l], nullptr);
        backward_chunk(n, acts[n - first], state, own ? weights(state) : anchor.m, own, carry && n == A.last[b]);
        if (A.resets && A.resets[n * A.batch + b])
          for (long l = 0; l < L; l++) {
            T* into = (T*)A.d_initial[l] + r * 2 * in[l] * out[l];
            for (long i = 0; i < in[l]; i++)
              for (long j = 0; j < out[l]; j++) {
                into[i * out[l] + j] += grad.m[l][i * ld[l] + j];
                into[(in[l] + i) * out[l] + j] += grad.s[l][i * ld[l] + j];
              }
            std::fill_n(grad.m[l], in[l] * ld[l], T(0));
            std::fill_n(grad.s[l], in[l] * ld[l], T(0));
          }
      }
    }
    for (long l = 0; l < L; l++) {
      store(A.d_state[l], 0, l, grad.m[l], grad.s[l]);
      if (A.base[0]) store(A.d_base[l], 0, l, grad_base.m[l], nullptr);
    }
    if (A.d_norm) std::copy_n(dnorm, 2 * D, (T*)A.d_norm + r * 2 * D);
  }
  void add(T* to, const T* from, long l) const {
    for (long i = 0; i < in[l] * ld[l]; i++) to[i] += from[i];
  }
  // Adds <x, y> to `along` and the sum of x to `sum`, over the chunk's tokens.
  void add_sums(const T* x, const T* y, T& along, T& sum) const {
    T a = 0, s = 0;
#pragma omp simd reduction(+ : a, s)
    for (long c = 0; c < C; c++) {
      a += x[c] * y[c];
      s += x[c];
    }
    along += a, sum += s;
  }
  static void mul_into(T* to, const T* a, const T* b, long n) {
    for (long i = 0; i < n; i++) to[i] = a[i] * b[i];
  }

  // Offset of column j in the first row of a matrix in panels.
  long panel(long j) const { return j / PANEL<T> * PANEL<T> * C + j % PANEL<T>; }
  // Transposes xT [width, LC] to `rows`, [C, ld] in panels, with zeros beyond the width.
  void as_rows(const T* xT, long l, T* rows) const {
    for (long j = 0; j < out[l]; j += PANEL<T>)
      transpose(std::min(out[l] - j, PANEL<T>), C, xT + j * LC, LC, rows + panel(j), PANEL<T>);
    clear_end(l, rows);
  }
  // The same twice: rowsA holds the rows times f, rowsB the rows times g.
  void as_two_rows(const T* xT, long l, const T* f, const T* g) {
    for (long j = 0; j < out[l]; j += PANEL<T>)
      transpose_scaled(std::min(out[l] - j, PANEL<T>), C, xT + j * LC, LC, f, rowsA + panel(j), g, rowsB + panel(j),
                       PANEL<T>);
    clear_end(l, rowsA), clear_end(l, rowsB);
  }
  void clear_end(long l, T* rows) const {
    for (long j = out[l]; j < columns[l]; j++)
      for (long c = 0; c < C; c++) rows[panel(j) + c * PANEL<T>] = 0;
  }
  // to += a x for a [in, LC] and the rows x [C, ld] in the panels of rowsA.
  void add_outer(const T* a, long l, T* to) const {
    for (long j = 0; j < columns[l]; j += PANEL<T>)
      matmul(in[l], std::min(columns[l] - j, PANEL<T>), C, a, LC, 1, rowsA + panel(j), PANEL<T>, to + j, ld[l], ADD);
  }

  // ---- adjoint of a chunk: chunk_backward.hpp ----
  void backward_chunk(long n, Activations<T>& t, const State<T>& state, T* const* W, bool own, bool carry);
  void backward_slopes(Activations<T>& t, T* const* W, T* const* dW);

  // ---- blocks of short chunks: short_chunks.hpp ----
  void subtract_earlier(long first, const Decay<T>& c, const T* u, long nu, const T* w, long nw, const T* x, T* z);
  void slopes_short(long n, const State<T>& state, T* const* W, Activations<T>& t);
  void norm_transposed(T* g, const T* unit, T rs) const;
  T clip_row(const T* d) const;
  void last_layer_short(long i, Activations<T>& t, T* last, T* dz, T* derror);
  void earlier_backward(long first, const Decay<T>& c, const T* u, long nu, const T* w, long nw, const T* x, const T* dz,
                      T* du, T* dw, T* dx, T* into);
  void backward_short(long n, Activations<T>& t, const State<T>& state, T* const* W, T* const* dW);
};

#include "chunk_backward.hpp"
#include "decay.hpp"
#include "short_chunks.hpp"

template <typename T>
static int run(const Arguments& A, bool backward) {
  long rows = A.batch * A.heads;
  if (A.activations && !backward) prefer_large_pages(A.activations, A.chunks * rows * A.activation_reals * sizeof(T));
  return on_threads<T, Row<T>>(A, backward, rows, [&](Row<T>& row, long i) {
    row.begin(i);
    backward ? row.backward() : row.forward();
  });
}

#ifndef TITANS_REAL
#define TITANS_REAL float
#endif
extern "C" int titans_chunked(const Arguments* a, int backward) { return run<TITANS_REAL>(*a, backward); }
extern "C" int64_t titans_arguments_size() { return sizeof(Arguments); }
extern "C" int titans_lanes() { return Lanes<float>::VL; }
