"""The loops of the fused CPU kernels: each op in one pass over memory, compiled by Numba at its first call.

Every loop is written once for float32 and float64 and fills the C-contiguous arrays it is given. These must not overlap
those it reads, or the vectorizer's check at run time falls back to one number after the other. The arithmetic stays in
the arrays' dtype: a bare literal would be a float64, and promote a float32 loop to vectors half as long. Only Φ, exp
and a row's maximum differ by dtype: in float32 they are arithmetic that vectorizes, in float64 what is at hand.

Importing this file compiles nothing.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from tinyvit.engine.special import DENOMINATOR, NUMERATOR, SATURATED

ROWS = 64
"""Rows summed in the array's dtype before their sum joins a float64 total: rounding stays as in a pairwise sum."""

# A loop vectorizes only where a sum may be taken in any order (reassoc), a zero division is no exception (error_model)
# and nothing raises. Neither nnan nor ninf: with them a NaN may come out as a number, and training looks for NaNs.
loop = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp", "afn"})
inlined = numba.njit(inline="always")  # into a loop: called for a row, it would ask anew whether arrays overlap
# Where the order written matters: reassoc would fold LN2's two parts into one, and make Adam's v of g² + β₂(v − g²).
as_written = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


# ---------------------------------------------------------------------------------------------- Φ, exp and the maximum


def _singles(values: Any) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


# float32: Φ(x) = ½ + x · P(x²)/Q(x²), which is ½(1 + erf(x/√2)) with its factors multiplied into the coefficients
P = _singles(math.sqrt(0.125) * c * 0.5**k for k, c in enumerate(NUMERATOR))
Q = _singles(c * 0.5**k for k, c in enumerate(DENOMINATOR))
EDGE = np.float32(math.sqrt(2) * float(SATURATED))
ZERO, HALF, ONE = _singles((0, 0.5, 1))
# float32: exp r = E(r) for |r| ≤ ½ ln 2, a minimax fit of our own with E(0) = 1, to 9.2e-8 of the value
E = _singles((1.0, 0.99999970631, 0.49999147844, 0.16667638153, 0.041898159403, 0.0082902702288))
LOG2E = np.float32(1 / math.log(2))
LN2 = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)  # the first has 9 bits: n · LN2[0] is exact
LOWEST, HIGHEST = np.float32(-88.0), np.float32(89.0)  # where 2ⁿ below has become 0 and ∞
ROUND = np.float32(1.5 * 2**23 + 127)  # t + ROUND has t rounded, plus float32's exponent bias, in its lowest bits


@as_written
def _quintic(c, x):
    """c₀ + c₁x + … + c₅x⁵ by Horner's rule."""
    return ((((c[5] * x + c[4]) * x + c[3]) * x + c[2]) * x + c[1]) * x + c[0]


@as_written
def _clamp(x, low, high):
    """x within [low, high]; a NaN, for which no comparison holds, stays a NaN."""
    x = low if x < low else x
    return high if x > high else x


@as_written
def _exp_single(x):
    """exp x = 2ⁿ · exp r with x = n ln 2 + r, to 2e-7 of the value; 0 below −87.7 and ∞ above 88.4."""
    x = _clamp(x, LOWEST, HIGHEST)
    shifted = np.float32(x * LOG2E + ROUND)
    n = shifted - ROUND
    r = (x - n * LN2[0]) - n * LN2[1]
    power = np.int32(shifted.view(np.int32) << 23).view(np.float32)  # 2ⁿ: its exponent field is n + 127
    return _quintic(E, r) * power


@as_written
def _normal_single(x):
    """Φ(x), the normal distribution, to 3e-7; 0 and 1 exactly beyond ±EDGE."""
    square = x * x
    y = HALF + x * (_quintic(P, square) / _quintic(Q, square))
    y = ZERO if x < -EDGE else y
    return ONE if x > EDGE else y


