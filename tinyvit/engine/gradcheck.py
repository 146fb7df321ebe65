"""The judge: `gradcheck` and `gradgradcheck` raise when a backward rule is not the slope of its function.

What they compare is found in `findings`, and measured in `differences`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinyvit.engine.findings import (
    Finding,
    GradcheckError,
    findings,
    gradient_of,
    input_name,
    name_of,
    recorded_findings,
)
from tinyvit.engine.tensor import Tensor


def gradcheck(
    f: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-3,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    seed: int = 0,
    method: str = "auto",
    complex_steps: bool = False,
    kinks: str = "raise",
) -> None:
    """Raise unless the gradients of f are its slopes, measured by five-point differences.

    Args:
        f: takes the inputs and returns a Tensor or several; must give the same values when called again. A layer is
            checked with all its parameters by `gradcheck(lambda x, *_: layer(x), [x, *layer.parameters()])`.
        inputs: float64 Tensors of any shape; those with requires_grad are checked.
        eps: the first and largest step, in units of max(1, |x|); it shrinks until two steps agree.
        rtol, atol: |analytic − measured| may be atol + rtol · |measured| (along projections atol · √results · ‖u‖ +
            rtol · |measured|, at a kink 1e-5).
        seed: of the random cotangents and directions.
        method: "jacobian", every element of ∂y/∂x; "projections", probes of ∂(v · y)/∂x for a random v, along random
            directions and at random elements; "auto", the Jacobian up to 4,096 elements in all.
        complex_steps: measure by complex steps instead, to the last digits; f must be analytic, and its forward take
            complex arrays.
        kinks: "raise" where a slope does not exist (relu at 0), so that nothing passes by luck; "allow": in a Jacobian
            any value between the slopes on its two sides is good, along projections what stands off the kinks counts.

    Raises:
        GradcheckError: with the input, the worst element, its two values and the tolerance.
        TypeError: an input or a result is not float64, or no input requires a gradient; in float32 differences are
            mostly noise.
        ValueError: a tolerance below 0, or another setting that there is not.
        NotAnalyticError: complex steps are asked for, and f is not analytic.

    Source: five-point differences, Abramowitz & Stegun 25.3.6; the complex step, Squire & Trapp 1998.

    >>> import numpy as np, tinyvit as tv
    >>> x = tv.tensor(np.array([0.5, 2.0]), requires_grad=True)
    >>> tv.gradcheck(tv.ops.log, [x])
    >>> tv.gradcheck(tv.ops.relu, [x * 0.0])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    tinyvit.engine.findings.GradcheckError: relu has no slope by input 0 at element (0,), for element (0,) of...
    """
    if kinks not in ("raise", "allow"):
        raise ValueError(f"gradcheck: kinks is 'raise' or 'allow', not {kinks!r}")
    for finding in findings(
        f, inputs, eps=eps, rtol=rtol, atol=atol, seed=seed, method=method, complex_steps=complex_steps
    ):
        by = input_name(f, finding.input)
        if finding.failed:
            raise GradcheckError(_message(name_of(f), by, finding))
        if finding.kinks and kinks == "raise":
            raise GradcheckError(
                f"{name_of(f)} has no slope by {by} at {finding.where}: {finding.note}; the rule gives "
                f"{finding.given:.10g}. Move the input off the kink, or allow it with kinks='allow'"
            )


def gradgradcheck(f: Callable[..., Any], inputs: Tensor | Sequence[Tensor], **settings: Any) -> None:
    """Raise unless the second derivatives of f are right: `gradcheck` of its gradient, along random cotangents.

    Checked besides: that a recorded sweep gives the gradient that an ordinary one gives. Arguments and errors are those
    of `gradcheck`, without `complex_steps`.

    >>> import numpy as np, tinyvit as tv
    >>> x = tv.tensor(np.array([0.5, 2.0]), requires_grad=True)
    >>> tv.gradgradcheck(tv.ops.log, [x])
    """
    if settings.get("complex_steps"):
        raise ValueError("gradgradcheck: complex steps are for gradcheck; a sweep computes with real numbers")
    gradient, arguments = gradient_of(f, inputs, settings.get("seed", 0))
    for finding in recorded_findings(gradient, arguments):
        if finding.failed:
            name = f"{name_of(f)}, an ordinary sweep beside a recorded one"
            raise GradcheckError(_message(name, f"input {finding.input}", finding))
    gradcheck(gradient, arguments, **settings)


def _message(name: str, by: str, finding: Finding) -> str:
    if finding.method == "linearity":
        return (
            f"{name}: the gradient of {by} is not linear in the gradient of the result, as "
            f"a rule must be: at {finding.where} it is {finding.given:.10g} for a sum, and {finding.measured:.10g} "
            "summed over its terms"
        )
    elements = {"jacobian": "elements of the Jacobian", "projections": "probes"}.get(finding.method, "elements")
    return (
        f"{name}: the gradient of {by} is wrong at {finding.where}: the rule gives "
        f"{finding.given:.10g}, {_JUDGES.get(finding.method, 'differences give')} {finding.measured:.10g} "
        f"(tolerance {finding.tolerance:.2g}; {finding.failed} of {finding.elements} {elements} fail)"
        + (f"; {finding.note}" if finding.note else "")
    )


_JUDGES = {"recorded sweep": "the recorded sweep gives"}
