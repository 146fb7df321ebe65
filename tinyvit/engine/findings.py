"""What the judge finds: the gradient of a function beside slopes that were measured without any rule.

A function y = f(x) with many results is checked result by result and element by element where that is affordable: its
whole Jacobian ∂y/∂x. Where it is not, along random cotangents v and random directions u: v · ∂y/∂x · u. A sum of the
results would not do: softmax and layer_norm have a zero gradient under it, and a rule that returns zeros would pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyvit.engine.backend import namespace_of
from tinyvit.engine.differences import Curve, NotAnalyticError, Slopes, complex_step, five_point
from tinyvit.engine.ops import zeros_like
from tinyvit.engine.tape import enable_grad, mode, no_grad
from tinyvit.engine.tensor import Tensor, grad, tensor

JACOBIAN_LIMIT = 4096  # elements of ∂y/∂x, up to which all of them are checked
HALVINGS = 6  # of a direction that runs over a kink: what is off the kink is still compared
DIRECTIONS, SINGLES = 2, 24  # above it: random directions an input, and elements picked at random among all inputs
ONE_SIDED = 1e-5  # how exactly the slopes on the two sides of a kink are known
LINEAR = 1e-10  # how exactly a rule must be linear in gy, relative to the largest element


class GradcheckError(AssertionError):
    """A gradient that is not the slope of its function."""


@dataclass(frozen=True)
class Finding:
    """The gradient of one input beside what was measured: its worst element.

    Attributes:
        input: number of the input.
        method: "jacobian", "projections", "linearity", …
        elements, failed, kinks: how many numbers were compared, are wrong, have no slope to compare with.
        where: the worst element, in words.
        given, measured: its two values.
        tolerance: by how much they may differ.
        note: what else is to be said about it.
    """

    input: int
    method: str
    elements: int
    failed: int
    kinks: int
    where: str
    given: float
    measured: float
    tolerance: float
    note: str = ""

    @property
    def error(self) -> float:
        """|given − measured|; equal infinities do not differ."""
        return 0.0 if self.given == self.measured else abs(self.given - self.measured)


def findings(
    f: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-3,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    seed: int = 0,
    method: str = "auto",
    complex_steps: bool = False,
) -> list[Finding]:
    """Compare the gradients of f with measured slopes; the arguments are those of `gradcheck`, which raises instead."""
    if not (eps > 0 and rtol >= 0 and atol >= 0):
        raise ValueError(f"gradcheck: eps {eps} must be above 0, rtol {rtol} and atol {atol} not below")
    subject = _Subject(f, inputs)
    measure: Callable[[Curve, float, float], Slopes] = lambda curve, step, floor: (
        complex_step(curve) if complex_steps else five_point(curve, step, rtol, floor)
    )
    if method not in ("auto", "jacobian", "projections"):
        raise ValueError(f"gradcheck: method is 'auto', 'jacobian' or 'projections', not {method!r}")
    if method == "auto":
        elements = subject.size * sum(subject.inputs[i].size for i in subject.active)
        method = "jacobian" if elements <= JACOBIAN_LIMIT else "projections"
    rng = np.random.default_rng(seed)
    if method == "jacobian":
        found = _jacobian_findings(subject, measure, eps, rtol, atol)
    else:
        found = _projection_findings(subject, measure, eps, rtol, atol, rng)
    return found + [finding for finding in _linearity_findings(subject, atol, rng) if finding.failed]


def compare(
    input: int, method: str, given: np.ndarray, measured: np.ndarray, tolerance: np.ndarray | float, what: str = ""
) -> Finding:
    """Compare two arrays of one shape, element by element; `what` says of what they are elements."""
    tolerance = np.broadcast_to(np.asarray(tolerance, float), given.shape)
    if not given.size:
        return Finding(input, method, 0, 0, 0, "", 0.0, 0.0, 0.0)
    excess, failed = _excess(given, measured, tolerance)
    worst = _index(excess)
    where = f"element {worst}{what and f' of {what}'}"
    return Finding(
        input, method, given.size, failed, 0, where, float(given[worst]), float(measured[worst]),
        float(tolerance[worst]),
    )  # fmt: skip


def _excess(given: np.ndarray, measured: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, int]:
    """By what factor each element misses its tolerance, and how many do; equal infinities do not."""
    with np.errstate(all="ignore"):
        error = np.where(given == measured, 0.0, np.abs(given - measured))
        excess = np.where(error == 0, 0.0, error / tolerance)
    excess = np.where(np.isnan(excess), np.inf, excess)
    return excess, int((excess > 1).sum())


def _index(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(int(array.argmax()), array.shape))


def _jacobian_findings(
    subject: _Subject,
    measure: Callable[[Curve, float, float], Slopes],
    eps: float,
    rtol: float,
    atol: float,
) -> list[Finding]:
    """Every ∂y[k]/∂x[j]."""
    rows = [subject.pull_back(_unit(subject.size, k)) for k in range(subject.size)]  # a flat gradient an input in each
    found = []
    for place, i in enumerate(subject.active):
        n = subject.inputs[i].size
        given = np.array([row[place] for row in rows]).reshape(subject.size, n)
        columns = [
            measure(subject.curve(i, _unit(n, j)), eps * scale, atol) for j, scale in enumerate(subject.scale(i))
        ]
        found.append(_jacobian_finding(subject, i, given, columns, rtol, atol))
    return found


def _linearity_findings(subject: _Subject, atol: float, rng: np.random.Generator) -> list[Finding]:
    """Whether the gradient along v + w is the sum of those along v and w, which unit cotangents do not show."""
    v, w = rng.standard_normal((2, subject.size))
    found = []
    for i, *gradients in zip(subject.active, *map(subject.pull_back, (v + w, v, w)), strict=True):
        both, one, other = (g.reshape(subject.inputs[i].shape) for g in gradients)
        with np.errstate(all="ignore"):
            scale = np.max(np.abs([both, one, other]), initial=0.0)
            found.append(compare(i, "linearity", both, one + other, max(LINEAR * scale, atol)))
    return found


def _jacobian_finding(
    subject: _Subject, i: int, given: np.ndarray, columns: list[Slopes], rtol: float, atol: float
) -> Finding:
    shape = given.shape
    if not given.size:
        return Finding(i, "jacobian", 0, 0, 0, "", 0.0, 0.0, 0.0)
    value, uncertainty, left, right, kink = (
        np.array([getattr(c, name) for c in columns]).T.reshape(shape)
        for name in ("value", "uncertainty", "left", "right", "kink")
    )
    tolerance = np.where(kink, ONE_SIDED, atol + rtol * np.abs(value))
    low, high = np.minimum(left, right), np.maximum(left, right)
    between = np.clip(np.nan_to_num(given, nan=0.0, posinf=np.inf, neginf=-np.inf), low, high)
    measured = np.where(kink, between, value)  # at a kink any slope in between is right
    excess, failed = _excess(given, measured, tolerance)
    kinks = int(kink.sum())
    k, j = worst = _index(excess if failed or not kinks else kink.astype(float))
    note = ""
    if kink[worst]:
        note = _sides(left[worst], right[worst])
    elif not uncertainty[worst] <= tolerance[worst]:
        note = f"the differences themselves settle to no better than ±{uncertainty[worst]:.1g}"
    where = subject.where(i, j) + (subject.which_result(k) if subject.size > 1 else "")
    two = float(given[worst]), float(measured[worst])
    return Finding(i, "jacobian", given.size, failed, kinks, where, *two, float(tolerance[worst]), note)


def _sides(left: float, right: float) -> str:
    if np.isinf(left) or np.isinf(right):
        return "a jump, or a slope without bound"
    return f"a kink, {left:.4g} on one side and {right:.4g} on the other"


def _projection_findings(
    subject: _Subject,
    measure: Callable[[Curve, float, float], Slopes],
    eps: float,
    rtol: float,
    atol: float,
    rng: np.random.Generator,
) -> list[Finding]:
    """v · ∂y/∂x · u for random u, and for some single elements; where a u misses, which element it was."""
    v = rng.standard_normal(subject.size)
    singles = max(1, SINGLES // len(subject.active))
    found = []
    for i, g in zip(subject.active, subject.pull_back(v), strict=True):
        n, scale = g.size, subject.scale(i)

        def look(u: np.ndarray, where: str, i: int = i, g: np.ndarray = g) -> tuple[Finding, float]:
            floor = atol * float(np.sqrt(subject.size)) * max(1.0, float(np.linalg.norm(u)))
            curve = subject.curve(i, u)
            moved = (curve(eps) != curve(0.0)) | (curve(-eps) != curve(0.0))  # a large one that stays drowns the rest
            slopes = measure(lambda t: np.asarray([v[moved] @ curve(t)[moved]]), eps, floor)
            given, measured = float(g[u != 0] @ u[u != 0]), float(slopes.value[0])
            tolerance = floor + rtol * abs(measured)
            kinked = bool(slopes.kink[0])
            excess, failed = _excess(np.array(given), np.array(measured), np.array(tolerance))
            note = _sides(float(slopes.left[0]), float(slopes.right[0])) if kinked else ""
            two = given, given if kinked else measured
            failures = 0 if kinked else failed
            return Finding(i, "projections", 1, failures, kinked, where, *two, tolerance, note), float(excess)

        def off_kinks(u: np.ndarray, halvings: int = HALVINGS) -> list[tuple[Finding, float]]:
            found = look(u, "a random direction")
            support = np.flatnonzero(u)
            if not found[0].kinks or not halvings or support.size < 2:
                return [found]
            parts = (np.where(np.isin(np.arange(u.size), half), u, 0.0) for half in np.array_split(support, 2))
            return [one for part in parts for one in off_kinks(part, halvings - 1)]

        looks = [one for _ in range(DIRECTIONS) for one in off_kinks(rng.standard_normal(n) * scale)]
        if wrong := next((finding for finding, _ in looks if finding.failed), None):
            looks.append(_narrow_down(subject, i, scale * rng.standard_normal(n), look) or (wrong, np.inf))
        looks += [
            look(_unit(n, j), subject.where(i, j))
            for j in sorted(rng.choice(n, min(n, singles), replace=False).tolist())
        ]
        found.append(_worst(looks))
    return found


def _narrow_down(
    subject: _Subject, i: int, direction: np.ndarray, look: Callable[..., tuple[Finding, float]]
) -> tuple[Finding, float] | None:
    """The element that a direction misses by: halve the direction, keep the half that misses more."""
    support = np.arange(direction.size)
    while support.size > 1:
        halves = np.array_split(support, 2)
        misses = [look(np.where(np.isin(np.arange(direction.size), half), direction, 0.0), "")[0] for half in halves]
        errors = [np.inf if np.isnan(miss.error) else miss.error for miss in misses]
        support = halves[int(errors[1] > errors[0])]
    j = int(support[0])
    culprit = look(_unit(direction.size, j), subject.where(i, j))
    return culprit if culprit[0].failed else None


def _worst(looks: list[tuple[Finding, float]]) -> Finding:
    """One finding for all: the worst of them, an element rather than a direction where both fail."""
    found = [finding for finding, _ in looks]
    named = [pair for pair in looks if pair[0].failed and not pair[0].where.startswith("a random")]
    kinked = [pair for pair in looks if pair[0].kinks]
    failed = [pair for pair in looks if pair[0].failed]
    worst = max(named or failed or kinked or looks, key=lambda pair: pair[1])[0]
    elements, failures, kinks = (sum(getattr(x, name) for x in found) for name in ("elements", "failed", "kinks"))
    return replace(worst, elements=elements, failed=failures, kinks=kinks)


# --------------------------------------------------------------------------------------------------------------------
# What is judged


class _Subject:
    """A function of Tensors as a function of flat vectors: its values along a curve, and what its rules pull back."""

    def __init__(self, f: Callable[..., Any], inputs: Tensor | Sequence[Tensor]):
        self.f = f
        self.inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        self.active = active_inputs(self.inputs)
        if wrong := [i for i in self.active if self.inputs[i].dtype != np.float64]:
            raise TypeError(f"gradcheck: input {wrong[0]} is {self.inputs[wrong[0]].dtype}; differences need float64")
        self.before = [np.array(x.numpy()) for x in self.inputs]
        with enable_grad():
            outputs = several(f(*self.inputs))
        if alien := [type(y).__name__ for y in outputs if not isinstance(y, Tensor)]:
            raise TypeError(f"gradcheck: {name_of(f)} must give a Tensor or several, and gave {alien[0]}")
        self.outputs = [y for y in outputs if y.dtype.kind == "f"]
        if not self.outputs:
            raise TypeError(f"gradcheck: {name_of(f)} gives {outputs[0].dtype}, which has no slope to check")
        if narrow := [y.dtype for y in self.outputs if y.dtype != np.float64]:
            raise TypeError(f"gradcheck: {name_of(f)} gives {narrow[0]} for float64; differences need float64")
        self.size = sum(y.size for y in self.outputs)
        self.ends = np.cumsum([y.size for y in self.outputs])[:-1]
        self._check_values()

    def _check_values(self) -> None:
        """Differences mean something only where f is a function, and finite."""
        values, again = (self._values(self.inputs[0], self.inputs[0].data) for _ in range(2))
        self.check_unwritten("its forward")
        if not np.allclose(values, again, rtol=1e-12, atol=1e-12, equal_nan=True):  # a GPU may add in another order
            raise GradcheckError(f"{name_of(self.f)} gives other values when called again: seed what is random in it")
        if not np.isfinite(values).all():
            k = int(np.argmin(np.isfinite(values)))
            raise GradcheckError(
                f"{name_of(self.f)} gives {values[k]:g}{self.which_result(k)}: there is no slope to measure"
            )

    def check_unwritten(self, who: str) -> None:
        """Raise if an input is not what it was."""
        for i, (x, before) in enumerate(zip(self.inputs, self.before, strict=True)):
            if not np.array_equal(x.numpy(), before, equal_nan=before.dtype.kind == "f"):
                raise GradcheckError(f"{name_of(self.f)}: {who} writes to {input_name(self.f, i)}: compute on a copy")

    def scale(self, i: int) -> np.ndarray:
        """In which units each element of an input is moved."""
        return np.maximum(1.0, np.abs(self.inputs[i].numpy())).reshape(-1)

    def curve(self, i: int, direction: np.ndarray) -> Curve:
        """All results as one vector, when input i is moved by t times the direction."""
        x = self.inputs[i]
        step = tensor(direction.reshape(x.shape), device=x.device).data
        xp = namespace_of(x.data)
        return lambda t: self._values(x, xp.asarray(x.data + t * step))  # a sum of 0-d arrays is a scalar

    def _values(self, x: Tensor, data: Any) -> np.ndarray:
        with _in_place_of(x, data), no_grad():
            parts = [y.numpy().reshape(-1) for y in several(self.f(*self.inputs)) if y.dtype.kind in "fc"]
            if data.dtype.kind == "c" and any(part.dtype.kind == "f" and part.size for part in parts):
                raise NotAnalyticError("the result of complex numbers is real")
            return np.concatenate([part.astype(np.result_type(part, np.float64)) for part in parts])

    def pull_back(self, cotangent: np.ndarray) -> list[np.ndarray]:
        """The flat gradient of each active input, as the rules make it from a cotangent of all results."""
        pieces = np.split(cotangent, self.ends)
        parts = [tensor(piece.reshape(y.shape), device=y.device) for piece, y in zip(pieces, self.outputs, strict=True)]
        wanted = [self.inputs[i] for i in self.active]
        gradients = grad(self.outputs, wanted, parts, retain_graph=True, allow_unused=True)
        self.check_unwritten("a rule")
        if any(not np.array_equal(part.numpy().reshape(-1), given) for part, given in zip(parts, pieces, strict=True)):
            raise GradcheckError(f"{name_of(self.f)}: a rule writes to gy, which is not its own: compute on a copy")
        return [
            np.zeros(x.size) if g is None else g.numpy().reshape(-1) for x, g in zip(wanted, gradients, strict=True)
        ]

    def where(self, i: int, j: int) -> str:
        """Name element j of input i."""
        return f"element {_unravel(j, self.inputs[i].shape)}"

    def which_result(self, k: int) -> str:
        """Name element k of the results."""
        which = int(np.searchsorted(self.ends, k, side="right"))
        k -= int(self.ends[which - 1]) if which else 0
        name = "the result" if len(self.outputs) == 1 else f"result {which}"
        return f", for element {_unravel(k, self.outputs[which].shape)} of {name}"


def _unit(n: int, k: int) -> np.ndarray:
    """1 at place k, 0 elsewhere."""
    unit = np.zeros(n)
    unit[k] = 1.0
    return unit


def _unravel(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(flat, shape))


@contextmanager
def _in_place_of(x: Tensor, data: Any) -> Iterator[None]:
    """Let x have other values inside the block; what the tape has saved of it stays as it is."""
    kept, x.data = x.data, data
    try:
        yield
    finally:
        x.data = kept


def gradient_of(
    f: Callable[..., Any], inputs: Tensor | Sequence[Tensor], seed: int = 0
) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """The gradient of f as a function of its inputs and of its cotangents, and these arguments."""
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    active = active_inputs(inputs)
    rng = np.random.default_rng(seed + 1)
    cotangents = [
        tensor(rng.standard_normal(y.shape), device=y.device, requires_grad=True)
        for y in several(f(*inputs))
        if y.dtype.kind == "f"
    ]

    def gradient(*arguments: Tensor, recorded: bool | None = None) -> list[Tensor]:
        primals, vs = arguments[: len(inputs)], arguments[len(inputs) :]
        recorded = mode.recording if recorded is None else recorded  # differences need no second tape
        with enable_grad():
            outputs = [y for y in several(f(*primals)) if y.dtype.kind == "f"]
        wanted = [primals[i] for i in active]
        gradients = grad(outputs, wanted, list(vs), create_graph=recorded, allow_unused=True)
        return [zeros_like(x.detach()) if g is None else g for x, g in zip(wanted, gradients, strict=True)]

    gradient.active = active  # type: ignore[attr-defined]
    gradient.__name__ = f"the gradient of {name_of(f)}"
    of_results = [f"gy of result {k}" if len(cotangents) > 1 else "gy" for k in range(len(cotangents))]
    gradient.input_names = [*(f"input {i}" for i in range(len(inputs))), *of_results]  # type: ignore[attr-defined]
    return gradient, [*inputs, *cotangents]


def recorded_findings(gradient: Callable[..., list[Tensor]], arguments: list[Tensor]) -> list[Finding]:
    """An ordinary sweep beside a recorded one: a fused op's own rule beside its twin's."""
    active: list[int] = gradient.active  # type: ignore[attr-defined]
    pairs = zip(gradient(*arguments, recorded=False), gradient(*arguments, recorded=True), strict=True)
    return [
        compare(active[i], "recorded sweep", g.numpy(), h.numpy(), 1e-10 + 1e-8 * np.abs(h.numpy()), f"gradient {i}")
        for i, (g, h) in enumerate(pairs)
    ]


def active_inputs(inputs: Sequence[Tensor]) -> list[int]:
    """Which inputs carry a gradient."""
    if not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError("gradcheck: the inputs must be Tensors, made by tv.tensor(…, requires_grad=True)")
    active = [i for i, x in enumerate(inputs) if x.requires_grad]
    if not active:
        raise TypeError("gradcheck: no input has requires_grad=True")
    return active


def several(outputs: Any) -> list[Tensor]:
    """What f gives, as a list."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def name_of(f: Callable[..., Any]) -> str:
    """What messages call a function."""
    if isinstance(f, functools.partial):
        return name_of(f.func)
    return str(getattr(f, "name", getattr(f, "__name__", "f")))


def input_name(f: Callable[..., Any], i: int) -> str:
    """What messages call an input; `gradient_of` has names for the gradients among its inputs."""
    names: list[str] = getattr(f, "input_names", [])
    return names[i] if i < len(names) else f"input {i}"
