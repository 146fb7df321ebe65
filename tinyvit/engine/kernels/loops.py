"""The loops of the fused CPU kernels: each op in one pass over memory, compiled by Numba at its first call.

Every loop is written once for float32 and float64 and fills the C-contiguous arrays it is given. The arithmetic stays
in the arrays' dtype: a bare literal would be a float64, and promote a float32 loop to vectors half as long. Only Φ and
exp differ by dtype: in float32 they are arithmetic that vectorizes, in float64 the C library's functions.

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
"""Rows summed one after the other before their sum joins the total: rounding then grows as in a pairwise sum."""

# A loop vectorizes only where a sum may be taken in any order (reassoc), a zero division is no exception (error_model)
# and nothing raises. Neither nnan nor ninf: with them a NaN may come out as a number, and training looks for NaNs.
loop = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp", "afn"})
# For the steps of Φ and exp, whose order is their accuracy: reassoc would fold LN2's two parts into one.
formula = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


# ---------------------------------------------------------------------------------------------------------- Φ and exp


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


@formula
def _quintic(c, x):
    """c₀ + c₁x + … + c₅x⁵ by Horner's rule."""
    return ((((c[5] * x + c[4]) * x + c[3]) * x + c[2]) * x + c[1]) * x + c[0]


@formula
def _clamp(x, low, high):
    """x within [low, high]; a NaN, for which no comparison holds, stays a NaN."""
    x = low if x < low else x
    return high if x > high else x


@formula
def _exp_single(x):
    """exp x = 2ⁿ · exp r with x = n ln 2 + r, to 2e-7 of the value; 0 below −87.7 and ∞ above 88.4."""
    x = _clamp(x, LOWEST, HIGHEST)
    shifted = np.float32(x * LOG2E + ROUND)
    n = shifted - ROUND
    r = (x - n * LN2[0]) - n * LN2[1]
    power = np.int32(shifted.view(np.int32) << 23).view(np.float32)  # 2ⁿ: its exponent field is n + 127
    return _quintic(E, r) * power


@formula
def _normal_single(x):
    """Φ(x), the normal distribution, to 3e-7; 0 and 1 exactly beyond ±EDGE."""
    square = x * x
    y = HALF + x * (_quintic(P, square) / _quintic(Q, square))
    y = ZERO if x < -EDGE else y
    return ONE if x > EDGE else y


def _exp(x):
    """exp x in x's own dtype."""


def _normal(x):
    """Φ(x) = ½(1 + erf(x/√2)) in x's own dtype."""


