// Small heads in short chunks. A vector's lanes are memories: a (batch, head) problem has a lane of its own, and the
// code below is that of one memory with vectors for numbers. A matrix of a memory is [rows, columns] vectors, and
// activations are [width, tokens of the chunk] vectors. The functions and names are those of chunked.cpp, which holds
// one memory's tokens in the lanes; with heads of 16 and chunks of 4 tokens most of its lanes would be empty.
// With `raw` it makes q, k and v itself: short convolution, SiLU and, for q and k, unit norm (features.cpp).
#include <algorithm>
#include <cmath>
#include <vector>

#include "arguments.hpp"
#include "gelu.hpp"
#include "matmul.hpp"
#include "workspace.hpp"

constexpr int LANE_TOKENS = 8;     // most tokens of a chunk
constexpr long LANE_SLICES = 16;  // most partial sums of the gradient of a start that all rows share

template <typename T>
struct Lanewise {
  typedef typename Lanes<T>::V V;
  static constexpr long VL = Lanes<T>::VL;
  // sums that registers hold at once beside the operands
  static constexpr int SUMS = REGISTERS == 32 ? 16 : 8;

  struct Matrices {
    V *m[MAX_LAYERS], *s[MAX_LAYERS];  // s begins where m ends
  };
  struct Keys {  // activations of a chunk's keys, names as in chunked.cpp
    V *a[MAX_LAYERS], *z[MAX_LAYERS], *slope[MAX_LAYERS], *back[MAX_LAYERS], *d[MAX_LAYERS];
    V *unit, *error, *raw, *rstd;
  };
  struct Coefficients {  // names as in struct Decay
    V theta[LANE_TOKENS], eta[LANE_TOKENS], keep[LANE_TOKENS], start[LANE_TOKENS], lag[LANE_TOKENS], w[LANE_TOKENS], w2[LANE_TOKENS];
    V carried[LANE_TOKENS][LANE_TOKENS + 1], combined[LANE_TOKENS][LANE_TOKENS + 1], mix[LANE_TOKENS][LANE_TOKENS], b, f, e;
  };
  struct Slopes {  // gradients of the coefficients
    V start[LANE_TOKENS], lag[LANE_TOKENS], w[LANE_TOKENS], w2[LANE_TOKENS], mix[LANE_TOKENS][LANE_TOKENS], b, f, e;
  };

  const Arguments& A;
  long D, L, C, N, gates, group, wide = 0, in[MAX_LAYERS], out[MAX_LAYERS];
  long count = 0, row[VL], problem[VL];  // of each lane: its first token's place in [B, T, H], and b * H + h
  Matrices now, grad;
  std::vector<Matrices> states;
  std::vector<Keys> keys;
  std::vector<Coefficients> decays;
  std::vector<Slopes> slopes_of;
  V *X[MAX_LAYERS], *Xs[MAX_LAYERS], *dA[MAX_LAYERS], *dD[MAX_LAYERS], *extra[MAX_LAYERS], *dh[MAX_LAYERS], *dz[MAX_LAYERS];
  V *dx[MAX_LAYERS], *Z, *v, *dy, *unit, *derror, *one, *two, *weight, *bias, *dnorm;
  // Of a block of tokens, [tokens, D]: inputs of the convolutions, which begin `back` tokens earlier, and q, k, v; and
  // for backward slopes, 1 / norm, and the gradients of both. later: gradients of inputs that later tokens need too.
  static constexpr int PARTS = 3, UNIT = 2;
  long back, block, block_first = 0, token0[VL], head[VL];
  V *inputs[PARTS], *made[PARTS], *curve[PARTS], *inverse[PARTS], *d_made[PARTS], *d_inputs[PARTS], *later[PARTS];
  V *taps[PARTS], *d_taps[PARTS], *line;
  V rstd[LANE_TOKENS], asked[MAX_LAYERS][LANE_TOKENS][LANE_TOKENS];

  Lanewise(const Arguments& args, bool backward, Taker<T>& taker) : A(args) {
    D = A.head_dim, L = A.depth, C = A.chunk, N = A.chunks, gates = A.gate_layers, group = backward ? A.group : 1;
    auto take = [&](long n) { return (V*)taker(n * VL); };
    for (long l = 0; l < L; l++) {
      in[l] = l == 0 ? D : A.hidden, out[l] = l == L - 1 ? D : A.hidden;
      wide = std::max(wide, std::max(in[l], out[l]));
    }
    auto matrices = [&](Matrices& to) {
      for (long l = 0; l < L; l++) to.m[l] = take(2 * in[l] * out[l]), to.s[l] = to.m[l] + in[l] * out[l];
    };
    const long S = LANE_TOKENS;
    if (!backward) matrices(now);
    states.resize(backward ? group : 0);
    for (auto& s : states) matrices(s);
    keys.resize(group);
    for (auto& t : keys) {
      for (long l = 0; l < L; l++) {
        t.a[l] = take(in[l] * slots()), t.z[l] = take(out[l] * slots()), t.d[l] = take(out[l] * slots());
        t.slope[l] = take(out[l] * slots()), t.back[l] = take(out[l] * slots());
      }
      t.unit = take(D * slots()), t.error = take(D * slots()), t.raw = take(D * slots()), t.rstd = take(S);
    }
    decays.resize(gates);
    for (long l = 0; l < L; l++) X[l] = take(in[l] * S), Xs[l] = take(out[l] * S);
    for (V** x : {&Z, &v, &unit, &one, &two}) *x = take(wide * S);
    weight = take(D), bias = take(D);
    back = A.taps - 1, block = backward ? group : std::max(1L, 16 / C);
    long most = block * C;
    for (int part = 0; part < PARTS && A.taps; part++) {
      inputs[part] = take((most + back) * D), made[part] = take(most * D), curve[part] = take(most * D);
      taps[part] = take(A.taps * D), inverse[part] = take(most);
      if (!backward) continue;
      d_made[part] = take(most * D), d_inputs[part] = take((most + back) * D), later[part] = take(back * D);
      d_taps[part] = take(A.taps * D);
    }
    line = take(D);
    if (!backward) return;
    matrices(grad);
    slopes_of.resize(L);
    for (long l = 0; l < L; l++) {
      dA[l] = take(in[l] * S), dx[l] = take(in[l] * S);
      for (V** x : {&dD[l], &extra[l], &dh[l], &dz[l]}) *x = take(out[l] * S);
    }
    dy = take(D * S), derror = take(D * S), dnorm = take(2 * D);
  }
  // Tokens for which the products of a chunk are computed: 1, 2, 4 or 8.
  static long padded(long tokens) { return tokens > 4 ? 8 : tokens > 2 ? 4 : tokens; }
  long slots() const { return padded(C); }
  const Coefficients& decay(long l) const { return decays[std::min(l, gates - 1)]; }

