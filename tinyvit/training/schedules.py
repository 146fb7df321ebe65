"""Learning-rate schedules: plain functions of the step, with no state to save.

Each function here takes the shape of a schedule and returns `lr(step)`, the step size of update number
`step`, counted from 0. A run that resumes at step 1000 asks for `lr(1000)`, and that is all.

All begin with the same linear warm-up: lr(step) = peak · (step + 1) / warmup while step < warmup. It is
above 0 at step 0 (no update is wasted) and reaches the peak at step warmup − 1.
Source: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.

Units: steps are optimizer updates, not epochs. All raise ValueError for settings that make no schedule, and
`lr` raises it for a negative step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tinyvit.training.optim import require

Schedule: TypeAlias = Callable[[int], float]
"""lr(step): the step size of update `step` = 0, 1, 2, ..."""


def constant(peak: float, warmup: int = 0) -> Schedule:
    """Warm up over `warmup` steps, then stay at `peak`.

    >>> lr = constant(0.4, warmup=4)
    >>> [lr(step) for step in (0, 1, 2, 3, 4, 1000)]
    [0.1, 0.2, 0.3..., 0.4, 0.4, 0.4]
    """
    return _warmed_up(lambda step: peak, peak, warmup)


def cosine(peak: float, total: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Warm up over `warmup` steps, then fall along half a cosine to `floor` at step `total`, and stay.

        lr(step) = floor + (peak − floor) · (1 + cos πt) / 2,    t = (step − warmup) / (total − warmup)

    A training of `total` steps ends with lr(total − 1), a little above the floor.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017,
    equation 5, without the restarts.

    >>> lr = cosine(1.0, total=110, warmup=10, floor=0.1)
    >>> [round(lr(step), 4) for step in (0, 9, 10, 60, 109, 110, 10**6)]
    [0.1, 1.0, 1.0, 0.55, 0.1002, 0.1, 0.1]
    """
    require(0 <= floor <= peak, "floor", floor, f"from 0 to the peak, {peak!r}")
    require(total > warmup, "total", total, f"more than the {warmup!r} steps of the warm-up")

    def half_cosine(step: int) -> float:
        if step >= total:
            return floor
        t = (step - warmup) / (total - warmup)
        return floor + (peak - floor) * (1 + math.cos(math.pi * t)) / 2

    return _warmed_up(half_cosine, peak, warmup)


def step_decay(peak: float, milestones: Sequence[int], gamma: float = 0.1, warmup: int = 0) -> Schedule:
    """Warm up over `warmup` steps, then stay at `peak`, multiplied by `gamma` at each milestone.

        lr(step) = peak · gammaⁿ,    n = the number of milestones ≤ step

    Source: He et al., "Deep residual learning for image recognition", 2016, section 3.4 (there a division
    by 10 at each of two milestones).

    >>> lr = step_decay(0.5, milestones=[100, 150], gamma=0.5)
    >>> [lr(step) for step in (0, 99, 100, 149, 150, 1000)]
    [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    """
    ends = list(milestones)
    require(ends == sorted(set(ends)), "milestones", ends, "a list of steps in increasing order")
    require(not ends or ends[0] >= warmup, "milestones", ends, f"after the {warmup!r} steps of the warm-up")
    require(0 < gamma <= 1, "gamma", gamma, "above 0 and at most 1")
    return _warmed_up(lambda step: peak * gamma ** bisect_right(ends, step), peak, warmup)


SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant, "cosine": cosine, "step": step_decay}
"""The schedules by the name that a config gives them."""


def _warmed_up(after: Schedule, peak: float, warmup: int) -> Schedule:
    """Put the warm-up before `after`, which is asked for steps ≥ warmup only."""
    require(0 <= peak < math.inf, "peak", peak, "at least 0, and finite")
    require(warmup >= 0, "warmup", warmup, "at least 0")

    def lr(step: int) -> float:
        require(step >= 0, "step", step, "at least 0")
        return peak * ((step + 1) / warmup) if step < warmup else after(step)

    return lr
