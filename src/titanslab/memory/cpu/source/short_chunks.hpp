// Several short chunks, above all chunks of one token, as one block of `C` tokens in the exact low-rank form. The state
// is updated at the block's end; within the block, each chunk computes products of its tokens with the state at the
// block's start and with the earlier tokens. Included by chunked.cpp.
#pragma once

// pm = x m, ps = x s for MR tokens. ldx is the distance of two rows of x, ldp that of two rows of pm and ps.
template <typename T, int MR, int NV>
static inline void tokens_matrix_tile(long rows, long ld, const T* x, long ldx, const T* m, const T* s, T* pm, T* ps,
                                      long ldp) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V a[MR][NV], b[MR][NV];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) a[i][j] = b[i][j] = V{};
  for (long p = 0; p < rows; p++) {
    V u[NV], w[NV];
    for (int j = 0; j < NV; j++) u[j] = *(const V*)(m + p * ld + j * VL), w[j] = *(const V*)(s + p * ld + j * VL);
    for (int i = 0; i < MR; i++) {
      T f = x[i * ldx + p];
      for (int j = 0; j < NV; j++) a[i][j] += f * u[j], b[i][j] += f * w[j];
    }
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) *(V*)(pm + i * ldp + j * VL) = a[i][j], *(V*)(ps + i * ldp + j * VL) = b[i][j];
}

// The same for `count` tokens; m and s are [rows, ld], and ld is a multiple of VL.
template <typename T>
static void tokens_matrix(long count, long rows, long ld, const T* x, long ldx, const T* m, const T* s, T* pm, T* ps) {
  constexpr long VL = Lanes<T>::VL;
#if TITANS_VECTOR_BYTES == 64
  constexpr int TALL = 4;
#else
  constexpr int TALL = 2;
#endif
  for (long i = 0; i < count;) {
    long tall = count - i >= TALL ? TALL : 1, j = 0;
    const T* at = x + i * ldx;
    T *to_m = pm + i * ld, *to_s = ps + i * ld;
    if (tall == TALL) {
      for (; j + 2 * VL <= ld; j += 2 * VL)
        tokens_matrix_tile<T, TALL, 2>(rows, ld, at, ldx, m + j, s + j, to_m + j, to_s + j, ld);
      for (; j < ld; j += VL) tokens_matrix_tile<T, TALL, 1>(rows, ld, at, ldx, m + j, s + j, to_m + j, to_s + j, ld);
    } else {
      for (; j + 4 * VL <= ld; j += 4 * VL)
        tokens_matrix_tile<T, 1, 4>(rows, ld, at, ldx, m + j, s + j, to_m + j, to_s + j, ld);
      for (; j < ld; j += VL) tokens_matrix_tile<T, 1, 1>(rows, ld, at, ldx, m + j, s + j, to_m + j, to_s + j, ld);
    }
    i += tall;
  }
}

template <typename T>
static inline T dot(long n, const T* x, const T* y) {  // n is a multiple of VL
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V a{}, b{};
  long i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    a += *(const V*)(x + i) * *(const V*)(y + i);
    b += *(const V*)(x + i + VL) * *(const V*)(y + i + VL);
  }
  for (; i < n; i += VL) a += *(const V*)(x + i) * *(const V*)(y + i);
  a += b;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long j = 0; j < VL; j++) sum += a[j];
  return sum;
}

template <typename T>
static inline void add_scaled(long n, T factor, const T* x, T* y) {  // y += factor x; n is a multiple of VL
  typedef typename Lanes<T>::V V;
  for (long i = 0; i < n; i += Lanes<T>::VL) *(V*)(y + i) += factor * *(const V*)(x + i);
}

// Returns a vector whose lane r is the sum of the lanes of x[r]; x has VL rows.
template <typename T>
static inline typename Lanes<T>::V lane_sums(typename Lanes<T>::V* x) {
#ifdef TITANS_SHUFFLES
  add_exchanged<T, 1>(x);
  return x[0];
#else
  constexpr long VL = Lanes<T>::VL;
  typename Lanes<T>::V sums;
  for (long r = 0; r < VL; r++) {
    T sum = 0;
    for (long j = 0; j < VL; j++) sum += x[r][j];
    sums[r] = sum;
  }
  return sums;
#endif
}