  // ---- moving data between problems and lanes ----
  static V inverse_root(V x) {
    V r;
    for (long i = 0; i < VL; i++) r[i] = 1 / std::sqrt(x[i]);
    return r;
  }
  static V least(V x, T most) { return x < most ? x : V{} + most; }
  // to[p * step] holds entry p of all lanes; lane i's entries begin at from + at(i).
  template <typename F>
  void gather(long width, const T* from, F at, V* to, long step) const {
    const T* lanes[VL];
    for (long i = 0; i < VL; i++) lanes[i] = from + at(i);
    long p = 0;
#ifdef TITANS_SHUFFLES
    typedef T Loose __attribute__((vector_size(TITANS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
    for (; p + VL <= width; p += VL) {
      V block[VL];
#pragma GCC unroll 16
      for (long i = 0; i < VL; i++) block[i] = *(const Loose*)(lanes[i] + p);
      exchange_all<T, 1>(block);
#pragma GCC unroll 16
      for (long j = 0; j < VL; j++) to[(p + j) * step] = block[j];
    }
#endif
    for (; p < width; p++)
      for (long i = 0; i < VL; i++) ((T*)(to + p * step))[i] = lanes[i][p];
  }
  // The inverse. Lanes beyond `count` repeat the last problem and are not stored.
  template <bool ADD = false, typename F>
  void scatter(long width, const V* from, long step, T* to, F at) const {
    T* lanes[VL];
    for (long i = 0; i < VL; i++) lanes[i] = to + at(i);
    long p = 0;
#ifdef TITANS_SHUFFLES
    typedef T Loose __attribute__((vector_size(TITANS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
    for (; p + VL <= width; p += VL) {
      V block[VL];
#pragma GCC unroll 16
      for (long j = 0; j < VL; j++) block[j] = from[(p + j) * step];
      exchange_all<T, 1>(block);
      for (long i = 0; i < count; i++)
        if (ADD)
          *(Loose*)(lanes[i] + p) += block[i];
        else
          *(Loose*)(lanes[i] + p) = block[i];
    }
#endif
    for (; p < width; p++)
      for (long i = 0; i < count; i++) {
        T x = ((const T*)(from + p * step))[i];
        lanes[i][p] = ADD ? lanes[i][p] + x : x;
      }
  }
  template <int S>
  void tokens_in(const void* from, int part, long first, long tokens, V* to) const {  // [D, S]
    for (long t = 0; t < S; t++)
      if (t < tokens && !from)
        for (long p = 0; p < D; p++) to[p * S + t] = made[part][(first + t - block_first) * D + p];
      else if (t < tokens)
        gather(D, (const T*)from, [&](long i) { return (row[i] + (first + t) * A.heads) * D; }, to + t, S);
      else
        for (long p = 0; p < D; p++) to[p * S + t] = V{};
  }
  template <int S>
  void tokens_out(const V* from, long first, long tokens, void* to, int part = 0) const {
    for (long t = 0; t < tokens; t++)
      if (!to)
        for (long p = 0; p < D; p++) d_made[part][(first + t - block_first) * D + p] = from[p * S + t];
      else
        scatter(D, from + t, S, (T*)to, [&](long i) { return (row[i] + (first + t) * A.heads) * D; });
  }
  // `rows`: problems that the tensor holds; where it holds one row of heads, all rows of the batch share that
  void matrices_in(void* const* from, long block, long rows, const Matrices& to) const {
    for (long l = 0; l < L; l++) {
      long size = 2 * in[l] * out[l];
      gather(size, (const T*)from[l] + block * rows * size, [&](long i) { return problem[i] % rows * size; }, to.m[l], 1);
    }
  }
  void matrices_out(const Matrices& from, long block, void* const* to) const {
    for (long l = 0; l < L; l++) {
      long size = 2 * in[l] * out[l], all = A.batch * A.heads;
      scatter(size, from.m[l], 1, (T*)to[l] + block * all * size, [&](long i) { return problem[i] * size; });
    }
  }
  T* gate(void* base, long which, long g, long t) const {
    return (T*)base + (which * gates + g) * A.batch * A.tokens * A.heads + t * A.heads;
  }
  V gate_in(long which, long g, long t) const {
    V x;
    const T* from = gate(A.gates, which, g, t);
    for (long i = 0; i < VL; i++) x[i] = from[row[i]];
    return x;
  }
  void gate_out(long which, long g, long t, V x) const {
    T* to = gate(A.d_gates, which, g, t);
    for (long i = 0; i < count; i++) to[row[i]] = x[i];
  }
  void begin(long index) {
    long all = A.batch * A.heads, first = index * VL;
    count = std::min(VL, all - first);
    for (long i = 0; i < VL; i++) {
      long r = problem[i] = first + std::min(i, count - 1);
      token0[i] = r / A.heads * A.tokens, head[i] = r % A.heads;
      row[i] = token0[i] * A.heads + head[i];
    }
    for (int part = 0; part < PARTS && A.raw; part++)
      for (long j = 0; j <= back; j++)
        gather(D, (const T*)A.convs[part] + j * A.heads * D, [&](long i) { return head[i] * D; }, taps[part] + j * D, 1);
    if (!A.scale) return;
    auto place = [&](long i) { return head[i] * D; };
    gather(D, (const T*)A.scale, place, weight, 1), gather(D, (const T*)A.shift, place, bias, 1);
  }

  // ---- q, k and v from the projections ----
  auto column(int part, long t) const {
    return [this, part, t](long i) { return (token0[i] + t) * A.stride + (part * A.heads + head[i]) * D; };
  }
  // Makes q, k and v of the block of tokens that begins at `first`; with SLOPE their slopes too.
  template <bool SLOPE>
  void make(long first) {
    if (!A.raw) return;
    block_first = first;
    long end = std::min(first + block * C, A.tokens);
    for (int part = 0; part < PARTS; part++) {
      for (long t = first - back; t < end; t++) {
        V* x = inputs[part] + (t - first + back) * D;
        if (t < 0)
          std::fill_n(x, D, V{});
        else
          gather(D, (const T*)A.raw, column(part, t), x, 1);
      }
      for (long t = 0; t < end - first; t++) {
        const V *x = inputs[part] + (t + back) * D, *w = taps[part];
        V *y = made[part] + t * D, sum{};
        for (long p = 0; p < D; p++) {
          V c = w[p] * x[p];
          for (long j = 1; j <= back; j++) c += w[j * D + p] * x[p - j * D];
          line[p] = c;
        }
        const T* __restrict c = (const T*)line;
        T *__restrict v = (T*)y, *__restrict s = (T*)(curve[part] + t * D);
        for (long i = 0; i < D * VL; i++) {
          T g = sigmoid(c[i]);
          v[i] = c[i] * g;
          if (SLOPE) s[i] = g + v[i] * (1 - g);
        }
        if (part >= UNIT) continue;
        for (long p = 0; p < D; p++) sum += y[p] * y[p];
        V r = inverse[part][t] = inverse_root(sum > T(1e-24) ? sum : V{} + T(1e-24));
        for (long p = 0; p < D; p++) y[p] *= r;
      }
    }
  }
  // The adjoint: from d_made to the gradients of the inputs, and of the taps.
  void unmake() {
    if (!A.raw) return;
    long count = std::min(block * C, A.tokens - block_first);
    for (int part = 0; part < PARTS; part++) {
      V* into = d_inputs[part];
      std::fill_n(into, (count + back) * D, V{});
      for (long i = 0; i < back * D; i++) into[count * D + i] = later[part][i];
      for (long t = 0; t < count; t++) {
        const V *g = d_made[part] + t * D, *u = made[part] + t * D, *s = curve[part] + t * D, *w = taps[part];
        const V* x = inputs[part] + (t + back) * D;
        V *dx = into + (t + back) * D, *dw = d_taps[part], along{}, r = inverse[part][t];
        if (part < UNIT)
          for (long p = 0; p < D; p++) along += g[p] * u[p];
        for (long p = 0; p < D; p++) {
          V d = (part < UNIT ? r * (g[p] - u[p] * along) : g[p]) * s[p];
          for (long j = 0; j <= back; j++) dx[p - j * D] += w[j * D + p] * d, dw[j * D + p] += d * x[p - j * D];
        }
      }
      for (long t = 0; t < count; t++) scatter(D, into + (t + back) * D, 1, (T*)A.d_raw, column(part, block_first + t));
      std::copy_n(into, back * D, later[part]);
    }
  }

  // ---- products; x and out are [width, S] ----
  // out[j] (op)= sum_p x[p] m[p, j] (+ y[p] s[p, j] with BOTH); m and s have the strides `down` and `along`.
  template <int S, bool BOTH, int WIDE>
  static inline __attribute__((always_inline)) void product_tile(long rows, const V* x, const V* m, const V* y, const V* s,
                                                              long down, long along, V* out, bool add) {
    V sum[WIDE][S];
    for (int j = 0; j < WIDE; j++)
      for (int t = 0; t < S; t++) sum[j][t] = add ? out[j * S + t] : V{};
    for (long p = 0; p < rows; p++, x += S, m += down) {
      V u[S];
      for (int t = 0; t < S; t++) u[t] = x[t];
      for (int j = 0; j < WIDE; j++) {
        V c = m[j * along];
        for (int t = 0; t < S; t++) sum[j][t] += u[t] * c;
      }
      if constexpr (BOTH) {
        for (int t = 0; t < S; t++) u[t] = y[t];
        for (int j = 0; j < WIDE; j++) {
          V c = s[j * along];
          for (int t = 0; t < S; t++) sum[j][t] += u[t] * c;
        }
        y += S, s += down;
      }
    }
    for (int j = 0; j < WIDE; j++)
      for (int t = 0; t < S; t++) out[j * S + t] = sum[j][t];
  }
  template <int S, bool BOTH>
  static void product_of(long rows, long columns, const V* x, const V* m, const V* y, const V* s, long down, long along,
                         V* out, bool add) {
    constexpr int WIDE = SUMS / S > 4 ? 4 : SUMS / S;
    long j = 0;
    for (; j + WIDE <= columns; j += WIDE)
      product_tile<S, BOTH, WIDE>(rows, x, m + j * along, y, s + j * along, down, along, out + j * S, add);
    for (; j < columns; j++) product_tile<S, BOTH, 1>(rows, x, m + j * along, y, s + j * along, down, along, out + j * S, add);
  }
  template <int S>
  static void product(long rows, long columns, const V* x, const V* m, long down, long along, V* out, bool add = false) {
    product_of<S, false>(rows, columns, x, m, x, m, down, along, out, add);
  }
  // For each row i: p = sum_o x[o] m[i, o] and q the same with s. into[i] (op)= f p + g q; dp += y[i] p, dq += y[i] q.
  template <int S, int TALL>
  static inline __attribute__((always_inline)) void pair_tile(long columns, const V* x, const V* m, const V* s, const V* f,
                                                           const V* g, const V* y, V* dp, V* dq, T sign, V* into) {
    V p[TALL][S], q[TALL][S];
    for (int i = 0; i < TALL; i++)
      for (int t = 0; t < S; t++) p[i][t] = q[i][t] = V{};
    for (long o = 0; o < columns; o++) {
      V u[S];
      for (int t = 0; t < S; t++) u[t] = x[o * S + t];
      for (int i = 0; i < TALL; i++) {
        V a = m[i * columns + o], b = s[i * columns + o];
        for (int t = 0; t < S; t++) p[i][t] += u[t] * a, q[i][t] += u[t] * b;
      }
    }
    for (int i = 0; i < TALL; i++)
      for (int t = 0; t < S; t++) {
        into[i * S + t] += sign * (f[t] * p[i][t] + g[t] * q[i][t]);
        dp[t] += sign * y[i * S + t] * p[i][t], dq[t] += sign * y[i * S + t] * q[i][t];
      }
  }
  template <int S>
  static void pair(long rows, long columns, const V* x, const V* m, const V* s, const V* f, const V* g, const V* y, V* dp,
                   V* dq, T sign, V* into) {
    constexpr int TALL = SUMS / (2 * S) > 4 ? 4 : SUMS / (2 * S) ? SUMS / (2 * S) : 1;
    long i = 0;
    for (; i + TALL <= rows; i += TALL)
      pair_tile<S, TALL>(columns, x, m + i * columns, s + i * columns, f, g, y + i * S, dp, dq, sign, into + i * S);
    for (; i < rows; i++)
      pair_tile<S, 1>(columns, x, m + i * columns, s + i * columns, f, g, y + i * S, dp, dq, sign, into + i * S);
  }
  // to[t][i] = <a_i, x_t> for i <= t
  template <int S>
  static void scores(long width, const V* a, const V* x, V (*to)[LANE_TOKENS]) {
    V sum[S][S];
    for (int t = 0; t < S; t++)
      for (int i = 0; i <= t; i++) sum[t][i] = V{};
    for (long p = 0; p < width; p++, a += S, x += S)
      for (int t = 0; t < S; t++)
        for (int i = 0; i <= t; i++) sum[t][i] += x[t] * a[i];
    for (int t = 0; t < S; t++)
      for (int i = 0; i <= t; i++) to[t][i] = sum[t][i];
  }
  // z[p][t] -= sum_{i <= t} f[t][i] d[p][i]
  template <int S>
  static void minus_earlier(long width, const V (*f)[LANE_TOKENS], const V* d, V* z) {
    for (long p = 0; p < width; p++, d += S, z += S)
      for (int t = 0; t < S; t++) {
        V sum = z[t];
        for (int i = 0; i <= t; i++) sum -= f[t][i] * d[i];
        z[t] = sum;
      }
  }
  // d[p][i] -= sum_{t >= i} f[t][i] z[p][t]
  template <int S>
  static void minus_later(long width, const V (*f)[LANE_TOKENS], const V* z, V* d) {
    for (long p = 0; p < width; p++, d += S, z += S)
      for (int i = 0; i < S; i++) {
        V sum = d[i];
        for (int t = i; t < S; t++) sum -= f[t][i] * z[t];
        d[i] = sum;
      }
  }
  template <int S>
  static void times(long width, const V* x, const V* f, V* to) {  // to[p][t] = f[t] x[p][t]
    for (long p = 0; p < width; p++, x += S, to += S)
      for (int t = 0; t < S; t++) to[t] = f[t] * x[t];
  }

  // ---- coefficients ----
  template <int S>
  void coefficients(long first, long tokens) {
    for (long g = 0; g < gates; g++) {
      Coefficients& c = decays[g];
      for (long t = 0; t < S; t++) {
        bool real = t < tokens;
        c.theta[t] = real ? gate_in(0, g, first + t) : V{};
        c.eta[t] = real ? gate_in(1, g, first + t) : V{} + T(1);
        c.keep[t] = real ? T(1) - gate_in(2, g, first + t) : V{} + T(1);
        V* e = c.carried[t];
        V* m = c.combined[t];
        for (long i = 0; i <= t; i++) {
          e[i] = t ? c.eta[t] * c.carried[t - 1][i] : c.eta[t];
          m[i] = (t ? c.keep[t] * c.combined[t - 1][i] : V{}) + (real ? e[i] : V{});
        }
        e[t + 1] = V{} + T(1), m[t + 1] = V{} + T(real);
        c.start[t] = t ? c.keep[t] * c.start[t - 1] : c.keep[t];
        c.lag[t] = m[0];
        for (long i = 0; i <= t; i++) c.mix[t][i] = m[i + 1] * c.theta[i];
      }
      for (long i = 0; i < S; i++) c.w[i] = c.mix[S - 1][i], c.w2[i] = c.carried[S - 1][i + 1] * c.theta[i];
      c.b = c.start[S - 1], c.f = c.lag[S - 1], c.e = c.carried[S - 1][0];
    }
  }
  // The adjoint. If the layers share their gates, their gradients are added.
  template <int S>
  void gate_gradients(long first, long tokens) {
    for (long g = 0; g < gates; g++) {
      const Coefficients& c = decays[g];
      Slopes& d = slopes_of[g];
      for (long l = g; l < (gates == 1 ? L : g + 1); l++) {
        Slopes& x = slopes_of[l];
        for (long i = 0; i < S; i++) x.mix[S - 1][i] += x.w[i];
        x.start[S - 1] += x.b, x.lag[S - 1] += x.f;
        if (l == g) continue;
        for (long t = 0; t < S; t++) {
          d.start[t] += x.start[t], d.lag[t] += x.lag[t], d.w2[t] += x.w2[t];
          for (long i = 0; i <= t; i++) d.mix[t][i] += x.mix[t][i];
        }
        d.e += x.e;
      }
      V lg[S + 1], le[S + 1], dtheta[S], lamb{};
      lg[0] = V{}, le[0] = d.e;
      for (long i = 0; i < S; i++) {
        lg[i + 1] = V{}, le[i + 1] = d.w2[i] * c.theta[i];
        dtheta[i] = d.w2[i] * c.carried[S - 1][i + 1];
      }
      for (long t = S - 1; t >= 0; t--) {
        bool real = t < tokens, end = t + 1 == S;
        V next = end ? V{} : c.keep[t + 1], carry = end ? V{} + T(1) : c.eta[t + 1];
        lamb = d.start[t] + next * lamb;
        lg[0] = d.lag[t] + next * lg[0];
        for (long i = 0; i <= t; i++) {
          lg[i + 1] = d.mix[t][i] * c.theta[i] + next * lg[i + 1];
          dtheta[i] += d.mix[t][i] * c.combined[t][i + 1];
        }
        for (long i = 0; i <= t + 1; i++) le[i] = (real ? lg[i] : V{}) + carry * le[i];
        V dkeep = t ? lamb * c.start[t - 1] : lamb, deta = t ? V{} : le[0];
        for (long i = 0; t && i <= t; i++) dkeep += lg[i] * c.combined[t - 1][i], deta += le[i] * c.carried[t - 1][i];
        if (real) gate_out(1, g, first + t, deta), gate_out(2, g, first + t, -dkeep);
      }
      for (long t = 0; t < tokens; t++) gate_out(0, g, first + t, dtheta[t]);
    }
  }

  // ---- LayerNorm ----
  template <int S>
  void normalize(const V* z, V* u, V* rs) const {
    V mean[S], var[S];
    for (int t = 0; t < S; t++) mean[t] = var[t] = V{};
    for (long p = 0; p < D; p++)
      for (int t = 0; t < S; t++) mean[t] += z[p * S + t];
    for (int t = 0; t < S; t++) mean[t] /= (T)D;
    for (long p = 0; p < D; p++)
      for (int t = 0; t < S; t++) {
        V x = u[p * S + t] = z[p * S + t] - mean[t];
        var[t] += x * x;
      }
    for (int t = 0; t < S; t++) rs[t] = inverse_root(var[t] / (T)D + (T)NORM_EPS);
    times<S>(D, u, rs, u);
  }
  // into (op)= (dLayerNorm(z)/dz)^T x
  template <int S>
  void normalize_backward(const V* x, const V* u, const V* rs, V* into, bool add) const {
    V mean[S], along[S];
    for (int t = 0; t < S; t++) mean[t] = along[t] = V{};
    for (long p = 0; p < D; p++)
      for (int t = 0; t < S; t++) mean[t] += x[p * S + t], along[t] += x[p * S + t] * u[p * S + t];
    for (int t = 0; t < S; t++) mean[t] /= (T)D, along[t] /= (T)D;
    for (long p = 0; p < D; p++)
      for (int t = 0; t < S; t++) {
        long at = p * S + t;
        V value = rs[t] * (x[at] - mean[t] - u[at] * along[t]);
        into[at] = add ? into[at] + value : value;
      }
  }
  template <int S>
  void clip_factor(const V* d, V* factor, V* inverse) const {
    V sum[S];
    for (int t = 0; t < S; t++) sum[t] = V{} + T(1e-38);
    for (long p = 0; p < D; p++)
      for (int t = 0; t < S; t++) sum[t] += d[p * S + t] * d[p * S + t];
    for (int t = 0; t < S; t++) inverse[t] = inverse_root(sum[t]), factor[t] = (T)A.grad_clip * inverse[t];
  }

  // ---- a chunk ----
  template <int S>
  void slopes(long first, long tokens, const Matrices& from, Keys& t) {
    tokens_in<S>(A.k, 1, first, tokens, t.a[0]);
    tokens_in<S>(A.v, 2, first, tokens, v);
    for (long l = 0; l < L; l++) {
      product<S>(in[l], out[l], t.a[l], from.m[l], out[l], 1, t.z[l]);
      if (l < L - 1) gelu_and_slope(out[l] * S * VL, (T*)t.z[l], (T*)t.a[l + 1], (T*)t.slope[l]);
    }
    V* d = t.d[L - 1];
    const V* x = t.z[L - 1];
    if (A.scale) normalize<S>(x, t.unit, t.rstd), x = t.unit;
    for (long p = 0; p < D; p++)
      for (int c = 0; c < S; c++) {
        long at = p * S + c;
        V error = (A.scale ? x[at] * weight[p] + bias[p] : x[at]) - v[at];
        if (A.residual) error += t.a[0][at];
        t.error[at] = error;
        d[at] = T(2) * (A.scale ? error * weight[p] : error);
      }
    if (A.scale) normalize_backward<S>(d, t.unit, t.rstd, d, false);
    if (A.grad_clip > 0) {
      V factor[S], inverse[S];
      std::copy_n(d, D * S, t.raw);
      clip_factor<S>(d, factor, inverse);
      for (int c = 0; c < S; c++) factor[c] = least(factor[c], T(1));
      times<S>(D, d, factor, d);
    }
    for (long l = L - 2; l >= 0; l--) {
      product<S>(out[l + 1], in[l + 1], t.d[l + 1], from.m[l + 1], 1, out[l + 1], t.back[l]);
      for (long i = 0; i < out[l] * S; i++) t.d[l][i] = t.back[l][i] * t.slope[l][i];
    }
  }
  template <int S>
  void advance(const Keys& t, const Matrices& from, const Matrices& to) {
    for (long l = 0; l < L; l++) {
      const Coefficients& c = decay(l);
      const V *a = t.a[l], *d = t.d[l], b = c.b, f = c.f, e = c.e;
      const V *m = from.m[l], *s = from.s[l];
      V *m1 = to.m[l], *s1 = to.s[l];
      for (long i = 0; i < in[l]; i++, a += S) {
        V x[S], y[S];
        for (int k = 0; k < S; k++) x[k] = c.w[k] * a[k], y[k] = c.w2[k] * a[k];
        for (long o = 0; o < out[l]; o++, m++, s++, m1++, s1++) {
          V p = b * *m + f * *s, q = e * *s;
          for (int k = 0; k < S; k++) p -= x[k] * d[o * S + k], q -= y[k] * d[o * S + k];
          *m1 = p, *s1 = q;
        }
      }
    }
  }
  template <int S>
  void read(long first, long tokens, const Keys& t, const Matrices& from) {
    tokens_in<S>(A.q, 0, first, tokens, X[0]);
    for (long l = 0; l < L; l++) {
      const Coefficients& c = decay(l);
      V f[LANE_TOKENS][LANE_TOKENS];
      scores<S>(in[l], t.a[l], X[l], asked[l]);
      for (int k = 0; k < S; k++)
        for (int i = 0; i <= k; i++) f[k][i] = c.mix[k][i] * asked[l][k][i];
      times<S>(in[l], X[l], c.start, one), times<S>(in[l], X[l], c.lag, two);
      product_of<S, true>(in[l], out[l], one, from.m[l], two, from.s[l], out[l], 1, Z, false);
      minus_earlier<S>(out[l], f, t.d[l], Z);
      if (l < L - 1) gelu_and_slope(out[l] * S * VL, (T*)Z, (T*)X[l + 1], (T*)Xs[l]);
    }
  }
  template <int S>
  void forward_chunk(long first, long tokens) {
    Keys& t = keys[0];
    coefficients<S>(first, tokens);
    slopes<S>(first, tokens, now, t);
    V loss[S];
    for (int c = 0; c < S; c++) loss[c] = V{};
    for (long p = 0; p < D; p++)
      for (int c = 0; c < S; c++) loss[c] += t.error[p * S + c] * t.error[p * S + c];
    for (long c = 0; c < tokens; c++)
      for (long i = 0; i < count; i++) ((T*)A.loss)[row[i] + (first + c) * A.heads] = loss[c][i];
    read<S>(first, tokens, t, now);
    if (A.scale) {
      normalize<S>(Z, unit, rstd);
      for (long p = 0; p < D; p++)
        for (int c = 0; c < S; c++) Z[p * S + c] = unit[p * S + c] * weight[p] + bias[p];
    }
    if (A.residual)
      for (long i = 0; i < D * S; i++) Z[i] += X[0][i];
    tokens_out<S>(Z, first, tokens, A.y);
    advance<S>(t, now, now);
  }
  // Adjoint of the end of `slopes`: from dD of the last layer to dz, the gradient of z, and derror.
  template <int S>
  void last_layer(const Keys& t) {
    V *last = dD[L - 1], *to = dz[L - 1];
    if (A.grad_clip > 0) {
      V factor[S], inverse[S], along[S];
      clip_factor<S>(t.raw, factor, inverse);
      for (int c = 0; c < S; c++) along[c] = V{};
      for (long p = 0; p < D; p++)
        for (int c = 0; c < S; c++) along[c] += t.raw[p * S + c] * inverse[c] * last[p * S + c];
      for (long p = 0; p < D; p++)
        for (int c = 0; c < S; c++) {
          long at = p * S + c;
          V clipped = factor[c] * (last[at] - t.raw[at] * inverse[c] * along[c]);
          last[at] = factor[c] < T(1) ? clipped : last[at];
        }
    }
    if (!A.scale) {
      for (long i = 0; i < D * S; i++) to[i] = derror[i] = T(2) * last[i];
      return;
    }
    normalize_backward<S>(last, t.unit, t.rstd, one, false);  // gradient of 2 error weight
    V along[S], mean[S], second[S], value[S], t1[S], t2[S];
    for (int c = 0; c < S; c++) along[c] = mean[c] = second[c] = value[c] = t1[c] = t2[c] = V{};
    for (long p = 0; p < D; p++) {
      V sum{}, bias_sum{};
      for (int c = 0; c < S; c++) {
        long at = p * S + c;
        V g = T(2) * t.error[at] * weight[p];
        derror[at] = T(2) * one[at] * weight[p];
        sum += T(2) * one[at] * t.error[at] + derror[at] * t.unit[at];
        bias_sum += derror[at];
        along[c] += last[at] * t.unit[at], mean[c] += g, second[c] += g * t.unit[at], value[c] += last[at] * g;
        t1[c] += last[at];
      }
      dnorm[p] += sum, dnorm[D + p] += bias_sum;
    }
    for (int c = 0; c < S; c++) {
      mean[c] /= (T)D, second[c] /= (T)D;
      value[c] -= mean[c] * t1[c] + second[c] * along[c];
      t1[c] = V{};
    }
    for (long p = 0; p < D; p++)
      for (int c = 0; c < S; c++) {
        long at = p * S + c;
        V x = -t.rstd[c] * (last[at] * second[c] + T(2) * t.error[at] * weight[p] * (along[c] / (T)D));
        to[at] = x, t1[c] += x, t2[c] += x * t.unit[at];
        one[at] = derror[at] * weight[p];
      }
    for (int c = 0; c < S; c++) t1[c] /= (T)D, t2[c] /= (T)D, value[c] /= (T)D;
    for (long p = 0; p < D; p++)
      for (int c = 0; c < S; c++) {
        long at = p * S + c;
        V u = t.unit[at], rs = t.rstd[c];
        to[at] = rs * (to[at] - t1[c] - u * t2[c]) - rs * rs * u * value[c];
      }
    normalize_backward<S>(one, t.unit, t.rstd, to, true);
  }
  template <int S, bool LOWER>
  static inline __attribute__((always_inline)) V by_keys(const V* a, const V* by_key, const V* h, const V* d) {
    V sum{};
    for (int t = 0; t < S; t++) sum += a[t] * by_key[t];
    if constexpr (LOWER)
      for (int t = 0; t < S; t++) sum += h[t] * d[t];
    return sum;
  }
  // Gradient of the state at the chunk's start from that at its end, in place, and the gradients of b, f and e: outer
  // products of the read (X with dz, scaled by start and lag), and of the keys' two passes (a with dz, dh with d).
  template <int S, bool LOWER>
  void retreat(long l, const V* x, const V* by_read, const V* a, const V* by_key, const V* h, const V* d,
               const Matrices& from, Slopes& slope) {
    const Coefficients& c = decay(l);
    const V *m = from.m[l], *s = from.s[l], b = c.b, f = c.f, e = c.e;
    V *dm = grad.m[l], *ds = grad.s[l], db{}, df{}, de{};
    constexpr bool TWICE = 4 * S + 8 > REGISTERS;  // registers do not hold all factors of a row at once
    for (long i = 0; i < in[l]; i++, x += S, a += S, h += S) {
      V begun[S], late[S];
      for (int t = 0; t < S; t++) begun[t] = c.start[t] * x[t], late[t] = c.lag[t] * x[t];
      for (long o = 0; o < out[l]; o++, m++, s++, dm++, ds++) {
        V p = *dm, q = *ds;
        db += *m * p, df += *s * p, de += *s * q;
        q = f * p + e * q, p = b * p;
        for (int t = 0; t < S; t++) {
          V z = by_read[o * S + t];
          p += begun[t] * z, q += late[t] * z;
        }
        if constexpr (!TWICE) p += by_keys<S, LOWER>(a, by_key + o * S, h, d + o * S);
        *dm = p, *ds = q;
      }
      if constexpr (TWICE)
        for (long o = 0; o < out[l]; o++) dm[o - out[l]] += by_keys<S, LOWER>(a, by_key + o * S, h, d + o * S);
    }
    slope.b = db, slope.f = df, slope.e = de;
  }
  template <int S>
  void backward_chunk(long first, long tokens, Keys& t, const Matrices& from) {
    coefficients<S>(first, tokens);
    read<S>(first, tokens, t, from);
    tokens_in<S>(A.dy, 0, first, tokens, dy);
    V* read_dz[MAX_LAYERS];
    V* top = two;  // gradient of the read's last product
    if (A.scale) {
      normalize<S>(Z, unit, rstd);
      for (long p = 0; p < D; p++)
        for (int c = 0; c < S; c++) {
          long at = p * S + c;
          dnorm[p] += dy[at] * unit[at], dnorm[D + p] += dy[at];
          one[at] = dy[at] * weight[p];
        }
      normalize_backward<S>(one, unit, rstd, top, false);
    } else {
      std::copy_n(dy, D * S, top);
    }
    // through the read and the chunk's end; extra holds the gradients of the read's products until `retreat`
    for (long l = L - 1; l >= 0; l--) {
      const Coefficients& c = decay(l);
      Slopes& slope = slopes_of[l];
      V *z = read_dz[l] = Xs[l], f[LANE_TOKENS][LANE_TOKENS], g[LANE_TOKENS][LANE_TOKENS];
      if (l == L - 1)
        std::copy_n(top, out[l] * S, z);
      else
        for (long i = 0; i < out[l] * S; i++) z[i] = dx[l + 1][i] * z[i];
      scores<S>(out[l], t.d[l], z, f);
      for (int k = 0; k < S; k++) {
        slope.start[k] = slope.lag[k] = slope.w[k] = slope.w2[k] = V{};
        for (int i = 0; i <= k; i++) {
          slope.mix[k][i] = -f[k][i] * asked[l][k][i];
          g[k][i] = c.mix[k][i] * asked[l][k][i];
          f[k][i] *= c.mix[k][i];
        }
      }
      std::fill_n(dA[l], in[l] * S, V{}), std::fill_n(dx[l], in[l] * S, V{});
      times<S>(in[l], t.a[l], c.w, one), times<S>(in[l], t.a[l], c.w2, two);
      product_of<S, true>(in[l], out[l], one, grad.m[l], two, grad.s[l], out[l], 1, dD[l], false);
      for (long i = 0; i < out[l] * S; i++) dD[l][i] = -dD[l][i];
      minus_later<S>(out[l], g, z, dD[l]);
      pair<S>(in[l], out[l], t.d[l], grad.m[l], grad.s[l], c.w, c.w2, t.a[l], slope.w, slope.w2, T(-1), dA[l]);
      minus_later<S>(in[l], f, X[l], dA[l]);
      pair<S>(in[l], out[l], z, from.m[l], from.s[l], c.start, c.lag, X[l], slope.start, slope.lag, T(1), dx[l]);
      minus_earlier<S>(in[l], f, t.a[l], dx[l]);
    }
    if (A.residual)
      for (long i = 0; i < D * S; i++) dx[0][i] += dy[i];
    tokens_out<S>(dx[0], first, tokens, A.dq, 0);
    // through the keys' gradient
    for (long l = 0; l < L - 1; l++) {
      const T *z = (const T*)t.z[l], *back = (const T*)t.back[l], *d = (const T*)dD[l], *slope = (const T*)t.slope[l];
      T *__restrict more = (T*)extra[l], *__restrict h = (T*)dh[l];
      for (long i = 0; i < out[l] * S * VL; i++) more[i] = d[i] * back[i] * gelu_curve(z[i]), h[i] = d[i] * slope[i];
      product<S>(in[l + 1], out[l + 1], dh[l], from.m[l + 1], out[l + 1], 1, dD[l + 1], true);
    }
    last_layer<S>(t);
    for (long l = L - 1; l >= 0; l--) {
      product<S>(out[l], in[l], dz[l], from.m[l], 1, out[l], dA[l], true);
      if (l > 0)
        for (long i = 0; i < in[l] * S; i++) dz[l - 1][i] = dA[l][i] * t.slope[l - 1][i] + extra[l - 1][i];
      if (l > 0)
        retreat<S, true>(l, X[l], read_dz[l], t.a[l], dz[l], dh[l - 1], t.d[l], from, slopes_of[l]);
      else
        retreat<S, false>(l, X[l], read_dz[l], t.a[l], dz[l], t.a[l], t.d[l], from, slopes_of[l]);
    }
    gate_gradients<S>(first, tokens);
    if (A.residual)
      for (long i = 0; i < D * S; i++) dA[0][i] += derror[i];
    tokens_out<S>(dA[0], first, tokens, A.dk, 1);
    for (long i = 0; i < D * S; i++) derror[i] = -derror[i];
    tokens_out<S>(derror, first, tokens, A.dv, 2);
  }

  // Calls fn(size, first, tokens) for chunk n, where size is the number of tokens of its products.
  template <typename F>
  void chunk(long n, F fn) {
    long first = n * C, tokens = std::min(C, A.tokens - first), size = padded(tokens);
    if (size == 1)
      fn(Size<1>{}, first, tokens);
    else if (size == 2)
      fn(Size<2>{}, first, tokens);
    else if (size == 4)
      fn(Size<4>{}, first, tokens);
    else
      fn(Size<8>{}, first, tokens);
  }
  void weights_out(void* const* to) const {
    for (long l = 0; l < L; l++) {
      long size = in[l] * out[l];
      scatter(size, now.m[l], 1, (T*)to[l], [&](long i) { return problem[i] * size; });
    }
  }
  void forward() {
    matrices_in(A.state, 0, A.starts, now);
    for (long n = 0; n < N; n++) {
      if (n % block == 0) make<false>(n * C);
      if (n % A.group == 0 && A.kept[0]) matrices_out(now, n / A.group, A.kept);
      if (A.running[0] && n == N - 1) weights_out(A.running);
      chunk(n, [&](auto size, long first, long tokens) { forward_chunk<size()>(first, tokens); });
    }
    matrices_out(now, 0, A.end);
  }
  void backward(long slice) {
    for (long l = 0; l < L; l++) std::fill_n(grad.m[l], 2 * in[l] * out[l], V{});
    if (A.d_end[0]) matrices_in(A.d_end, 0, A.batch * A.heads, grad);
    std::fill_n(dnorm, 2 * D, V{});
    for (int part = 0; part < PARTS && A.raw; part++)
      std::fill_n(later[part], back * D, V{}), std::fill_n(d_taps[part], A.taps * D, V{});
    for (long g = (N - 1) / group; g >= 0; g--) {
      long start = g * group, last = std::min(N, start + group);
      make<true>(start * C);
      matrices_in(A.kept, g, N > group ? A.batch * A.heads : A.starts, states[0]);
      for (long n = start; n < last; n++)
        chunk(n, [&](auto size, long first, long tokens) {
          slopes<size()>(first, tokens, states[n - start], keys[n - start]);
          if (n + 1 == last) return;
          coefficients<size()>(first, tokens);
          advance<size()>(keys[n - start], states[n - start], states[n - start + 1]);
        });
      for (long n = last - 1; n >= start; n--) {
        chunk(n, [&](auto size, long first, long tokens) {
          backward_chunk<size()>(first, tokens, keys[n - start], states[n - start]);
        });
        V* const* spare = states[n - start].m;  // the chunk needs its state no longer
        if (A.d_running[0] && n == N - 1)  // the weights at the start of the open chunk
          for (long l = 0; l < L; l++) {
            long width = in[l] * out[l];
            gather(width, (const T*)A.d_running[l], [&](long i) { return problem[i] * width; }, spare[l], 1);
            for (long i = 0; i < width; i++) grad.m[l][i] += spare[l][i];
          }
      }
      unmake();
    }
    for (int part = 0; part < PARTS && A.raw; part++)
      for (long j = 0; j <= back; j++) {
        T* to = (T*)A.d_convs[part] + (slice * A.taps + j) * A.heads * D;
        scatter<true>(D, d_taps[part] + j * D, 1, to, [&](long i) { return head[i] * D; });
      }
    if (A.starts == A.batch * A.heads)
      matrices_out(grad, 0, A.d_state);
    else
      add_start(slice);
    if (A.d_norm) scatter(2 * D, dnorm, 1, (T*)A.d_norm, [&](long i) { return problem[i] * 2 * D; });
  }
  // Adds the lanes' gradients of a start that all rows share to this slice's sum.
  void add_start(long slice) const {
    for (long l = 0; l < L; l++) {
      long size = 2 * in[l] * out[l];
      T* to = (T*)A.d_state[l] + slice * A.heads * size;
      scatter<true>(size, grad.m[l], 1, to, [&](long i) { return head[i] * size; });
    }
  }
};

// A slice is a fixed share of the groups of lanes, so that sums do not depend on the number of threads.
template <typename T>
static int run_lanes(const Arguments& A, bool backward) {
  constexpr long VL = Lanes<T>::VL;
  long groups = (A.batch * A.heads + VL - 1) / VL, slices = std::min(groups, LANE_SLICES);
  return on_threads<T, Lanewise<T>>(A, backward, slices, [&](Lanewise<T>& lanes, long s) {
    for (long i = s * groups / slices; i < (s + 1) * groups / slices; i++) {
      lanes.begin(i);
      backward ? lanes.backward(s) : lanes.forward();
    }
  });
}

#ifndef TITANS_REAL
#define TITANS_REAL float
#endif
extern "C" int titans_chunked(const Arguments* a, int backward) { return run_lanes<TITANS_REAL>(*a, backward); }
extern "C" int64_t titans_arguments_size() { return sizeof(Arguments); }