@as_written
def _by_bits(bits):
    """The bits of a float32 as an integer that is larger where the float32 is, and back again."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@as_written
def _largest_single(row, scale):
    """The largest of scale · row, found among integers: a maximum of floats vectorizes only with nnan."""
    top = np.int32(-(2**31))
    for j in range(row.size):
        top = max(top, _by_bits(np.float32(scale * row[j]).view(np.int32)))
    return np.int32(_by_bits(top)).view(np.float32)


@as_written
def _largest_double(row, scale):
    """The largest of scale · row; −∞ if there is none."""
    top = -np.inf
    for j in range(row.size):
        top = max(top, scale * row[j])
    return top


def _exp(x):
    """exp x in x's own dtype."""


def _normal(x):
    """Φ(x) = ½(1 + erf(x/√2)) in x's own dtype."""


def _largest(row, scale):
    """The largest of scale · row."""


@overload(_exp)
def _exp_of(x):
    return (lambda x: _exp_single(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(_normal)
def _normal_of(x):
    if x == types.float32:
        return lambda x: _normal_single(x)
    return lambda x: 0.5 * (1.0 + math.erf(x * math.sqrt(0.5)))


@overload(_largest)
def _largest_of(row, scale):
    if row.dtype == types.float32:
        return lambda row, scale: _largest_single(row, scale)
    return lambda row, scale: _largest_double(row, scale)


# ---------------------------------------------------------------------------------------------------------------- gelu


@loop
def gelu(x, y):
    """y = x · Φ(x)."""
    for i in range(y.size):
        y[i] = x[i] * _normal(x[i])


@loop
def gelu_backward(x, gy, gx):
    """gx = gy · (Φ(x) + x · Φ′(x)), Φ′(x) = exp(−x²/2)/√(2π)."""
    one = x.dtype.type
    peak, minus_half = one(1 / math.sqrt(2 * math.pi)), one(-0.5)
    for i in range(gx.size):
        gx[i] = gy[i] * (_normal(x[i]) + x[i] * (peak * _exp(minus_half * x[i] * x[i])))


# ------------------------------------------------------------------------------------------------------------- softmax


@loop
def softmax(a, scale):
    """a ← softmax(scale · a) over the last axis, in place: (R, N)."""
    scale = a.dtype.type(scale)
    for r in range(a.shape[0]):
        row = a[r]
        top = _largest(row, scale)
        total = a.dtype.type(0)
        for j in range(row.size):
            row[j] = _exp(scale * row[j] - top)
            total += row[j]
        share = a.dtype.type(1) / total
        for j in range(row.size):
            row[j] *= share


@loop
def softmax_backward(a, ga, scale):
    """ga ← scale · a · (ga − Σ ga · a) over the last axis, in place: (R, N)."""
    scale = a.dtype.type(scale)
    for r in range(a.shape[0]):
        row, g = a[r], ga[r]
        total = a.dtype.type(0)
        for j in range(row.size):
            total += g[j] * row[j]
        for j in range(row.size):
            g[j] = scale * row[j] * (g[j] - total)


# ------------------------------------------------------------------------------------------------------ sums of arrays


@loop
def _move(part, total):
    """total ← total + part, part ← 0."""
    for d in range(part.size):
        total[d] += part[d]
        part[d] = 0


@loop
def sum_rows(x, out):
    """out = Σᵣ x[r]: (R, D) to (D)."""
    part, total = np.zeros_like(out), np.zeros(out.size)
    for r in range(x.shape[0]):
        for d in range(part.size):
            part[d] += x[r, d]
        if r % ROWS == ROWS - 1:
            _move(part, total)
    for d in range(out.size):
        out[d] = total[d] + part[d]


@loop
def add_bias(y, bias):
    """y ← y + bias, row by row: (R, D), (D)."""
    for r in range(y.shape[0]):
        for d in range(bias.size):
            y[r, d] += bias[d]


@loop
def square_sum(x):
    """Σ x², as a float64 and summed in float64."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


# ---------------------------------------------------------------------------------------------------------- layer norm


@inlined
def _norm_row(row, weight, bias, eps, out):
    """out = (row − mean) · rstd · weight + bias with rstd = 1/√(var + eps); return mean and rstd."""
    size = row.dtype.type(row.size)
    total = row.dtype.type(0)
    for d in range(row.size):
        total += row[d]
    centre = total / size
    total = row.dtype.type(0)
    for d in range(row.size):
        total += (row[d] - centre) * (row[d] - centre)
    scale = row.dtype.type(1) / math.sqrt(total / size + eps)
    for d in range(row.size):
        out[d] = (row[d] - centre) * scale * weight[d] + bias[d]
    return centre, scale


@loop
def layer_norm(x, weight, bias, eps, y, mean, rstd):
    """y = (x − mean) · rstd · weight + bias, rstd = 1/√(var + eps): x, y (R, D), weight, bias (D), mean, rstd (R)."""
    eps = x.dtype.type(eps)
    for r in range(x.shape[0]):
        mean[r], rstd[r] = _norm_row(x[r], weight, bias, eps, y[r])


@loop
def add_layer_norm(x, branch, weight, bias, eps, s, y, mean, rstd):
    """s = x + branch, and y the layer_norm of s, row by row while it is in the cache: as `layer_norm`, all (R, D)."""
    eps = x.dtype.type(eps)
    for r in range(x.shape[0]):
        for d in range(x.shape[1]):
            s[r, d] = x[r, d] + branch[r, d]
        mean[r], rstd[r] = _norm_row(s[r], weight, bias, eps, y[r])


@inlined
def _norm_row_backward(g, row, weight, centre, scale, out, part_weight, part_bias):
    """out = scale · (g·weight − mean(g·weight) − n · mean(g·weight·n)); g·n and g are added to the parts."""
    size = row.dtype.type(row.size)
    mean_g, mean_gn = row.dtype.type(0), row.dtype.type(0)
    for d in range(row.size):
        n = (row[d] - centre) * scale
        part_weight[d] += g[d] * n
        part_bias[d] += g[d]
        mean_g += g[d] * weight[d]
        mean_gn += g[d] * weight[d] * n
    mean_g /= size
    mean_gn /= size
    for d in range(row.size):
        out[d] = scale * (g[d] * weight[d] - mean_g - (row[d] - centre) * scale * mean_gn)


@loop
def layer_norm_backward(gs, gy, x, weight, mean, rstd, gx, gweight, gbias):
    """gx = gs + rstd · (g − mean g − n · mean(g·n)), gweight = Σ gy·n, gbias = Σ gy with g = gy · weight.

    gs is what comes to x beside its norm, (R, D); None where nothing does, which is compiled apart.
    """
    part_weight, part_bias = np.zeros_like(gweight), np.zeros_like(gbias)
    total_weight, total_bias = np.zeros(gweight.size), np.zeros(gbias.size)
    for r in range(x.shape[0]):
        _norm_row_backward(gy[r], x[r], weight, mean[r], rstd[r], gx[r], part_weight, part_bias)
        if gs is not None:
            for d in range(x.shape[1]):
                gx[r, d] += gs[r, d]
        if r % ROWS == ROWS - 1:
            _move(part_weight, total_weight)
            _move(part_bias, total_bias)
    for d in range(gweight.size):
        gweight[d] = total_weight[d] + part_weight[d]
        gbias[d] = total_bias[d] + part_bias[d]


# ---------------------------------------------------------------------------------------------------------- parameters


@as_written
def adamw(p, g, m, v, decay, lr, beta1, beta2, eps, correction1, correction2):
    """One step of AdamW, PyTorch's term for term: decay = lr · weight_decay, correctionᵢ = 1 − βᵢᵗ."""
    one = p.dtype.type
    keep, step, root = one(1 - decay), one(lr / correction1), one(1 / math.sqrt(correction2))
    share1, beta2, share2, eps = one(1 - beta1), one(beta2), one(1 - beta2), one(eps)
    for i in range(p.size):
        m[i] += share1 * (g[i] - m[i])
        v[i] = beta2 * v[i] + share2 * g[i] * g[i]
        p[i] = keep * p[i] - step * (m[i] / (math.sqrt(v[i]) * root + eps))


@as_written
def ema(shadow, p, share):
    """shadow ← shadow + share · (p − shadow)."""
    share = p.dtype.type(share)
    for i in range(p.size):
        shadow[i] += share * (p[i] - shadow[i])
