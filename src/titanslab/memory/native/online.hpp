// Chunks of one token (the online rule), `C` tokens of them as one block in the exact low-rank form: the state is
// touched at the block's ends, what runs token by token are products of vectors with it. Included by chunked.cpp.
#pragma once

// pm = x m, ps = x s, both [rows, ld] row-major; ld whole vectors.
template <typename T, int NV>
static inline void vector_matrix_block(long rows, long ld, const T* x, const T* m, const T* s, T* pm, T* ps) {
  typedef typename Lanes<T>::V V;
  constexpr long VL = Lanes<T>::VL;
  V a[NV], b[NV];
  for (int j = 0; j < NV; j++) a[j] = b[j] = V{};
  for (long p = 0; p < rows; p++)
    for (int j = 0; j < NV; j++) {
      a[j] += x[p] * *(const V*)(m + p * ld + j * VL);
      b[j] += x[p] * *(const V*)(s + p * ld + j * VL);
    }
  for (int j = 0; j < NV; j++) *(V*)(pm + j * VL) = a[j], *(V*)(ps + j * VL) = b[j];
}

template <typename T>
static void vector_matrix(long rows, long ld, const T* x, const T* m, const T* s, T* pm, T* ps) {
  constexpr long VL = Lanes<T>::VL;
  long j = 0;
  for (; j + 4 * VL <= ld; j += 4 * VL) vector_matrix_block<T, 4>(rows, ld, x, m + j, s + j, pm + j, ps + j);
  for (; j < ld; j += VL) vector_matrix_block<T, 1>(rows, ld, x, m + j, s + j, pm + j, ps + j);
}