// out[p] = <m_p, d> for the rows m_p [ld] of m; out has a length that is a multiple of VL.
template <typename T>
static void dots(long rows, long ld, const T* m, const T* d, T* out) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  long p = 0;
  for (; p + VL <= rows; p += VL) {
    V a[VL];
    for (long r = 0; r < VL; r++) a[r] = V{};
    for (long j = 0; j < ld; j += VL) {
      V x = *(const V*)(d + j);
#pragma GCC unroll 16
      for (long r = 0; r < VL; r++) a[r] += *(const V*)(m + (p + r) * ld + j) * x;
    }
    *(V*)(out + p) = lane_sums<T>(a);
  }
  for (; p < rows; p++) out[p] = dot(ld, m + p * ld, d);
}

// pm = d m^T, ps = d s^T for `count` tokens: d [count, ld], pm and ps [count, ldp], with zeros beyond column `rows`.
template <typename T>
static void matrix_tokens(long count, long rows, long ld, const T* m, const T* s, const T* d, T* pm, T* ps, long ldp) {
  for (long i = 0; i < count; i++) {
    dots(rows, ld, m, d + i * ld, pm + i * ldp);
    dots(rows, ld, s, d + i * ld, ps + i * ldp);
    std::fill(pm + i * ldp + rows, pm + (i + 1) * ldp, T(0)), std::fill(ps + i * ldp + rows, ps + (i + 1) * ldp, T(0));
  }
}

// z -= sum_j mix[j] <u_j, x> w_j over the tokens j before `first`, the first token of a chunk; u [C, nu], w [C, nw].
template <typename T>
void Row<T>::subtract_earlier(long first, const Decay<T>& c, const T* u, long nu, const T* w, long nw, const T* x, T* z) {
  dots(first, nu, u, x, seen);
  for (long j = 0; j < first; j++) add_scaled(nw, -c.mixT[j * LC + first - 1] * seen[j], w + j * nw, z);
}

