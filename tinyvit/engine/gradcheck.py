"""The judge: a backward rule against finite differences.

A function y = f(x) with many results is checked along a random cotangent v: the gradient of ⟨v, f(x)⟩ that the rules
give is compared, element by element, with central differences. A sum of the results would not do: softmax and
layer_norm have a zero gradient under it, and a rule that returns zeros would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyvit.engine.tape import enable_grad, no_grad
from tinyvit.engine.tensor import Tensor, grad, tensor


class GradcheckError(AssertionError):
    """A gradient that is not the slope of its function."""


def gradcheck(
    f: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    seed: int = 0,
) -> None:
    """Raise unless the gradients of f agree with central differences (f(x + eps) − f(x − eps)) / 2 eps.

    Args:
        f: takes the inputs and returns a Tensor or several; must give the same values when called again.
        inputs: float64 Tensors; those with requires_grad are checked.
        eps: step of the difference, in the units of the input.
        rtol, atol: |analytic − numeric| may be atol + rtol · |numeric|, where the numeric value is scaled by the
            cotangent, whose elements are of order 1.
        seed: of the random cotangent.

    Raises:
        GradcheckError: with the input, the worst element, its two values and the tolerance.
        TypeError: an input is not float64, or none requires a gradient; in float32 differences are mostly noise.

    >>> import numpy as np, tinyvit as tv
    >>> x = tv.tensor(np.array([0.5, 2.0]), requires_grad=True)
    >>> tv.gradcheck(tv.ops.log, [x])
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = _active(inputs)
    if wrong := [i for i in checked if inputs[i].dtype != np.float64]:
        raise TypeError(f"gradcheck: input {wrong[0]} is {inputs[wrong[0]].dtype}; differences need float64")
    outputs = _several(f(*inputs))
    if not any(y.dtype.kind == "f" for y in outputs):
        raise TypeError(f"gradcheck: {_name(f)} gives {outputs[0].dtype}, which has no slope to check")
    rng = np.random.default_rng(seed)
    cotangents = [tensor(rng.standard_normal(y.shape), dtype=y.dtype, device=y.device) for y in outputs]
    analytic = grad(outputs, [inputs[i] for i in checked], cotangents, allow_unused=True)

    def along_cotangents() -> float:
        with no_grad():
            ys = _several(f(*inputs))
            return sum(float((y.data.astype(np.float64) * v.data).sum()) for y, v in zip(ys, cotangents, strict=True))

    for i, gradient in zip(checked, analytic, strict=True):
        numeric = _central_differences(along_cotangents, inputs[i], eps)
        given = np.zeros_like(numeric) if gradient is None else gradient.numpy()
        _compare(_name(f), i, given, numeric, rtol, atol)


def gradgradcheck(f: Callable[..., Any], inputs: Tensor | Sequence[Tensor], **settings: Any) -> None:
    """Raise unless the second derivatives of f are right: `gradcheck` of its gradient, along random cotangents.

    Arguments and errors are those of `gradcheck`.

    >>> import numpy as np, tinyvit as tv
    >>> x = tv.tensor(np.array([0.5, 2.0]), requires_grad=True)
    >>> tv.gradgradcheck(tv.ops.log, [x])
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    active = _active(inputs)
    rng = np.random.default_rng(settings.get("seed", 0) + 1)
    cotangents = [
        tensor(rng.standard_normal(y.shape), device=y.device, requires_grad=True) for y in _several(f(*inputs))
    ]

    def sweep(*arguments: Tensor, recorded: bool = True) -> list[Any]:
        primals, vs = arguments[: len(inputs)], arguments[len(inputs) :]
        with enable_grad():
            outputs = _several(f(*primals))
        return grad(outputs, [primals[i] for i in active], list(vs), create_graph=recorded, allow_unused=True)

    def gradient(*arguments: Tensor) -> list[Tensor]:
        return [g for g in sweep(*arguments) if g is not None]

    gradient.__name__ = f"the gradient of {_name(f)}"
    arguments = [*inputs, *cotangents]
    for i, g, h in zip(active, sweep(*arguments, recorded=False), sweep(*arguments), strict=True):
        if g is not None or h is not None:  # a fused op's own rule, and its twin's
            given, wanted = (np.zeros(inputs[i].shape) if x is None else x.numpy() for x in (g, h))
            _compare(f"{_name(f)}, an ordinary sweep beside a recorded one", i, given, wanted, 1e-8, 1e-10)
    gradcheck(gradient, arguments, **settings)


def _active(inputs: Sequence[Tensor]) -> list[int]:
    if not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError("gradcheck: the inputs must be Tensors, made by tv.tensor(…, requires_grad=True)")
    active = [i for i, x in enumerate(inputs) if x.requires_grad]
    if not active:
        raise TypeError("gradcheck: no input has requires_grad=True")
    return active


def _name(f: Callable[..., Any]) -> str:
    return str(getattr(f, "name", getattr(f, "__name__", "f")))


def _several(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _central_differences(value: Callable[[], float], x: Tensor, eps: float) -> np.ndarray:
    """The slope of value() in each element of x, which is moved in place and put back."""
    slopes = np.empty(x.shape)
    for index in np.ndindex(*x.shape):
        here = float(x.data[index])
        try:
            x.data[index] = here + eps
            above = value()
            x.data[index] = here - eps
            below = value()
        finally:
            x.data[index] = here
        slopes[index] = (above - below) / (2 * eps)
    return slopes


def _compare(name: str, i: int, analytic: np.ndarray, numeric: np.ndarray, rtol: float, atol: float) -> None:
    if analytic.shape != numeric.shape:
        raise GradcheckError(f"{name}: the gradient of input {i} has shape {analytic.shape}, the input {numeric.shape}")
    excess = np.abs(analytic - numeric) - (atol + rtol * np.abs(numeric))
    excess = np.where(np.isnan(excess), np.inf, excess)
    if excess.size and excess.max() > 0:
        worst = tuple(int(k) for k in np.unravel_index(excess.argmax(), excess.shape))
        raise GradcheckError(
            f"{name}: the gradient of input {i} is wrong at element {worst}: the rule gives {analytic[worst]:.10g}, "
            f"differences give {numeric[worst]:.10g} (tolerance {atol:g} + {rtol:g}·|value|; "
            f"{int((excess > 0).sum())} of {excess.size} elements fail)"
        )