@overload(_exp)
def _exp_of(x):
    return (lambda x: _exp_single(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(_normal)
def _normal_of(x):
    if x == types.float32:
        return lambda x: _normal_single(x)
    return lambda x: 0.5 * (1.0 + math.erf(x * math.sqrt(0.5)))


# --------------------------------------------------------------------------------------------------------------- gelu


@loop
def _gelu_slope(x):
    """Φ(x) + x · Φ′(x), Φ′(x) = exp(−x²/2)/√(2π)."""
    one = type(x)
    return _normal(x) + x * (one(1 / math.sqrt(2 * math.pi)) * _exp(one(-0.5) * x * x))


@loop
def gelu(x, y):
    """y = x · Φ(x); y may be x."""
    for i in range(x.size):
        y[i] = x[i] * _normal(x[i])


@loop
def gelu_backward(x, gy, gx):
    """gx = gy · (Φ(x) + x · Φ′(x)); gx may be gy."""
    for i in range(x.size):
        gx[i] = gy[i] * _gelu_slope(x[i])


@loop
def gelu_both(x, gy, y, gx):
    """y = x · Φ(x) and gx = gy · (Φ(x) + x · Φ′(x)) in one pass; y may be x, and gx may be gy."""
    one = x.dtype.type
    for i in range(x.size):
        t = x[i]
        gate = _normal(t)
        slope = gate + t * (one(1 / math.sqrt(2 * math.pi)) * _exp(one(-0.5) * t * t))
        y[i] = t * gate
        gx[i] = gy[i] * slope


# ------------------------------------------------------------------------------------------------------------ softmax


@loop
def softmax(a, scale):
    """a ← softmax(scale · a) over the last axis, in place: (R, N)."""
    scale = a.dtype.type(scale)
    for r in range(a.shape[0]):
        row = a[r]
        top = scale * row[0]
        for j in range(row.size):
            top = max(top, scale * row[j])
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


# --------------------------------------------------------------------------------------------------------- layer norm


@loop
def layer_norm(x, weight, bias, eps, y, mean, rstd):
    """y = (x − mean) · rstd · weight + bias, rstd = 1/√(var + eps): x, y (R, D), weight, bias (D), mean, rstd (R)."""
    size = x.dtype.type(x.shape[1])
    eps = x.dtype.type(eps)
    for r in range(x.shape[0]):
        row, out = x[r], y[r]
        total = x.dtype.type(0)
        for d in range(row.size):
            total += row[d]
        centre = total / size
        total = x.dtype.type(0)
        for d in range(row.size):
            total += (row[d] - centre) * (row[d] - centre)
        scale = x.dtype.type(1) / math.sqrt(total / size + eps)
        for d in range(row.size):
            out[d] = (row[d] - centre) * scale * weight[d] + bias[d]
        mean[r] = centre
        rstd[r] = scale


@loop
def layer_norm_backward(gy, x, weight, mean, rstd, gx, gweight, gbias):
    """gx = rstd · (g − mean g − n · mean(g·n)), gweight = Σ gy·n, gbias = Σ gy with g = gy · weight; gx may be gy."""
    size = x.dtype.type(x.shape[1])
    part_weight, part_bias = np.empty_like(gweight), np.empty_like(gbias)
    gweight[:] = 0
    gbias[:] = 0
    for start in range(0, x.shape[0], ROWS):
        part_weight[:] = 0
        part_bias[:] = 0
        for r in range(start, min(start + ROWS, x.shape[0])):
            row, g, out = x[r], gy[r], gx[r]
            centre, scale = mean[r], rstd[r]
            total = x.dtype.type(0)
            total_normed = x.dtype.type(0)
            for d in range(row.size):
                normed = (row[d] - centre) * scale
                part_weight[d] += g[d] * normed
                part_bias[d] += g[d]
                total += g[d] * weight[d]
                total_normed += g[d] * weight[d] * normed
            for d in range(row.size):
                normed = (row[d] - centre) * scale
                out[d] = scale * (g[d] * weight[d] - total / size - normed * (total_normed / size))
        for d in range(gweight.size):
            gweight[d] += part_weight[d]
            gbias[d] += part_bias[d]


# --------------------------------------------------------------------------------------------------- sums of arrays


@loop
def sum_rows(x, out):
    """out = Σᵣ x[r]: (R, D) to (D)."""
    part = np.empty_like(out)
    out[:] = 0
    for start in range(0, x.shape[0], ROWS):
        part[:] = 0
        for r in range(start, min(start + ROWS, x.shape[0])):
            for d in range(part.size):
                part[d] += x[r, d]
        for d in range(part.size):
            out[d] += part[d]


@loop
def add_bias(y, bias):
    """y ← y + bias, row by row: (R, D), (D)."""
    for r in range(y.shape[0]):
        for d in range(bias.size):
            y[r, d] += bias[d]


@loop
def add(a, b, out):
    """out = a + b; out may be a or b."""
    for i in range(out.size):
        out[i] = a[i] + b[i]


@loop
def accumulate(total, part):
    """total ← total + part."""
    for i in range(total.size):
        total[i] += part[i]


@loop
def square_sum(x):
    """Σ x², as a float64 and summed in float64."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


# --------------------------------------------------------------------------------------------------------- parameters


@loop
def adamw(p, g, m, v, decay, lr, beta1, beta2, eps, correction1, correction2, gscale):
    """One step of AdamW, term for term PyTorch's; decay = lr · weight_decay, correctionᵢ = 1 − βᵢᵗ, and gscale · g is g."""
    one = p.dtype.type
    keep, step, root = one(1 - decay), one(lr / correction1), one(1 / math.sqrt(correction2))
    share1, beta2, share2, eps, gscale = one(1 - beta1), one(beta2), one(1 - beta2), one(eps), one(gscale)
    for i in range(p.size):
        t = gscale * g[i]
        m[i] += share1 * (t - m[i])
        v[i] = beta2 * v[i] + share2 * t * t
        p[i] = keep * p[i] - step * (m[i] / (math.sqrt(v[i]) * root + eps))


@loop
def ema(shadow, p, share):
    """shadow ← shadow + share · (p − shadow)."""
    share = p.dtype.type(share)
    for i in range(p.size):
        shadow[i] += share * (p[i] - shadow[i])