// Computes a, d and the activations for their backward, one row per token, each at the weights of its chunk's start. W
// are the weights at the start of the first chunk.
template <typename T>
void Row<T>::slopes_short(long n, const State<T>& state, T* const* W, Activations<T>& t) {
  TokenRows<T>& o = t.rows;
  const long S = A.inner;
  gather(A.k, n, t.a[0]);
  transpose(D, C, t.a[0], LC, o.a[0], width[0]);
  gather(A.v, n, t.v);
  transpose(D, C, t.v, LC, o.v, width[0]);
  // the first layer's products with the state, for all keys of the block
  const Decay<T>& c0 = decay(0);
  const bool own = W[0] == state.m[0];
  for (long j = 0; j < LC; j++) {
    long first = std::min(j, C - 1) / S * S;
    scores[j] = first ? c0.start[first - 1] : T(own), mixed[j] = first ? c0.lag[first - 1] : T(0);
  }
  for (long i = 0; i < in[0]; i++)
    for (long j = 0; j < LC; j++) {
      bX[i * LC + j] = scores[j] * t.a[0][i * LC + j];
      fX[i * LC + j] = mixed[j] * t.a[0][i * LC + j];
    }
  apply(out[0], in[0], state.m[0], 1, ld[0], bX, Z);
  apply(out[0], in[0], state.s[0], 1, ld[0], fX, Z, ADD);
  transpose(out[0], C, Z, LC, o.z[0], ld[0]);
  if (!own) tokens_matrix(S, in[0], ld[0], o.a[0], width[0], W[0], W[0], o.z[0], ps);
  const T *weight = scale(), *bias = shift();
  for (long first = 0; first < C; first += S) {
    T* const* M = first ? state.m : W;
    for (long l = 0; l < L; l++) {
      const Decay<T>& c = decay(l);
      T *x = o.a[l] + first * width[l], *z = o.z[l] + first * ld[l];
      if (l > 0) {
        T from = first ? c.start[first - 1] : T(1), lag = first ? c.lag[first - 1] : T(0);
        tokens_matrix(S, in[l], ld[l], x, width[l], M[l], state.s[l], pm, ps);
        for (long j = 0; j < S * ld[l]; j++) z[j] = from * pm[j] + lag * ps[j];
      }
      for (long i = 0; i < S && first; i++)
        subtract_earlier(first, c, o.a[l], width[l], o.d[l], ld[l], x + i * width[l], z + i * ld[l]);
      if (l == L - 1) continue;
      T *a = o.a[l + 1] + first * width[l + 1], *slope = o.slope[l] + first * ld[l];
      gelu_and_slope(S * ld[l], z, a, slope);  // width[l + 1] is ld[l]
    }
    for (long i = first; i < first + S; i++) {
      T *z = o.z[L - 1] + i * ld[L - 1], *d = o.d[L - 1] + i * ld[L - 1], *unit = o.unit + i * width[0];
      T *error = o.error + i * width[0], *k = o.a[0] + i * width[0], *v = o.v + i * width[0];
      if (weight) {
        T mean = 0, var = 0;
        for (long j = 0; j < D; j++) mean += z[j];
        mean /= D;
        for (long j = 0; j < D; j++) var += (z[j] - mean) * (z[j] - mean);
        T rs = o.rstd[i] = 1 / std::sqrt(var / D + (T)NORM_EPS);
        for (long j = 0; j < D; j++) unit[j] = (z[j] - mean) * rs;
      }
      for (long j = 0; j < D; j++) {
        T value = (weight ? unit[j] * weight[j] + bias[j] : z[j]) - v[j];
        error[j] = A.residual ? value + k[j] : value;
        d[j] = 2 * error[j] * (weight ? weight[j] : T(1));
      }
      if (weight) norm_transposed(d, unit, o.rstd[i]);
      if (A.grad_clip > 0) {
        T* raw = o.raw + i * width[0];
        std::copy_n(d, D, raw);
        T factor = clip_row(raw);
        for (long j = 0; j < D; j++) d[j] *= std::min(factor, T(1));
      }
    }
    for (long l = L - 2; l >= 0; l--) {
      const Decay<T>& c = decay(l + 1);
      long up = ld[l + 1], w = ld[l];
      T *above = o.d[l + 1] + first * up, *back = o.back[l] + first * w, *slope = o.slope[l] + first * w;
      T from = first ? c.start[first - 1] : T(1), lag = first ? c.lag[first - 1] : T(0);
      matrix_tokens(S, in[l + 1], up, M[l + 1], state.s[l + 1], above, pm, ps, w);
      for (long j = 0; j < S * w; j++) back[j] = from * pm[j] + lag * ps[j];
      for (long i = 0; i < S && first; i++)
        subtract_earlier(first, c, o.d[l + 1], up, o.a[l + 1], width[l + 1], above + i * up, back + i * w);
      T* below = o.d[l] + first * w;
      for (long j = 0; j < S * w; j++) below[j] = back[j] * slope[j];
    }
  }
  for (long l = 0; l < L; l++) {
    if (l) transpose(C, in[l], o.a[l], width[l], t.a[l], LC);
    transpose(C, out[l], o.d[l], ld[l], t.d[l], LC);
  }
  transpose(C, D, o.error, width[0], t.error, LC);
}

// g <- (dLayerNorm(z)/dz)^T g for one token.
template <typename T>
void Row<T>::norm_transposed(T* g, const T* unit, T rs) const {
  T mean = 0, along = 0;
  for (long j = 0; j < D; j++) mean += g[j], along += g[j] * unit[j];
  mean /= D, along /= D;
  for (long j = 0; j < D; j++) g[j] = rs * (g[j] - mean - unit[j] * along);
}

template <typename T>
T Row<T>::clip_row(const T* d) const {
  T sum = 0;
  for (long j = 0; j < D; j++) sum += d[j] * d[j];
  return (T)A.grad_clip / std::sqrt(std::max(sum, T(1e-38)));
}

