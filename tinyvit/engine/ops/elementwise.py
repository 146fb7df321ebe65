"""Elementwise ops: one number in, one number out, broadcast as NumPy does.

Where a derivative does not exist the rule states its choice: |x| and relu have slope 0 at 0; where both arguments of
maximum or minimum are equal, each gets half; clip passes the gradient on at its bounds.
"""

from __future__ import annotations

import math
from typing import Any

from tinyvit.engine.primitive import primitive

# ---------------------------------------------------------------------------------------------------------- arithmetic


@primitive
def add(xp, a, b):
    """a + b."""
    return xp.add(a, b)


add.gradients(
    a=lambda F, gy: gy,
    b=lambda F, gy: gy,
)


@primitive
def subtract(xp, a, b):
    """a − b."""
    return xp.subtract(a, b)


subtract.gradients(
    a=lambda F, gy: gy,
    b=lambda F, gy: -gy,
)


@primitive
def multiply(xp, a, b):
    """a · b."""
    return xp.multiply(a, b)


multiply.gradients(
    a=lambda F, gy, b: gy * b,
    b=lambda F, gy, a: gy * a,
)


@primitive
def divide(xp, a, b):
    """a / b."""
    return xp.divide(a, b)


divide.gradients(
    a=lambda F, gy, b: gy / b,
    b=lambda F, gy, y, b: -gy * y / b,  # ∂(a/b)/∂b = −a/b² = −y/b
)


@primitive
def negative(xp, x):
    """−x."""
    return xp.negative(x)


negative.gradients(x=lambda F, gy: -gy)


@primitive
def power(xp, a, b):
    """aᵇ. The gradient of b is 0 where a is 0, and that of a is 0 where b is 0."""
    return a**b  # the operator, for NumPy has faster loops for the exponents 2, 0.5 and −1 there


def _power_base(F, gy, a, b):
    """b · aᵇ⁻¹; where both are 0 the power is constant, and 0 · 0⁻¹ must not make it NaN."""
    if isinstance(b, (int, float)):
        return gy * (b * a ** (b - 1)) if b else F.zeros_like(gy)
    return gy * b * a ** F.where((a == 0) & (b == 0), 1, b - 1)


def _power_exponent(F, gy, y, a):
    """aᵇ · log a; where a is 0 the power stays 0."""
    if isinstance(a, (int, float)):
        return gy * (y * (math.log(a) if a > 0 else math.nan)) if a else F.zeros_like(gy)
    return gy * F.where(a == 0, 0, y) * F.log(F.where(a == 0, 1.0, a))


power.gradients(a=_power_base, b=_power_exponent)


@primitive
def square(xp, x):
    """x²."""
    return xp.square(x)


square.gradients(x=lambda F, gy, x: gy * (2 * x))

# ----------------------------------------------------------------------------------------------------------- functions


@primitive
def exp(xp, x):
    """eˣ."""
    return xp.exp(x)


exp.gradients(x=lambda F, gy, y: gy * y)


@primitive
def log(xp, x):
    """Natural logarithm."""
    return xp.log(x)


log.gradients(x=lambda F, gy, x: gy / x)


@primitive
def log1p(xp, x):
    """log(1 + x), exact for small x."""
    return xp.log1p(x)


log1p.gradients(x=lambda F, gy, x: gy / (1 + x))


@primitive
def sqrt(xp, x):
    """√x; the slope at 0 is infinite."""
    return xp.sqrt(x)


sqrt.gradients(x=lambda F, gy, y: gy / (2 * y))


@primitive
def sin(xp, x):
    """Sine of an angle in radians."""
    return xp.sin(x)


sin.gradients(x=lambda F, gy, x: gy * F.cos(x))


@primitive
def cos(xp, x):
    """Cosine of an angle in radians."""
    return xp.cos(x)


cos.gradients(x=lambda F, gy, x: -gy * F.sin(x))


@primitive
def tanh(xp, x):
    """Hyperbolic tangent."""
    return xp.tanh(x)


tanh.gradients(x=lambda F, gy, y: gy * (1 - y * y))


