// One token of the neural memory on a CPU: the inner gradient at the anchor, then the write, then the read.
// memory/recurrent.py has the same function in PyTorch operations, for machines without a compiler. The new state is
// written in one pass, in which the read takes place too.
#include <cmath>
#include <cstdint>
#include <vector>

#include "flush.hpp"
#include "gelu.hpp"

constexpr int MAX_LAYERS = 8;
constexpr double NORM_EPS = 1e-5;
constexpr int64_t PARALLEL_FROM = 1 << 19;  // fewest weights of all rows for which several threads are faster than one

// Mirrors `StepArguments` in memory/cpu/step.py. Tensors are contiguous; an absent one is null.
struct StepArguments {
  int64_t rows, heads, head_dim, hidden, depth, residual, threads;
  double grad_clip;             // 0: off
  void *q, *k, *v, *gates;      // gates: [L, 3, rows]
  void *scale, *shift;          // [H, D]
  void* base[MAX_LAYERS];       // [H, d_in, d_out]: what forgetting draws to; absent: 0
  int64_t* offset;              // [B]
  void *weights[MAX_LAYERS], *momentum[MAX_LAYERS], *anchor[MAX_LAYERS];
  void *y, *loss, *new_weights[MAX_LAYERS], *new_momentum[MAX_LAYERS];
};

// z = a W
template <typename T>
static void product(int64_t n_in, int64_t n_out, const T* __restrict a, const T* __restrict w, T* __restrict z) {
  for (int64_t j = 0; j < n_out; j++) z[j] = 0;
  int64_t i = 0;
  for (; i + 4 <= n_in; i += 4, w += 4 * n_out)
    for (int64_t j = 0; j < n_out; j++)
      z[j] += a[i] * w[j] + a[i + 1] * w[n_out + j] + a[i + 2] * w[2 * n_out + j] + a[i + 3] * w[3 * n_out + j];
  for (; i < n_in; i++, w += n_out)
    for (int64_t j = 0; j < n_out; j++) z[j] += a[i] * w[j];
}

template <typename T>
static T dot(int64_t n, const T* __restrict a, const T* __restrict b) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

template <typename T>
static T mean(int64_t n, const T* __restrict a) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i];
  return sum / n;
}

// unit = LayerNorm(z) without its affine part; returns 1/std
template <typename T>
static T normalize(int64_t n, const T* z, T* unit) {
  T centre = mean(n, z);
  for (int64_t i = 0; i < n; i++) unit[i] = z[i] - centre;
  T rstd = 1 / std::sqrt(dot(n, unit, unit) / n + (T)NORM_EPS);
  for (int64_t i = 0; i < n; i++) unit[i] *= rstd;
  return rstd;
}