// Adjoint of the last part of `slopes_short` for one token: from the gradient of d_L to those of z_L and of the error.
template <typename T>
void Row<T>::last_layer_short(long i, Activations<T>& t, T* last, T* dz, T* derror) {
  TokenRows<T>& o = t.rows;
  const T *weight = scale(), *unit = o.unit + i * width[0], *error = o.error + i * width[0];
  if (A.grad_clip > 0) {
    const T* raw = o.raw + i * width[0];
    T factor = clip_row(raw), along = 0;
    if (factor < 1) {
      T inverse = factor / (T)A.grad_clip;
      for (long j = 0; j < D; j++) along += raw[j] * inverse * last[j];
      for (long j = 0; j < D; j++) last[j] = factor * (last[j] - raw[j] * inverse * along);
    }
  }
  if (!weight) {
    for (long j = 0; j < D; j++) dz[j] = derror[j] = 2 * last[j];
    return;
  }
  T rs = o.rstd[i], *w = pieces;
  std::copy_n(last, D, w);
  norm_transposed(w, unit, rs);  // gradient of g = 2 error weight
  for (long j = 0; j < D; j++) {
    derror[j] = 2 * w[j] * weight[j];
    dnorm[j] += 2 * w[j] * error[j] + derror[j] * unit[j];
    dnorm[D + j] += derror[j];
  }
  // gradient in z of <last, (dLayerNorm(z)/dz)^T g>
  T along = 0, gmean = 0, second = 0, value = 0, t1 = 0, t2 = 0;
  for (long j = 0; j < D; j++) {
    T g = 2 * error[j] * weight[j];
    along += last[j] * unit[j], gmean += g, second += g * unit[j];
  }
  gmean /= D, second /= D;
  for (long j = 0; j < D; j++) value += last[j] * (2 * error[j] * weight[j] - gmean);
  value -= second * along;
  for (long j = 0; j < D; j++) {
    T x = -rs * (last[j] * second + 2 * error[j] * weight[j] * (along / D));
    dz[j] = x, t1 += x, t2 += x * unit[j];
  }
  t1 /= D, t2 /= D;
  for (long j = 0; j < D; j++) {
    dz[j] = rs * (dz[j] - t1 - unit[j] * t2) - rs * rs * unit[j] * (value / D);
    w[j] = derror[j] * weight[j];
  }
  norm_transposed(w, unit, rs);
  for (long j = 0; j < D; j++) dz[j] += w[j];
}

// Adjoint of `subtract_earlier`: from dz, the gradient of its z, adds the gradients to du, dw, dx, and that of mix to
// `into`.
template <typename T>
void Row<T>::earlier_backward(long first, const Decay<T>& c, const T* u, long nu, const T* w, long nw, const T* x,
                              const T* dz, T* du, T* dw, T* dx, T* into) {
  dots(first, nw, w, dz, seen);
  dots(first, nu, u, x, asking);
  for (long j = 0; j < first; j++) {
    T mix = c.mixT[j * LC + first - 1], s = seen[j], r = asking[j];
    into[j * LC + first - 1] -= s * r;
    add_scaled(nu, -mix * s, x, du + j * nu);
    add_scaled(nw, -mix * r, dz, dw + j * nw);
    add_scaled(nu, -mix * s, u + j * nu, dx);
  }
}