template <typename T>
static inline T dot(long n, const T* x, const T* y) {  // n whole vectors
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
static inline void add_scaled(long n, T factor, const T* x, T* y) {  // y += factor x, n whole vectors
  typedef typename Lanes<T>::V V;
  for (long i = 0; i < n; i += Lanes<T>::VL) *(V*)(y + i) += factor * *(const V*)(x + i);
}

// pm = m d, ps = s d
template <typename T>
static void matrix_vector(long rows, long ld, const T* m, const T* s, const T* d, T* pm, T* ps) {
  for (long p = 0; p < rows; p++) {
    pm[p] = dot(ld, m + p * ld, d);
    ps[p] = dot(ld, s + p * ld, d);
  }
}

// The keys' pass: a, d and what their backward needs, as rows of tokens, each at the state right before its token.
template <typename T>
void Row<T>::slopes_online(long n, const State<T>& state, Activations<T>& t) {
  Online<T>& o = t.online;
  gather(A.k, n, t.a[0]);
  transpose(D, C, t.a[0], LC, o.a[0], width[0]);
  gather(A.v, n, t.v);
  transpose(D, C, t.v, LC, o.v, width[0]);
  // the first layer's products with the state, all keys at once
  const Decay<T>& c0 = decay(0);
  for (long i = 0; i < in[0]; i++)
    for (long j = 0; j < LC; j++) {
      T x = t.a[0][i * LC + j];
      bX[i * LC + j] = (j == 0 ? T(1) : c0.start[j - 1]) * x;
      fX[i * LC + j] = (j == 0 ? T(0) : c0.lag[j - 1]) * x;
    }
  apply(out[0], in[0], state.m[0], 1, ld[0], bX, Z);
  apply(out[0], in[0], state.s[0], 1, ld[0], fX, Z, ADD);
  transpose(out[0], C, Z, LC, o.z[0], ld[0]);
  T *pm = narrowA, *ps = narrowB;
  const T *weight = scale(), *bias = shift();
  for (long i = 0; i < C; i++) {
    for (long l = 0; l < L; l++) {
      const Decay<T>& c = decay(l);
      T *x = o.a[l] + i * width[l], *z = o.z[l] + i * ld[l];
      if (l > 0) {
        T from = i ? c.start[i - 1] : T(1), lag = i ? c.lag[i - 1] : T(0);
        vector_matrix(in[l], ld[l], x, state.m[l], state.s[l], pm, ps);
        for (long j = 0; j < ld[l]; j++) z[j] = from * pm[j] + lag * ps[j];
      }
      for (long j = 0; j < i; j++)
        add_scaled(ld[l], -c.mixT[j * LC + i - 1] * dot(width[l], o.a[l] + j * width[l], x), o.d[l] + j * ld[l], z);
      if (l < L - 1) gelu_and_slope(ld[l], z, o.a[l + 1] + i * width[l + 1], o.slope[l] + i * ld[l]);
    }
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
    for (long l = L - 2; l >= 0; l--) {
      const Decay<T>& c = decay(l + 1);
      T *above = o.d[l + 1] + i * ld[l + 1], *back = o.back[l] + i * ld[l], *slope = o.slope[l] + i * ld[l];
      T from = i ? c.start[i - 1] : T(1), lag = i ? c.lag[i - 1] : T(0);
      matrix_vector(in[l + 1], ld[l + 1], state.m[l + 1], state.s[l + 1], above, pm, ps);
      for (long j = 0; j < in[l + 1]; j++) back[j] = from * pm[j] + lag * ps[j];
      for (long j = 0; j < i; j++)
        add_scaled(ld[l], -c.mixT[j * LC + i - 1] * dot(ld[l + 1], o.d[l + 1] + j * ld[l + 1], above),
                   o.a[l + 1] + j * width[l + 1], back);
      T* below = o.d[l] + i * ld[l];
      for (long j = 0; j < ld[l]; j++) below[j] = back[j] * slope[j];
    }
  }
  for (long l = 0; l < L; l++) {
    if (l) transpose(C, in[l], o.a[l], width[l], t.a[l], LC);
    transpose(C, out[l], o.d[l], ld[l], t.d[l], LC);
  }
  transpose(C, D, o.error, width[0], t.error, LC);
}

// g <- d LayerNorm(z)/dz^T g for one token
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

// Adjoint of the end of `slopes_online` for one token: from the gradient at d_L to those at z_L and the error.
template <typename T>
void Row<T>::last_layer_online(long i, Activations<T>& t, T* last, T* dz, T* derror) {
  Online<T>& o = t.online;
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
  norm_transposed(w, unit, rs);  // gradient at g = 2 error weight
  for (long j = 0; j < D; j++) {
    derror[j] = 2 * w[j] * weight[j];
    dnorm[j] += 2 * w[j] * error[j] + derror[j] * unit[j];
    dnorm[D + j] += derror[j];
  }
  // gradient in z of <last, d LayerNorm(z)/dz^T g>
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

// Adjoint of x -> product - sum_j mix[j] <u_j, x> w_j over the tokens before i: into du, dw, dmix, and dx.
template <typename T>
void Row<T>::earlier_online(long i, const Decay<T>& c, const T* u, long nu, const T* w, long nw, const T* x, const T* dz,
                            T* du, T* dw, T* dx, T* into) const {
  for (long j = 0; j < i; j++) {
    T mix = c.mixT[j * LC + i - 1], s = dot(nw, w + j * nw, dz), r = dot(nu, u + j * nu, x);
    into[j * LC + i - 1] -= s * r;
    add_scaled(nu, -mix * s, x, du + j * nu);
    add_scaled(nw, -mix * r, dz, dw + j * nw);
    add_scaled(nu, -mix * s, u + j * nu, dx);
  }
}

// The inner gradient of a block, last token first; dA and dD hold what reads and the block's end have left there.
template <typename T>
void Row<T>::backward_online(long n, Activations<T>& t, const State<T>& state) {
  Online<T> &o = t.online, &g = tokens;
  for (long l = 0; l < L; l++) {
    transpose(in[l], C, dA[l], LC, g.a[l], width[l]);
    transpose(out[l], C, dD[l], LC, g.d[l], ld[l]);
  }
  T *pm = narrowA, *ps = narrowB;
  for (long i = C - 1; i >= 0; i--) {
    for (long l = 0; l < L - 1; l++) {
      const Decay<T>& c = decay(l + 1);
      long up = ld[l + 1], w = ld[l];
      const T *d = g.d[l] + i * w, *back = o.back[l] + i * w, *slope = o.slope[l] + i * w, *z = o.z[l] + i * w;
      T *dh = g.back[l] + i * w, *extra = g.slope[l] + i * w, *above = o.d[l + 1] + i * up, *into = g.d[l + 1] + i * up;
      for (long j = 0; j < w; j++) {
        extra[j] = d[j] * back[j] * gelu_curve(z[j]);
        dh[j] = d[j] * slope[j];
      }
      T from = i ? c.start[i - 1] : T(1), lag = i ? c.lag[i - 1] : T(0);
      vector_matrix(in[l + 1], up, dh, state.m[l + 1], state.s[l + 1], pm, ps);
      for (long j = 0; j < up; j++) into[j] += from * pm[j] + lag * ps[j];
      if (i) {
        dstart[l + 1][i - 1] += dot(up, pm, above);
        dlag[l + 1][i - 1] += dot(up, ps, above);
      }
      earlier_online(i, c, o.d[l + 1], up, o.a[l + 1], w, above, dh, g.d[l + 1], g.a[l + 1], into, dmix[l + 1]);
    }
    T* derror = g.error + i * width[0];
    last_layer_online(i, t, g.d[L - 1] + i * ld[L - 1], g.z[L - 1] + i * ld[L - 1], derror);
    for (long l = L - 1; l >= 0; l--) {
      const Decay<T>& c = decay(l);
      long w = width[l];
      T *x = o.a[l] + i * w, *dx = g.a[l] + i * w, *dz = g.z[l] + i * ld[l];
      earlier_online(i, c, o.a[l], w, o.d[l], ld[l], x, dz, g.a[l], g.d[l], dx, dmix[l]);
      if (l == 0) continue;
      T from = i ? c.start[i - 1] : T(1), lag = i ? c.lag[i - 1] : T(0);
      std::fill(pm + in[l], pm + w, T(0)), std::fill(ps + in[l], ps + w, T(0));
      matrix_vector(in[l], ld[l], state.m[l], state.s[l], dz, pm, ps);
      for (long j = 0; j < in[l]; j++) dx[j] += from * pm[j] + lag * ps[j];
      if (i) {
        dstart[l][i - 1] += dot(w, pm, x);
        dlag[l][i - 1] += dot(w, ps, x);
      }
      T *below = g.z[l - 1] + i * w, *slope = o.slope[l - 1] + i * w, *extra = g.slope[l - 1] + i * w;
      for (long j = 0; j < w; j++) below[j] = dx[j] * slope[j] + extra[j];
    }
  }
  // the first layer's products with the state, all keys at once
  transpose(C, out[0], g.z[0], ld[0], dZ, LC);
  transpose(C, in[0], g.a[0], width[0], dA[0], LC);
  const Decay<T>& c0 = decay(0);
  for (int part = 0; part < 2; part++) {
    apply(in[0], out[0], part ? state.s[0] : state.m[0], ld[0], 1, dZ, Z);
    const T* factor = part ? c0.lag : c0.start;
    T *into = part ? dlag[0] : dstart[0], first = part ? T(0) : T(1);
    for (long i = 0; i < in[0]; i++)
      for (long j = 0; j < C; j++) {
        dA[0][i * LC + j] += (j ? factor[j - 1] : first) * Z[i * LC + j];
        if (j) into[j - 1] += t.a[0][i * LC + j] * Z[i * LC + j];
      }
  }
  // the state at the block's start: outer products of both passes
  for (long l = 0; l < L; l++) {
    const Decay<T>& c = decay(l);
    for (int pass = l ? 0 : 1; pass < 2; pass++) {
      const T *rows = pass ? g.z[l] : o.d[l], *left = pass ? o.a[l] : g.back[l - 1];
      for (long i = 0; i < C; i++) {
        T from = i ? c.start[i - 1] : T(1), lag = i ? c.lag[i - 1] : T(0);
        for (long j = 0; j < ld[l]; j++) {
          rowsA[i * ld[l] + j] = from * rows[i * ld[l] + j];
          rowsB[i * ld[l] + j] = lag * rows[i * ld[l] + j];
        }
      }
      matmul(in[l], ld[l], C, left, 1, width[l], rowsA, ld[l], grad.m[l], ld[l], ADD);
      matmul(in[l], ld[l], C, left, 1, width[l], rowsB, ld[l], grad.s[l], ld[l], ADD);
    }
  }
  transpose(C, D, g.error, width[0], tmp, LC);
}