@primitive
def erf(xp, x):
    """Error function 2/√π ∫₀ˣ exp(−t²) dt."""
    return xp.erf(x)


erf.gradients(x=lambda F, gy, x: gy * (2 / math.sqrt(math.pi) * F.exp(-x * x)))


# --------------------------------------------------------------------------------------------------- kinks and choices


@primitive
def sign(xp, x):
    """−1, 0 or 1."""
    return xp.sign(x)


sign.gradients(x=lambda F, gy: F.zeros_like(gy))


@primitive
def abs(xp, x):
    """|x|; slope 0 at 0."""
    return xp.abs(x)


abs.gradients(x=lambda F, gy, x: gy * F.sign(x))


def _share(F, gy, chosen, tied):
    """All of gy where chosen, half of it where tied, else nothing."""
    return F.where(tied, gy / 2, F.where(chosen, gy, 0))


@primitive
def maximum(xp, a, b):
    """The larger of a and b; NaN if either is. Equal arguments share the gradient."""
    return xp.maximum(a, b)


maximum.gradients(
    a=lambda F, gy, a, b: _share(F, gy, a > b, a == b),
    b=lambda F, gy, a, b: _share(F, gy, b > a, a == b),
)


@primitive
def minimum(xp, a, b):
    """The smaller of a and b; NaN if either is. Equal arguments share the gradient."""
    return xp.minimum(a, b)


minimum.gradients(
    a=lambda F, gy, a, b: _share(F, gy, a < b, a == b),
    b=lambda F, gy, a, b: _share(F, gy, b < a, a == b),
)


@primitive
def clip(xp, x, min=None, max=None):
    """x, but not below `min` nor above `max` (numbers or arrays that carry no gradient; None: no bound)."""
    return xp.clip(x, min, max)


def _clip_rule(F, gy, x, min, max):
    """Pass the gradient on inside the bounds, and on them."""
    if min is not None:
        gy = F.where(x >= min, gy, 0)
    if max is not None:
        gy = F.where(x <= max, gy, 0)
    return gy


clip.gradients(x=_clip_rule)


@primitive
def where(xp, condition, a, b):
    """`a` where the condition holds, else `b`."""
    return xp.where(xp.asarray(condition), a, b)


where.gradients(
    a=lambda F, gy, condition: F.where(condition, gy, 0),
    b=lambda F, gy, condition: F.where(condition, 0, gy),
)


@primitive
def astype(xp, x, dtype):
    """The same values in another dtype."""
    return x.astype(dtype)


astype.gradients(x=lambda F, gy: gy)  # the engine casts every gradient to the dtype of its value


@primitive
def to_device(xp, x, device):
    """The same values on "cpu" or "gpu"."""
    return xp.to_device(x, device), xp.device


to_device.gradients(x=lambda F, gy, residue: F.to_device(gy, residue))  # back to where the value came from


# ------------------------------------------------------------------------------------ constants: no gradient


@primitive
def zeros_like(xp, x):
    """Zeros of x's shape, dtype and device."""
    return xp.zeros_like(x)


zeros_like.gradients(x=lambda F, gy: F.zeros_like(gy))


def _comparison(name: str, meaning: str) -> Any:
    def forward(xp, a, b):
        return getattr(xp, name)(a, b)

    forward.__name__ = name
    forward.__doc__ = f"{meaning}, elementwise: bools (bit by bit for integers in and, or), which carry no gradient."
    return primitive(forward)


less = _comparison("less", "a < b")
less_equal = _comparison("less_equal", "a ≤ b")
greater = _comparison("greater", "a > b")
greater_equal = _comparison("greater_equal", "a ≥ b")
equal = _comparison("equal", "a = b")
not_equal = _comparison("not_equal", "a ≠ b")
bitwise_and = _comparison("bitwise_and", "a and b")
bitwise_or = _comparison("bitwise_or", "a or b")


@primitive
def invert(xp, x):
    """Not x, elementwise; for integers, bit by bit."""
    return xp.invert(x)


@primitive
def isfinite(xp, x):
    """Neither infinite nor NaN, elementwise."""
    return xp.isfinite(x)
