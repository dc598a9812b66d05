// Exact GELU and its first two derivatives, and the sigmoid, elementwise.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// exp(x) as 2^n times a polynomial for the rest; relative error below 3e-7 for x in [-87, 0].
static inline float exp_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  float scaled = x * 1.44269504088896f;
  float shifted = scaled + 12582912.0f;  // rounds to the nearest integer
  float n = shifted - 12582912.0f;
  float r = __builtin_fmaf(x, 1.44269504088896f, -n);
  float p = 1.534564238e-04f;
  p = p * r + 1.339989888e-03f;
  p = p * r + 9.618489260e-03f;
  p = p * r + 5.550328864e-02f;
  p = p * r + 2.402264689e-01f;
  p = p * r + 6.931472057e-01f;
  p = p * r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}
static inline double exp_negative(double x) { return std::exp(x); }

// Normal distribution function Phi(z), from e = exp(-z^2/2). For float Phi(-|z|) = e p(1 / (1 + 0.23 |z|)), with the
// polynomial p fitted to a relative error of 5e-8.
static inline float normal_cdf(float z, float e) {
  float a = z < 0 ? -z : z;
  float t = 1.0f / (1.0f + 0.23f * a);
  float p = -7.848985436e-02f;
  p = p * t + 2.905271861e-01f;
  p = p * t - 2.783707646e-01f;
  p = p * t + 3.017657002e-01f;
  p = p * t - 3.313429659e-02f;
  p = p * t + 1.196114112e-01f;
  p = p * t + 8.573606117e-02f;
  p = p * t + 9.238256146e-02f;
  p = p * t - 2.802833116e-05f;
  float tail = e * p;
  return z < 0 ? tail : 1.0f - tail;
}
static inline double normal_cdf(double z, double) { return 0.5 * (1.0 + std::erf(z * 0.70710678118654752440)); }

template <typename T>
static void gelu_and_slope(long n, const T* __restrict z, T* __restrict value, T* __restrict slope) {
  const T inv = (T)0.39894228040143267794;
  for (long i = 0; i < n; i++) {
    T e = exp_negative((T)-0.5 * z[i] * z[i]), phi = normal_cdf(z[i], e);
    value[i] = z[i] * phi;
    slope[i] = phi + z[i] * e * inv;
  }
}

template <typename T>
static inline T gelu_curve(T z) {
  return ((T)2 - z * z) * exp_negative((T)-0.5 * z * z) * (T)0.39894228040143267794;
}

template <typename T>
static inline T sigmoid(T z) {
  T e = exp_negative(z < 0 ? z : -z), s = 1 / (1 + e);
  return z < 0 ? e * s : s;
}
