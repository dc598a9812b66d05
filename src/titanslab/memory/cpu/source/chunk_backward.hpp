// The adjoint of one chunk, from its activations and the gradient of the state after it. Included by chunked.cpp.
#pragma once

template <typename T>
void Row<T>::backward_chunk(long n, Activations<T>& t, const State<T>& state, T* const* W, bool own, bool carry) {
  // read again, or fetch the kept activations of the read
  if (A.activations)
    keep(n, t), recall_read(n);
  else
    read(n, t, state);
  gather(A.dy, n, dZ);
  const T* w = scale();
  std::copy_n(dZ, D * LC, tmp2);  // dy, for the residual
  if (w) {
    normalize(Z, unit, rstd);
    for (long i = 0; i < D; i++)
      add_sums(dZ + i * LC, unit + i * LC, dnorm[i], dnorm[D + i]);
    std::copy_n(tmp2, D * LC, tmp);
    normalize_backward(tmp, w, unit, rstd, dZ, SET);
  }
  T* dy = tmp2;
  for (long l = L - 1; l >= 0; l--) {
    const Decay<T>& c = decay(l);
    long wi = in[l], wo = out[l];
    // through the writes of this chunk
    scores_of(wo, t.d[l], dZ, scores);  // [write, token]
    for (long i = 0; i < C * LC; i++) {
      T s = scores[i], q = asked[l][i], p = c.mixT[i];
      dmix[l][i] = -s * q;
      mixed[i] = s * p;
      weighted[i] = q * p;
    }
    transpose(C, C, mixed, LC, mixedT, LC);
    transpose(C, C, weighted, LC, weightedT, LC);
    // gradient of the state at the chunk's end, through this chunk's writes
    T *dm = grad.m[l], *ds = grad.s[l];
    for (T* sums : {dstart[l], dlag[l], dw[l], dw2[l]}) std::fill_n(sums, LC, T(0));
    auto as_it_is = [](long, V x) { return x; };
    pair<LOWER, true>(wi, wo, dm, ds, writes(c, dm), ld[l], 1, t.d[l], c.w, c.w2, X[l], mixedT, dA[l],
                      {t.a[l], dw[l], dw2[l]}, as_it_is);
    pair<LOWER, false>(wo, wi, dm, ds, writes(c, dm), 1, ld[l], t.a[l], c.w, c.w2, dZ, weightedT, dD[l], {}, as_it_is);
    // through the state at the chunk's start
    Both both = reads(c, l, state);
    auto through = [&](auto finish) {
      pair<UPPER, true>(wi, wo, state.m[l], state.s[l], both, ld[l], 1, dZ, c.start, c.lag, t.a[l], mixed, dX,
                        {X[l], dstart[l], dlag[l]}, finish);
    };
    if (A.base[0]) {
      apply(wi, wo, base.m[l], ld[l], 1, dZ, dB);
      as_rows(dZ, l, rowsA);
      add_outer(X[l], l, grad_base.m[l]);
    }
    bool based = A.base[0];
    auto with_base = [&](long i, V x) { return based ? x + at(dB + i) : x; };
    if (l > 0)
      through([&](long i, V x) { return with_base(i, x) * at(Xs[l - 1] + i); });
    else if (A.residual)
      through([&](long i, V x) { return with_base(i, x) + at(dy + i); });
    else
      through(with_base);
    // gradient of the state at the chunk's start
    as_two_rows(dZ, l, c.start, c.lag);
    V dots[4] = {V{}, V{}, V{}, V{}};
    tiles(wi, columns[l], [&](long i, long j, auto rows, auto vectors) {
      long at = i * ld[l] + j;
      retreat_tile<T, rows(), vectors()>(C, c.lagging, c.ratio, X[l] + i * LC, LC, rowsA + panel(j), rowsB + panel(j),
                                         ld[l], state.m[l] + at, state.s[l] + at, dm + at, ds + at, c.b, c.f, c.e, dots);
    });
    for (int k = 0; k < 3; k++) {
      dends[l][k] = 0;
      for (long j = 0; j < VL; j++) dends[l][k] += dots[k][j];
    }
    if (c.lagging < C) {
      // From token `lagging` on dstart is the gradient of start * (m + ratio s). The gradient of `ratio` remains; it is
      // passed to the lag and the start of that token.
      T along = 0;
      for (long j = 0; j < VL; j++) along += dots[3][j];
      along /= c.start[c.lagging];
      dlag[l][c.lagging] += along, dstart[l][c.lagging] -= c.ratio * along;
    }
    if (l > 0) std::swap(dX, dZ);
  }
  scatter(dX, n, A.dq);
  T* dW[MAX_LAYERS];  // gradient of W
  for (long l = 0; l < L; l++) {
    T* into = A.base[0] ? grad_whole.m[l] : grad.m[l];
    if (A.base[0]) std::fill_n(into, in[l] * ld[l], T(0));
    dW[l] = own ? into : grad_anchor.m[l];
    if (carry && own) add(into, grad_anchor.m[l], l);
    if (!own && !carry) std::fill_n(grad_anchor.m[l], in[l] * ld[l], T(0));
  }
  if (A.inner) {
    backward_short(n, t, state, W, dW);
    gate_gradients(n);
  } else {
    gate_gradients(n);
    backward_slopes(t, W, dW);
  }
  for (long l = 0; A.base[0] && own && l < L; l++) add(grad.m[l], dW[l], l), add(grad_base.m[l], dW[l], l);
  if (!own)
    for (long l = 0; l < L; l++) store(A.d_anchor[l], 0, l, grad_anchor.m[l], nullptr);
  // dk and dv, from dA[0] and from the gradient of the error, which is in tmp
  if (A.residual)
    for (long i = 0; i < D * LC; i++) dA[0][i] += tmp[i];
  scatter(dA[0], n, A.dk);
  for (long i = 0; i < D * LC; i++) tmp[i] = -tmp[i];
  scatter(tmp, n, A.dv);
}

