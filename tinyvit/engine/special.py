"""The error function, which NumPy lacks and GELU needs.

The coefficients are fits of our own, checked in the tests against SciPy: to 4.5e-16 of the value in float64, and to
5e-7 in float32.
"""

from typing import Any

import numpy as np

# float64, |x| < 1: erf(x) = x · P(x²)
CENTRE = (
    1.1283791670955126, -0.37612638903183543, 0.11283791670945006, -0.02686617064323777,
    0.0052239776071164225, -0.0008548325975389692, 0.00012055294904839707, -1.492473690741966e-05,
    1.6447424703317362e-06, -1.6208483801871705e-07, 1.3720064546777686e-08, -7.795898827002142e-10,
)  # fmt: skip
# float64, 1 ≤ x ≤ 6: erf(x) = 1 − exp(−x²) · Q(t), t = (x − 2)/(x + 2)
TAIL = (
    0.2553956763105057, -0.4271858474139585, 0.24165819424248763, -0.07897858101571269,
    0.0037328924016564484, 0.006997461739200575, -0.0008471431229415333, -0.0009819771114740715,
    4.355265359817883e-05, 0.00017436477257256738, 2.7560352756678313e-05, -2.7640727821912852e-05,
    -1.4166339069117108e-05, 1.859427387429402e-06, 4.146302183268488e-06, -2.22812957637235e-07,
)  # fmt: skip
# float32: erf(x) = x · P(x²)/Q(x²) for |x| ≤ SATURATED, where the quotient gives 1 to the last bit, as erf does
SATURATED = np.float32(3.9626408)
NUMERATOR = (
    1.1283791461431405, 0.19040679931667712, 0.05274877039778655,
    0.003765630799164983, 0.0002848829441211368, 2.0500841981562553e-06,
)  # fmt: skip
DENOMINATOR = (
    1.0, 0.5020763733469312, 0.11410925164418925,
    0.01496924620162215, 0.001162538592297981, 3.809169310433208e-05,
)  # fmt: skip


def erf(x: Any) -> Any:
    """2/√π ∫₀ˣ exp(−t²) dt of a NumPy array, in its own dtype (integers as float64; float16 by way of float32).

    >>> erf(np.array([0.0, 1.0])).round(6).tolist()
    [0.0, 0.842701]
    """
    x = np.asarray(x)
    if x.dtype == np.float16:
        return _erf_single(x.astype(np.float32)).astype(np.float16)
    if x.dtype == np.float32:
        return _erf_single(x)
    return _erf_double(x.astype(np.float64, copy=False))


def _erf_single(x: Any) -> Any:
    x = np.clip(x, -SATURATED, SATURATED)
    square = x * x
    ratio = _polynomial(NUMERATOR, square)
    ratio /= _polynomial(DENOMINATOR, square)
    ratio *= x
    return ratio


def _erf_double(x: Any) -> Any:
    size = np.minimum(np.abs(x), 6.0)  # erf(6) is 1 in float64
    centre = size * _polynomial(CENTRE, np.minimum(size, 1.0) ** 2)
    outer = np.maximum(size, 1.0)
    tail = 1.0 - np.exp(-outer * outer) * _polynomial(TAIL, (outer - 2.0) / (outer + 2.0))
    return np.copysign(np.where(size < 1.0, centre, tail), x)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Horner's rule, in place: c₀ + c₁x + c₂x² + …"""
    total = x * x.dtype.type(coefficients[-1])
    for c in coefficients[-2:0:-1]:
        total += x.dtype.type(c)
        total *= x
    total += x.dtype.type(coefficients[0])
    return total