template <typename T>
static void one_row(const StepArguments& p, int64_t row) {
  const int64_t D = p.head_dim, L = p.depth, head = row % p.heads;
  const int64_t widest = p.hidden > D ? p.hidden : D;
  auto width = [&](int64_t l) { return l == 0 || l == L ? D : p.hidden; };
  auto at = [&](void* const* list, int64_t l) { return (T*)list[l] + row * width(l) * width(l + 1); };
  const T *q = (T*)p.q + row * D, *k = (T*)p.k + row * D, *v = (T*)p.v + row * D;
  const T* scale = p.scale ? (T*)p.scale + head * D : nullptr;
  const T* shift = p.shift ? (T*)p.shift + head * D : nullptr;
  std::vector<T> space((3 * L + 3) * widest);
  auto inputs = [&](int64_t l) { return space.data() + l * widest; };
  auto slopes = [&](int64_t l) { return space.data() + (L + l) * widest; };
  auto grads = [&](int64_t l) { return space.data() + (2 * L + l) * widest; };
  T *z = space.data() + 3 * L * widest, *x = z + widest, *unit = x + widest;

  const bool starts = p.offset[row / p.heads] == 0;
  void* const* anchor = starts ? p.weights : p.anchor;
  for (int64_t i = 0; i < D; i++) inputs(0)[i] = k[i];
  for (int64_t l = 0; l < L; l++) {
    product(width(l), width(l + 1), inputs(l), at(anchor, l), z);
    if (l + 1 < L) gelu_and_slope<T>(p.hidden, z, inputs(l + 1), slopes(l));
  }
  T* d = grads(L - 1);
  T rstd = scale ? normalize(D, z, unit) : (T)1;
  for (int64_t i = 0; i < D; i++) {
    T error = (scale ? unit[i] * scale[i] + shift[i] : z[i]) - v[i];
    d[i] = p.residual ? error + k[i] : error;
  }
  ((T*)p.loss)[row] = dot(D, d, d);
  if (scale) {
    for (int64_t i = 0; i < D; i++) d[i] *= 2 * scale[i];
    T centre = mean(D, d), along = dot(D, d, unit) / D;
    for (int64_t i = 0; i < D; i++) d[i] = rstd * (d[i] - centre - unit[i] * along);
  } else {
    for (int64_t i = 0; i < D; i++) d[i] *= 2;
  }
  if (p.grad_clip > 0) {
    T size = dot(D, d, d), least = (T)1e-38;
    T factor = (T)p.grad_clip / std::sqrt(size > least ? size : least);
    if (factor < 1)
      for (int64_t i = 0; i < D; i++) d[i] *= factor;
  }
  for (int64_t l = L - 2; l >= 0; l--)
    for (int64_t i = 0; i < p.hidden; i++)
      grads(l)[i] = dot(width(l + 2), at(anchor, l + 1) + i * width(l + 2), grads(l + 1)) * slopes(l)[i];

  for (int64_t i = 0; i < D; i++) x[i] = q[i];
  for (int64_t l = 0; l < L; l++) {
    const int64_t n = width(l + 1);
    const T* gate = (T*)p.gates + 3 * l * p.rows + row;
    const T theta = gate[0], eta = gate[p.rows], alpha = gate[2 * p.rows], keep = 1 - alpha;
    const T *w = at(p.weights, l), *s = at(p.momentum, l), *__restrict dl = grads(l);
    const T* to = p.base[l] ? (T*)p.base[l] + head * width(l) * n : w;
    const T pull = p.base[l] ? alpha : 0;
    T *w1 = at(p.new_weights, l), *s1 = at(p.new_momentum, l), *__restrict out = z;
    for (int64_t j = 0; j < n; j++) out[j] = 0;
    for (int64_t i = 0; i < width(l); i++, w += n, s += n, w1 += n, s1 += n, to += n) {
      const T push = theta * inputs(l)[i], ask = x[i];
#pragma omp simd
      for (int64_t j = 0; j < n; j++) {
        s1[j] = eta * s[j] - push * dl[j];             // Eq. 14
        w1[j] = keep * w[j] + (pull * to[j] + s1[j]);  // Eq. 13
        out[j] += ask * w1[j];
      }
    }
    if (l + 1 < L) gelu_and_slope<T>(n, z, x, unit);
  }
  if (scale) {
    normalize(D, z, unit);
    for (int64_t i = 0; i < D; i++) z[i] = unit[i] * scale[i] + shift[i];
  }
  T* y = (T*)p.y + row * D;
  for (int64_t i = 0; i < D; i++) y[i] = p.residual ? z[i] + q[i] : z[i];
}

template <typename T>
static void all_rows(const StepArguments& p) {
  const int64_t weights = p.rows * p.head_dim * (p.depth > 1 ? p.hidden : p.head_dim);
  const int threads = weights < PARALLEL_FROM ? 1 : (int)p.threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < p.rows; row++) {
    FlushDenormals flush;
    one_row<T>(p, row);
  }
}

extern "C" void titans_step(const StepArguments* p) { all_rows<TITANS_REAL>(*p); }
extern "C" int64_t titans_arguments_size() { return sizeof(StepArguments); }