// Adjoint of `slopes`, from the first layer to the last and back. dA and dD come with the gradients of a and d through
// the reads and the chunk's end. Gradients of the weights W are added to dW, that of the error is stored in tmp.
template <typename T>
void Row<T>::backward_slopes(Activations<T>& t, T* const* W, T* const* dW) {
  const T* w = scale();
  for (long l = 0; l < L - 1; l++) {
    for (long i = 0; i < out[l] * LC; i++) {
      extra[l][i] = dD[l][i] * t.back[l][i] * gelu_curve(t.z[l][i]);
      dhT[l][i] = dD[l][i] * t.slope[l][i];
    }
    apply(out[l + 1], in[l + 1], W[l + 1], 1, ld[l + 1], dhT[l], dD[l + 1], ADD);
    as_rows(t.d[l + 1], l + 1, rowsA);
    add_outer(dhT[l], l + 1, dW[l + 1]);
  }
  T *last = dD[L - 1], *dz = dZ, *derror = tmp;
  if (A.grad_clip > 0) {
    clip_factor(t.raw);
    T *factor = sums, *inverse = sums + LC, *along = sums + 2 * LC;
    std::fill_n(along, LC, T(0));
    for (long i = 0; i < D; i++)
      for (long c = 0; c < LC; c++) along[c] += t.raw[i * LC + c] * inverse[c] * last[i * LC + c];
    for (long i = 0; i < D; i++)
      for (long c = 0; c < LC; c++)
        if (factor[c] < 1) {
          long at = i * LC + c;
          last[at] = factor[c] * (last[at] - t.raw[at] * inverse[c] * along[c]);
        }
  }
  if (w) {
    normalize_backward(last, nullptr, t.unit, t.rstd, tmp2, SET);  // d_grad
    for (long i = 0; i < D; i++) {
      T along = 0, sum = 0, both = 0, wi = w[i];
      const T *x = tmp2 + i * LC, *error = t.error + i * LC, *u = t.unit + i * LC;
      T* to = derror + i * LC;
#pragma omp simd
      for (long c = 0; c < LC; c++) to[c] = 2 * x[c] * wi;
      add_sums(x, error, both, sum);
      add_sums(to, u, along, dnorm[D + i]);
      dnorm[i] += 2 * both + along;
    }
    normalize_double_backward(last, t.error, w, t.unit, t.rstd, dz);
    normalize_backward(derror, w, t.unit, t.rstd, dz, ADD);
  } else {
    for (long i = 0; i < D * LC; i++) dz[i] = derror[i] = 2 * last[i];
  }
  for (long l = L - 1; l >= 0; l--) {
    as_rows(dz, l, rowsA);
    add_outer(t.a[l], l, dW[l]);
    apply(in[l], out[l], W[l], ld[l], 1, dz, dA[l], ADD);
    if (l > 0)
      for (long i = 0; i < in[l] * LC; i++) dz[i] = dA[l][i] * t.slope[l - 1][i] + extra[l - 1][i];
  }
}
