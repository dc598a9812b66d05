// The arguments of the chunk loop's kernels, chunked.cpp and lanes.cpp.
#pragma once
#include <cstdint>
#include <type_traits>

constexpr int MAX_LAYERS = 8;
constexpr double NORM_EPS = 1e-5;

// `Arguments` in memory/cpu/chunked.py is made of these fields. Tensors are contiguous; an absent one is null.
struct Arguments {
  int64_t batch, tokens, heads, head_dim, hidden, depth, chunk, chunks, gate_layers, group, residual, inner, threads, activation_reals;
  int64_t starts;    // problems that `state` holds: B * H, or H where all rows of the batch share them
  int64_t lanes;     // the lanes are problems (lanes.cpp)
  int64_t stride, taps;  // with `raw`: between two tokens of it, and the taps of the convolutions
  double grad_clip;  // 0: off
  void *q, *k, *v, *gates, *scale, *shift;
  int64_t* index;               // [B, chunks * C], -1: empty slot
  uint8_t *resets, *continues;  // [chunks, B], [B]
  int64_t *last, *offset;       // [B]
  void* activations;            // [chunks, B * H, activation_reals]; null: backward computes them again
  void *state[MAX_LAYERS], *anchor[MAX_LAYERS], *initial[MAX_LAYERS], *kept[MAX_LAYERS];
  // [H, d_in, d_out]: weights to which the memory forgets, and from which those of all states count; null: 0. Short
  // chunks do not read it (BASE_CHUNK in memory/backends.py).
  void* base[MAX_LAYERS];
  // Inputs of the convolutions of which q, k and v are made, and their weights [taps, H * D]; in lanes alone.
  void *raw, *convs[MAX_LAYERS];
  // forward
  void *y, *loss, *end[MAX_LAYERS], *running[MAX_LAYERS];
  // backward
  void *dy, *d_end[MAX_LAYERS], *d_running[MAX_LAYERS];
  void *dq, *dk, *dv, *d_gates, *d_state[MAX_LAYERS], *d_anchor[MAX_LAYERS], *d_initial[MAX_LAYERS], *d_norm;
  void* d_base[MAX_LAYERS];  // [B * H, d_in, d_out]
  void *d_raw, *d_convs[MAX_LAYERS];  // d_convs: partial sums, [slices, taps, H * D]
};

template <int N>
using Size = std::integral_constant<int, N>;
