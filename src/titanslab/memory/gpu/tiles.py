"""Device functions that the kernels share: tiles, products, GELU and the inner loss.

Matrices are row-major. A tile may extend beyond its matrix; elements outside are loaded as 0 and are not stored.
"""

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_TAU = tl.constexpr(0.3989422804014327)
_NORM_EPS = tl.constexpr(1e-5)


@triton.jit
def tile(ptr, row, column, ROWS, COLUMNS: tl.constexpr, TR: tl.constexpr, TC: tl.constexpr):
    """The `[TR, TC]` tile that begins at (row, column) of the `[ROWS, COLUMNS]` matrix at `ptr`."""
    i = row + tl.arange(0, TR)[:, None]
    j = column + tl.arange(0, TC)[None, :]
    return tl.load(ptr + i * COLUMNS + j, mask=(i < ROWS) & (j < COLUMNS), other=0)


@triton.jit
def put(ptr, value, row, column, ROWS, COLUMNS: tl.constexpr):
    """Stores a tile; inverse of `tile`."""
    i = row + tl.arange(0, value.shape[0])[:, None]
    j = column + tl.arange(0, value.shape[1])[None, :]
    tl.store(ptr + i * COLUMNS + j, value, mask=(i < ROWS) & (j < COLUMNS))


@triton.jit
def put_as(ptr, value, row, column, ROWS, COLUMNS: tl.constexpr):
    """`put` of the tile converted to the dtype of `ptr`."""
    put(ptr, value.to(ptr.dtype.element_ty), row, column, ROWS, COLUMNS)


@triton.jit
def add(ptr, value, row, column, ROWS, COLUMNS: tl.constexpr):
    """Adds a tile to the matrix at `ptr`, in place."""
    before = tile(ptr, row, column, ROWS, COLUMNS, value.shape[0], value.shape[1])
    put(ptr, before + value, row, column, ROWS, COLUMNS)


@triton.jit
def vector(ptr, SIZE: tl.constexpr, TILE: tl.constexpr):
    """The `[SIZE]` vector at `ptr`, extended by 0 to `[TILE]`."""
    i = tl.arange(0, TILE)
    return tl.load(ptr + i, mask=i < SIZE, other=0)


@triton.jit
def put_vector(ptr, value, SIZE: tl.constexpr):
    """Stores the first SIZE elements; inverse of `vector`."""
    i = tl.arange(0, value.shape[0])
    tl.store(ptr + i, value, mask=i < SIZE)


@triton.jit
def _round_to_bf16(x):
    """x rounded to 8 significant bits, in float32 (Veltkamp's method); the interpreter has no bfloat16 products."""
    high = x * 65537.0
    return high - (high - x)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """`a @ b`, accumulated in float32 (float64 for float64)."""
    if PRECISION == "float64":
        return tl.dot(a, b, out_dtype=tl.float64)
    elif PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "bf16-interpreted":
        return tl.dot(_round_to_bf16(a), _round_to_bf16(b))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def gelu(z):
    return 0.5 * z * (1 + tl.erf(z * _SQRT_HALF))


@triton.jit
def gelu_slope(z):
    """First derivative of GELU."""
    return 0.5 * (1 + tl.erf(z * _SQRT_HALF)) + z * tl.exp(-0.5 * z * z) * _INV_SQRT_TAU


@triton.jit
def gelu_curve(z):
    """Second derivative of GELU."""
    return (2 - z * z) * tl.exp(-0.5 * z * z) * _INV_SQRT_TAU


@triton.jit
def normalize(z, D: tl.constexpr):
    """LayerNorm of rows over the first D columns, without its affine part, and 1/std as a column."""
    inside = tl.arange(0, z.shape[1])[None, :] < D
    centred = tl.where(inside, z - tl.sum(z, 1)[:, None] / D, 0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + _NORM_EPS)[:, None]
    return centred * rstd, rstd


@triton.jit
def normalize_backward(grad, unit, rstd, D: tl.constexpr):
    """As in `memory/gradient.py`; `grad` is 0 outside the D columns."""
    inside = tl.arange(0, grad.shape[1])[None, :] < D
    along = tl.sum(grad * unit, 1)[:, None] / D
    return tl.where(inside, rstd * (grad - tl.sum(grad, 1)[:, None] / D - unit * along), 0)


@triton.jit
def normalize_double_backward(outer, grad, unit, rstd, D: tl.constexpr):
    """As in `memory/gradient.py`: gradient in z of `sum(outer * normalize_backward(grad))`."""
    along = tl.sum(outer * unit, 1)[:, None]
    value = tl.sum(outer * (grad - tl.sum(grad, 1)[:, None] / D), 1)[:, None]
    second = tl.sum(grad * unit, 1)[:, None] / D
    value = value - second * along
    through_unit = -rstd * (outer * second + grad * (along / D))
    return normalize_backward(through_unit, unit, rstd, D) - rstd * rstd * unit * (value / D)


@triton.jit
def loss_error(k, v, z, scale, shift, D: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr):
    """`f(k) - v` from the last product z, all `[C, D]`; scale and shift `[1, D]`."""
    if NORM:
        unit, _ = normalize(z, D)
        error = unit * scale + shift - v
    else:
        error = z - v
    if RESIDUAL:
        error = error + k
    return error


@triton.jit
def clip_factor(full, limit):
    """Two columns: the factor that scales each row of `full` to an l2 norm of `limit`, and 1 / norm."""
    inverse = tl.rsqrt(tl.maximum(tl.sum(full * full, 1), 1.2e-38))[:, None]
    return limit * inverse, inverse


@triton.jit
def loss_slope(error, z, scale, limit, D: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr):
    """Gradient of the inner loss at z (Eq. 12); with CLIP, the l2 norm of each row is at most `limit`."""
    d = 2 * error
    if NORM:
        unit, rstd = normalize(z, D)
        d = normalize_backward(d * scale, unit, rstd, D)
    if CLIP:
        factor, _ = clip_factor(d, limit)
        d = d * tl.minimum(factor, 1)
    return d


@triton.jit
def loss_slope_backward(outer, error, z, scale, limit, D: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr):
    """Backward of `loss_slope`: gradients of z, of the error (also that of shift) and of scale, per row."""
    if NORM:
        unit, rstd = normalize(z, D)
    if CLIP:
        full = 2 * error
        if NORM:
            full = normalize_backward(full * scale, unit, rstd, D)
        factor, inverse = clip_factor(full, limit)
        direction = full * inverse
        along = tl.sum(direction * outer, 1)[:, None]
        outer = tl.where(factor < 1, factor * (outer - direction * along), outer)
    if NORM:
        through = normalize_backward(outer, unit, rstd, D)
        d_error = 2 * through * scale
        dz = normalize_double_backward(outer, 2 * error * scale, unit, rstd, D)
        dz += normalize_backward(d_error * scale, unit, rstd, D)
        d_scale = through * 2 * error + d_error * unit
    else:
        d_error = 2 * outer
        dz = d_error
        d_scale = d_error
    return dz, d_error, d_scale
