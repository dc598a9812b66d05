// Decay coefficients of a chunk (memory/decay.py) and their adjoint. Included by chunked.cpp.
#pragma once

// A term is left out once it is smaller than the terms beside it by this factor, a sixteenth of the rounding error.
template <typename T>
constexpr T FADED = sizeof(T) == 4 ? T(1) / (1 << 28) : T(1) / (1LL << 57);

template <typename T>
void Row<T>::gates_of(long n, long g) {
  Decay<T>& c = decays[g];
  for (long t = 0; t < C; t++) {
    long at = token(n, t);
    c.real[t] = at >= 0;
    c.theta[t] = at >= 0 ? *gate(A.gates, 0, g, at) : T(0);
    c.eta[t] = at >= 0 ? *gate(A.gates, 1, g, at) : T(1);
    c.keep[t] = at >= 0 ? 1 - *gate(A.gates, 2, g, at) : T(1);
  }
}

// Computes the coefficients at the chunk's end alone: b, f, e, w, w2 and `recent`, which `advance` reads.
template <typename T>
void Row<T>::end_coefficients(long n) {
  for (long g = 0; g < gates; g++) {
    gates_of(n, g);
    Decay<T>& c = decays[g];
    T kept = 1, carried = 1, both = 0;
    T less_one = 0;  // the largest product of the same etas but one; gradients in eta contain such products
    for (long i = C - 1; i >= 0; i--) {
      both = (i + 1 < C ? c.eta[i + 1] : T(0)) * both + c.real[i] * kept;
      c.w[i] = both * c.theta[i];
      c.w2[i] = carried * c.theta[i];
      T least = FADED<T> * std::min(T(1), both);
      if (!(std::abs(carried) <= least && less_one <= least)) c.recent = i;
      kept *= c.keep[i];
      less_one = std::max(less_one * std::abs(c.eta[i]), std::abs(carried));
      carried *= c.eta[i];
    }
    c.recent = c.recent / VL * VL;
    c.b = kept, c.f = c.eta[0] * both, c.e = carried;
  }
}

template <typename T>
void Row<T>::coefficients(long n) {
  end_coefficients(n);
  for (long g = 0; g < gates; g++) {
    Decay<T>& c = decays[g];
    long w = C + 1;
    T kept = 1;
    for (long t = 0; t < C; t++) {
      kept *= c.keep[t];
      c.start[t] = kept;
      T *__restrict e = c.carried + t * w, *__restrict m = c.combined + t * w, *__restrict mix = mixRows + t * LC;
      T eta = c.eta[t], keep = c.keep[t], real = c.real[t];
      if (t == 0) {
        e[0] = eta, m[0] = real * eta;
      } else {
        const T *before = c.carried + (t - 1) * w, *mixed_before = c.combined + (t - 1) * w;
#pragma omp simd
        for (long i = 0; i <= t; i++) {
          e[i] = eta * before[i];
          m[i] = keep * mixed_before[i] + real * e[i];
        }
      }
      e[t + 1] = 1, m[t + 1] = real;
      for (long i = t + 2; i < w; i++) e[i] = m[i] = 0;
      c.lag[t] = m[0];
#pragma omp simd
      for (long i = 0; i < C; i++) mix[i] = m[i + 1] * c.theta[i];
    }
    transpose(C, C, mixRows, LC, c.mixT, LC);
    fade(c);
  }
}

// Sets `lagging` and `ratio`. lag_t / start_t is a sum over the tokens up to t, whose term for a token is the product
// of eta / (1 - alpha) up to that token; the sum is constant once the terms have faded.
template <typename T>
void Row<T>::fade(Decay<T>& c) {
  c.lagging = C, c.ratio = 0;
  if (!(c.start[C - 1] > T(1e-6))) return;  // start is too close to 0 to divide by
  c.ratio = c.lag[C - 1] / c.start[C - 1];
  T product = 1, less_one = 0;
  for (long t = 0; t < C; t++) {
    less_one = std::max(less_one * std::abs(c.eta[t]), product) / c.keep[t];
    product *= std::abs(c.eta[t]) / c.keep[t];
    fading[t] = c.real[t] * product, fading_less_one[t] = c.real[t] * less_one;
  }
  T rest = 0, rest_less_one = 0;
  for (long t = C - 1; t >= 0 && rest <= FADED<T> * c.ratio && rest_less_one <= FADED<T>; t--) {
    c.lagging = t;
    rest += fading[t], rest_less_one += fading_less_one[t];
  }
  c.lagging = std::min(C, (c.lagging + VL - 1) / VL * VL);
}

// Adjoint of `coefficients`. If the layers share their gates, their gradients are added.
template <typename T>
void Row<T>::gate_gradients(long n) {
  long w = C + 1;
  for (long g = 0; g < gates; g++) {
    const Decay<T>& c = decays[g];
    long from = gates == 1 ? 0 : g, to = gates == 1 ? L : g + 1;
    for (long l = from; l < to; l++) {
      for (long i = 0; i < C; i++) dmix[l][i * LC + C - 1] += dw[l][i];
      dstart[l][C - 1] += dends[l][0];
      dlag[l][C - 1] += dends[l][1];
      if (l == from) continue;
      for (long i = 0; i < C * LC; i++) dmix[from][i] += dmix[l][i];
      for (long i = 0; i < C; i++) {
        dstart[from][i] += dstart[l][i], dlag[from][i] += dlag[l][i], dw2[from][i] += dw2[l][i];
      }
      dends[from][2] += dends[l][2];
    }
    transpose(C, C, dmix[from], LC, mixRows, LC);
    const T* last = c.carried + (C - 1) * w;
    for (T* zeros : {lamG, lamE, dtheta}) std::fill_n(zeros, w, T(0));
    lamE[0] = dends[from][2];
    for (long i = 0; i < C; i++) {
      lamE[i + 1] = dw2[from][i] * c.theta[i];
      dtheta[i] = dw2[from][i] * last[i + 1];
    }
    T lamb = 0;
    for (long t = C - 1; t >= 0; t--) {
      T next = t + 1 < C ? c.keep[t + 1] : T(0), carry = t + 1 < C ? c.eta[t + 1] : T(1), real = c.real[t];
      const T *__restrict dm = mixRows + t * LC, *__restrict G = c.combined + t * w;
      T *__restrict lg = lamG, *__restrict le = lamE, *__restrict dth = dtheta;
      lamb = dstart[from][t] + next * lamb;
      lg[0] = dlag[from][t] + next * lg[0];
#pragma omp simd
      for (long i = 0; i < C; i++) {
        lg[i + 1] = dm[i] * c.theta[i] + next * lg[i + 1];
        dth[i] += dm[i] * G[i + 1];
      }
#pragma omp simd
      for (long i = 0; i < w; i++) le[i] = real * lg[i] + carry * le[i];
      T dkeep = lamb * (t ? c.start[t - 1] : T(1)), deta = t ? T(0) : le[0];
      if (t) {
        const T *before = G - w, *E = c.carried + (t - 1) * w;
#pragma omp simd reduction(+ : dkeep, deta)
        for (long i = 0; i <= t; i++) dkeep += lg[i] * before[i], deta += le[i] * E[i];
      }
      long at = token(n, t);
      if (at < 0) continue;
      *gate(A.d_gates, 1, g, at) = deta;
      *gate(A.d_gates, 2, g, at) = -dkeep;
    }
    for (long t = 0; t < C; t++) {
      long at = token(n, t);
      if (at >= 0) *gate(A.d_gates, 0, g, at) = dtheta[t];
    }
  }
}