// Adjoint of `slopes_short`, from the last chunk to the first. dA and dD come with the gradients of a and d through the
// reads and the block's end. The gradient of W, the weights at the start of the first chunk, is added to dW.
template <typename T>
void Row<T>::backward_short(long n, Activations<T>& t, const State<T>& state, T* const* W, T* const* dW) {
  TokenRows<T> &o = t.rows, &g = tokens;
  const long S = A.inner;
  const bool own = W[0] == state.m[0];
  for (long l = 0; l < L; l++) {
    transpose(in[l], C, dA[l], LC, g.a[l], width[l]);
    transpose(out[l], C, dD[l], LC, g.d[l], ld[l]);
  }
  for (long first = C - S; first >= 0; first -= S) {
    T* const* M = first ? state.m : W;
    for (long l = 0; l < L - 1; l++) {
      const Decay<T>& c = decay(l + 1);
      long up = ld[l + 1], w = ld[l];
      const T *d = g.d[l] + first * w, *back = o.back[l] + first * w, *slope = o.slope[l] + first * w;
      const T* z = o.z[l] + first * w;
      T *dh = g.back[l] + first * w, *extra = g.slope[l] + first * w, *above = o.d[l + 1] + first * up;
      T* into = g.d[l + 1] + first * up;
      for (long j = 0; j < S * w; j++) {
        extra[j] = d[j] * back[j] * gelu_curve(z[j]);
        dh[j] = d[j] * slope[j];
      }
      T from = first ? c.start[first - 1] : T(1), lag = first ? c.lag[first - 1] : T(0);
      tokens_matrix(S, in[l + 1], up, dh, w, M[l + 1], state.s[l + 1], pm, ps);
      for (long j = 0; j < S * up; j++) into[j] += from * pm[j] + lag * ps[j];
      if (!first) continue;
      dstart[l + 1][first - 1] += dot(S * up, pm, above);
      dlag[l + 1][first - 1] += dot(S * up, ps, above);
      for (long i = 0; i < S; i++)
        earlier_backward(first, c, o.d[l + 1], up, o.a[l + 1], w, above + i * up, dh + i * w, g.d[l + 1], g.a[l + 1],
                       into + i * up, dmix[l + 1]);
    }
    for (long i = first; i < first + S; i++)
      last_layer_short(i, t, g.d[L - 1] + i * ld[L - 1], g.z[L - 1] + i * ld[L - 1], g.error + i * width[0]);
    for (long l = L - 1; l >= 0; l--) {
      const Decay<T>& c = decay(l);
      long w = width[l], wide = ld[l];
      T *x = o.a[l] + first * w, *dx = g.a[l] + first * w, *dz = g.z[l] + first * wide;
      for (long i = 0; i < S && first; i++)
        earlier_backward(first, c, o.a[l], w, o.d[l], wide, x + i * w, dz + i * wide, g.a[l], g.d[l], dx + i * w, dmix[l]);
      if (l == 0) continue;
      T from = first ? c.start[first - 1] : T(1), lag = first ? c.lag[first - 1] : T(0);
      matrix_tokens(S, in[l], wide, M[l], state.s[l], dz, pm, ps, w);
      for (long j = 0; j < S * w; j++) dx[j] += from * pm[j] + lag * ps[j];
      if (first) {
        dstart[l][first - 1] += dot(S * w, pm, x);
        dlag[l][first - 1] += dot(S * w, ps, x);
      }
      T *below = g.z[l - 1] + first * w, *slope = o.slope[l - 1] + first * w, *extra = g.slope[l - 1] + first * w;
      for (long j = 0; j < S * w; j++) below[j] = dx[j] * slope[j] + extra[j];
    }
  }
  // the first layer's products with the state, for all keys of the block
  transpose(C, out[0], g.z[0], ld[0], dZ, LC);
  transpose(C, in[0], g.a[0], width[0], dA[0], LC);
  const Decay<T>& c0 = decay(0);
  for (int part = 0; part < 2; part++) {
    apply(in[0], out[0], part ? state.s[0] : state.m[0], ld[0], 1, dZ, Z);
    const T* factor = part ? c0.lag : c0.start;
    T* into = part ? dlag[0] : dstart[0];
    for (long j = 0; j < C; j++) {
      long first = j / S * S;
      scores[j] = first ? factor[first - 1] : T(own && !part);
    }
    for (long i = 0; i < in[0]; i++)
      for (long j = 0; j < C; j++) {
        dA[0][i * LC + j] += scores[j] * Z[i * LC + j];
        if (j >= S) into[j / S * S - 1] += t.a[0][i * LC + j] * Z[i * LC + j];
      }
  }
  if (!own) {
    matrix_tokens(S, in[0], ld[0], W[0], W[0], g.z[0], pm, ps, width[0]);
    for (long i = 0; i < in[0]; i++)
      for (long j = 0; j < S; j++) dA[0][i * LC + j] += pm[j * width[0] + i];
  }
  // gradients of the state at the block's start and of W: outer products of both passes
  for (long l = 0; l < L; l++) {
    const Decay<T>& c = decay(l);
    for (int pass = l ? 0 : 1; pass < 2; pass++) {
      const T *rows = pass ? g.z[l] : o.d[l], *left = pass ? o.a[l] : g.back[l - 1];
      for (long i = 0; i < C; i++) {
        long first = i / S * S;
        T from = first ? c.start[first - 1] : T(own), lag = first ? c.lag[first - 1] : T(0);
        for (long j = 0; j < ld[l]; j++) {
          rowsA[i * ld[l] + j] = from * rows[i * ld[l] + j];
          rowsB[i * ld[l] + j] = lag * rows[i * ld[l] + j];
        }
      }
      matmul(in[l], ld[l], C, left, 1, width[l], rowsA, ld[l], grad.m[l], ld[l], ADD);
      matmul(in[l], ld[l], C, left, 1, width[l], rowsB, ld[l], grad.s[l], ld[l], ADD);
      if (!own) matmul(in[l], ld[l], S, left, 1, width[l], rows, ld[l], dW[l], ld[l], ADD);
    }
  }
  transpose(C, D, g.error, width[0], tmp, LC);
}
