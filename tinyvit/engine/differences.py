"""Slopes measured without any rule: five-point differences, which know a kink when they meet one, and the complex step.

Both take a curve φ: a function of one number t whose values are a vector, and measure φ′(0).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Curve = Callable[[complex], np.ndarray]

SHRINK = 8.0  # each round measures with a step so much smaller
ROUNDS = 9  # from a step of 1e-3 down to 6e-11
LASTING = 3  # in how many rounds on end left and right must differ by as much, to be a kink


class NotAnalyticError(ValueError):
    """A function that cannot be computed with complex numbers, or is another function there."""


@dataclass(frozen=True)
class Slopes:
    """The measured φ′(0), component by component.

    Attributes:
        value: the slope.
        uncertainty: by how much two step sizes disagree about it; infinite where they never settled.
        left, right: the one-sided slopes, at the smallest step that was taken; −∞ and ∞ where φ jumps.
        kink: where left and right differ however small the step, or φ jumps: no slope exists.
    """

    value: np.ndarray
    uncertainty: np.ndarray
    left: np.ndarray
    right: np.ndarray
    kink: np.ndarray


@dataclass(frozen=True)
class _Stencil:
    """What φ(−2h), φ(−h), φ(0), φ(h), φ(2h) tell."""

    central: np.ndarray  # error O(h⁴)
    left: np.ndarray  # error O(h²), and the same at first order as right's
    right: np.ndarray
    noise: np.ndarray  # what rounding of φ can do to a slope
    jump: np.ndarray  # what a jump of a millionth of φ does to one

    @property
    def gap(self) -> np.ndarray:
        """How far the one-sided slopes differ: O(h³) where φ is smooth, O(1) at a kink."""
        return np.abs(self.right - self.left)


def _stencil(curve: Curve, here: np.ndarray, h: float) -> _Stencil:
    below2, below, above, above2 = (curve(t * h) for t in (-2, -1, 1, 2))
    size = np.max(np.abs([below2, below, here, above, above2]), axis=0)
    return _Stencil(
        central=(8 * (above - below) - (above2 - below2)) / (12 * h),
        left=(3 * here - 4 * below + below2) / (2 * h),
        right=(-3 * here + 4 * above - above2) / (2 * h),
        noise=16 * np.finfo(float).eps * size / h,
        jump=1e-6 * size / h,
    )


def five_point(curve: Curve, step: float, rtol: float, atol: float) -> Slopes:
    """Measure φ′(0), with steps that shrink until two of them agree to a tenth of atol + rtol · |slope|.

    A step that reaches over a kink, a pole or the end of φ's domain disagrees with the next one, and is given up.

    >>> found = five_point(lambda t: np.array([np.exp(t), abs(t), abs(t - 1e-4)]), 1e-3, 1e-9, 1e-9)
    >>> found.value.round(9).tolist(), found.kink.tolist()
    ([1.0, nan, -1.0], [False, True, False])
    >>> found.left[1].item(), found.right[1].item()
    (-1.0, 1.0)
    """
    with np.errstate(all="ignore"):
        here = curve(0.0)
        value, uncertainty = np.full(here.shape, np.nan), np.full(here.shape, np.inf)
        lasting = longest = np.zeros(here.shape, int)
        fine = _stencil(curve, here, step)
        left, right = fine.left, fine.right
        for k in range(1, ROUNDS):
            coarse, fine = fine, _stencil(curve, here, step / SHRINK**k)
            change = np.abs(fine.central - coarse.central)
            # a smooth φ closes the gap 512-fold, a noisy one opens it 8-fold; at a kink it stays
            kinked = (fine.gap > np.maximum(coarse.gap / 2, fine.noise)) & (fine.gap < 2 * coarse.gap)
            lasting = np.where(kinked, lasting + 1, 0)
            seen = (lasting == LASTING) & (longest < LASTING)  # smaller steps would only add rounding
            left, right = np.where(seen, fine.left, left), np.where(seen, fine.right, right)
            longest = np.maximum(longest, lasting)
            rounding = change <= fine.noise  # then the larger step is the better one
            # where φ(h) rounds to φ(0) all agree on 0, which is no agreement: no slope is surer than its noise
            doubt = np.maximum(change, np.where(rounding, coarse.noise, fine.noise) / 16)
            # steps that reach past a narrow peak agree on 0 too, but the peak itself stands up: the gap opens
            missed = (fine.gap > 2 * coarse.gap) & (fine.gap > np.maximum(fine.noise, np.abs(fine.central) + atol))
            better = ~kinked & ~missed & (doubt < uncertainty)
            value = np.where(better, np.where(rounding, coarse.central, fine.central), value)
            uncertainty = np.where(better, doubt, uncertainty)
            if np.all(uncertainty <= (atol + rtol * np.abs(value)) / 10):
                break
        unsettled = ~(uncertainty <= (atol + rtol * np.abs(value)) / 10)
        growth = np.maximum(1.5 * np.abs(coarse.central), fine.jump)
        jump = unsettled & ~(np.abs(fine.central) <= growth)  # the slope has no end, or is not a number
        kink = jump | (unsettled & (longest >= LASTING))
        left, right = np.where(jump, -np.inf, left), np.where(jump, np.inf, right)
        return Slopes(np.where(kink, np.nan, value), uncertainty, left, right, kink)


def complex_step(curve: Curve) -> Slopes:
    """Measure φ′(0) = Im φ(ih) / h, where nothing cancels: right to the last digits.

    Source: Squire & Trapp 1998. It holds for analytic φ only, and that is tested: along the real axis the slope must be
    the same.

    Raises:
        NotAnalyticError: φ drops the imaginary part, takes no complex numbers, or is not analytic.

    >>> complex_step(lambda t: np.exp([t])).value.item()
    1.0
    >>> complex_step(lambda t: np.abs([1 + t]))
    Traceback (most recent call last):
    ...
    tinyvit.engine.differences.NotAnalyticError: the result of complex numbers is real
    """
    h = 1e-30
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        try:
            along = curve(1j * h)
        except (TypeError, ValueError, np.exceptions.ComplexWarning) as error:
            raise NotAnalyticError(f"no complex numbers: {error}") from error
    if along.dtype.kind != "c" and along.size:
        raise NotAnalyticError("the result of complex numbers is real")
    value = along.imag / h
    real = five_point(curve, 1e-3, 1e-6, 1e-6)
    if not np.allclose(value, real.value, rtol=1e-5, atol=1e-5):
        raise NotAnalyticError("not analytic: slopes along the real and the imaginary axis differ")
    exact = np.abs(value) * np.finfo(float).eps
    return Slopes(value, exact, value, value, np.zeros(value.shape, bool))
