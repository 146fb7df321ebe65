"""The methods of the audit: each looks at a sample in one way that shows a certain kind of wrong gradient.

A method takes a sample and a device and gives one `Finding` an input; it raises `NotChecked` where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tinyvit as tv
from tinyvit.engine import kernels
from tinyvit.engine.differences import NotAnalyticError
from tinyvit.engine.findings import Finding, compare, findings, gradient_of, recorded_findings
from tinyvit.study.audit.layers import LayerSample
from tinyvit.study.audit.samples import Sample

Arrays = list[np.ndarray]
AnySample = Sample | LayerSample
EXACT = 1e-12  # the same sums in another order
SAME = 0.0  # bit for bit


class NotChecked(Exception):  # noqa: N818 -- a verdict, not an error
    """A method cannot look at a sample; the message says why."""


class NotMeant(Exception):  # noqa: N818
    """A method is not meant for a sample: there is no row then."""


def slopes(sample: AnySample, device: str) -> list[Finding]:
    """Gradients beside five-point differences: the Jacobian where it is small, random projections where it is large."""
    return findings(*sample.prepare(device))


def complex_step(sample: AnySample, device: str) -> list[Finding]:
    """Gradients beside complex steps, to the last digits, where the forward is analytic."""
    if device != "cpu":
        raise NotChecked("complex steps are taken on a CPU")
    try:
        return findings(*sample.prepare(device), complex_steps=True, rtol=1e-11, atol=1e-12)
    except NotAnalyticError as error:
        raise NotChecked(str(error)) from error


def second_order(sample: AnySample, device: str) -> list[Finding]:
    """The gradient's own gradients, by the inputs and by gy, beside differences of the gradient."""
    return findings(*gradient_of(*sample.prepare(device)), rtol=1e-6, atol=1e-8)


def recorded_sweep(sample: AnySample, device: str) -> list[Finding]:
    """An ordinary sweep beside a recorded one: a kernel beside the rule, or a fused op's own rule beside its twin's."""
    return recorded_findings(*gradient_of(*sample.prepare(device)))


def layout(sample: AnySample, device: str) -> list[Finding]:
    """Inputs and gy that run backwards and skip elements in memory, beside contiguous ones."""
    expected = _pull(*sample.prepare(device))
    f, inputs = sample.prepare(device)
    for x in inputs:
        if x.requires_grad:
            x.data = _strided(x.data)
    return _beside("layout", _pull(f, inputs, dress=_strided), expected, EXACT)


def repeated(sample: AnySample, device: str) -> list[Finding]:
    """A value that is used twice gets the sum of both gradients."""
    f, inputs = sample.prepare(device)
    values, once = _pull(f, inputs)
    _, again = _pull(f, inputs, seed=2)
    twice = _pull(lambda *xs: [*f(*xs), *f(*xs)], inputs, seeds=(1, 2))[1]
    found = _beside("repeated", (values, twice), (values, [g + h for g, h in zip(once, again, strict=True)]), EXACT)
    if isinstance(sample, Sample):
        found += _one_for_all(sample, device)
    return found


def _one_for_all(sample: Sample, device: str) -> list[Finding]:
    """One Tensor in the place of all inputs of a shape, beside separate ones with the same values."""
    f, inputs = sample.prepare(device)
    first = {x.shape: x for x in reversed(inputs) if x.requires_grad}
    shared = [first[x.shape] if x.requires_grad else x for x in inputs]
    if len(first) == sum(x.requires_grad for x in inputs):
        return []
    copies = [tv.tensor(x, requires_grad=True) if x.requires_grad else x for x in shared]
    values, apart = _pull(f, copies)
    places = [x for x in shared if x.requires_grad]
    distinct = list(first.values())
    summed = [np.sum([g for g, x in zip(apart, places, strict=True) if x is own], axis=0) for own in distinct]
    return _beside("repeated", _pull(f, shared, wanted=distinct), (values, summed), EXACT)


def aliased(sample: AnySample, device: str) -> list[Finding]:
    """Inputs that share memory with one another and with gy, swept twice: nobody writes to what is not theirs."""
    f, inputs = sample.prepare(device)
    memory = {x.shape: x.data for x in reversed(inputs) if x.requires_grad}
    apart, copies = sample.prepare(device)
    for x, copy in zip(inputs, copies, strict=True):
        if x.requires_grad:
            x.data = memory[x.shape][...]
            copy.data = tv.tensor(x).data
    before = [np.array(x.numpy()) for x in inputs]
    lend: Callable[[Any], Any] = lambda v: memory.get(v.shape, v)
    outputs = f(*inputs)
    vs = _cotangents(outputs, 1, lend)
    wanted = [x for x in inputs if x.requires_grad]
    first = _gradients(outputs, wanted, vs, retain_graph=True)
    second = _gradients(outputs, wanted, vs)
    values = [np.array(y.numpy()) for y in outputs]
    expected = _pull(apart, copies, dress=lambda v: tv.tensor(lend(v)).data)
    found = _beside("aliased", (values, first), expected, EXACT)
    found += _beside("aliased", (values, second), (values, first), SAME if device == "cpu" else EXACT)
    unwritten = _beside("aliased", ([x.numpy() for x in inputs], []), (before, []), SAME)
    return found + unwritten


def determinism(sample: AnySample, device: str) -> list[Finding]:
    """The same bits when run again (on a GPU, where sums have no fixed order, the same numbers)."""
    tolerance = SAME if device == "cpu" else EXACT  # CuPy adds at repeated indices in no fixed order
    return _beside("determinism", _pull(*sample.prepare(device)), _pull(*sample.prepare(device)), tolerance)


def twin(dtype: Any, tolerance: float) -> Callable[[AnySample, str], list[Finding]]:
    """A fused op beside the record of its readable twin's elementary ops, in value and gradient."""

    def method(sample: AnySample, device: str) -> list[Finding]:
        f, inputs = sample.prepare(device, dtype)
        if not any(node.op.twin for node in _nodes(f(*inputs))):
            raise NotMeant("nothing fused in it")
        found = _pull(f, inputs)
        with tv.unfused():
            expected = _pull(f, inputs)
        return _beside(f"twin {np.dtype(dtype)}", found, expected, tolerance)

    method.__doc__ = twin.__doc__
    return method


def by_kernels(dtype: Any, tolerance: float) -> Callable[[AnySample, str], list[Finding]]:
    """A fused op as its kernel computes it beside its own array code, in value and gradient."""

    def method(sample: AnySample, device: str) -> list[Finding]:
        f, inputs = sample.prepare(device, dtype)
        nodes = _nodes(f(*inputs))
        if not any(getattr(node.op, "fused", False) for node in nodes):
            raise NotMeant("nothing fused in it")
        if not any(node.kernel for node in nodes):
            raise NotChecked(_why_without_a_kernel(device))
        found = _pull(f, inputs)
        with kernels.switched(False):
            expected = _pull(f, inputs)
        return _beside(f"kernels {np.dtype(dtype)}", found, expected, tolerance)

    method.__doc__ = by_kernels.__doc__
    return method


def _why_without_a_kernel(device: str) -> str:
    if device == "cpu" and not kernels.available():
        return "Numba is not installed, which the CPU's kernels need"
    if device == "cpu" and not kernels.in_use():
        return "the kernels are switched off"
    return "no kernel suits it"


def _nodes(outputs: Sequence[tv.Tensor]) -> list[Any]:
    """The ops on the tape that results were computed by."""
    seen, stack = set(), [y.node for y in outputs]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(node.parents)
    return [node for node in seen if node.op is not None]


def narrow(dtype: Any, tolerance: float) -> Callable[[AnySample, str], list[Finding]]:
    """Values and gradients in a narrow dtype beside float64, from the same inputs."""

    def method(sample: AnySample, device: str) -> list[Finding]:
        if sample.op == "astype":
            raise NotMeant("another dtype is what it is for")
        f, inputs = sample.prepare(device, dtype)
        found = _pull(f, inputs)
        if any(a.dtype != dtype for arrays in found for a in arrays):
            raise AssertionError(f"{sample}: {np.dtype(dtype)} is not kept")
        for x in inputs:
            if x.requires_grad:
                x.rebind(x.data.astype(np.float64))
        return _beside(str(np.dtype(dtype)), found, _pull(f, inputs), tolerance)

    method.__doc__ = narrow.__doc__
    return method


def backends(sample: AnySample, device: str) -> list[Finding]:
    """NumPy beside CuPy, in value and gradient."""
    if not tv.gpu_available():
        raise NotChecked("no CuPy or no GPU here")
    return _beside("backends", _pull(*sample.prepare("gpu")), _pull(*sample.prepare("cpu")), EXACT)


def choice(sample: AnySample, device: str) -> list[Finding]:
    """At a kink, the gradient beside the one that the op's documentation promises."""
    if not isinstance(sample, Sample) or sample.choice is None:
        raise NotMeant("no kink")
    f, inputs = sample.prepare(device)
    outputs = f(*inputs)
    ones = [tv.tensor(np.ones(y.shape), device=device) for y in outputs]
    promised = [np.array(gradient, float) for gradient in sample.choice]
    return _beside("choice", ([], _gradients(outputs, inputs, ones)), ([], promised), EXACT)


def carries_no_gradient(sample: Sample, device: str) -> str:
    """What a sample of `STEPS` gives: the dtype of its results, which have no slope."""
    outputs = sample(*sample.tensors(device))
    if any(y.requires_grad or y.dtype.kind == "f" for y in outputs):
        raise AssertionError(f"{sample} carries a gradient")
    return str(outputs[0].dtype)


METHODS: dict[str, Callable[[AnySample, str], list[Finding]]] = {
    "slopes": slopes,
    "complex step": complex_step,
    "second order": second_order,
    "recorded sweep": recorded_sweep,
    "layout": layout,
    "repeated": repeated,
    "aliased": aliased,
    "determinism": determinism,
    "twin float64": twin(np.float64, EXACT),
    "twin float32": twin(np.float32, 1e-5),
    "twin float16": twin(np.float16, 2e-2),
    "kernels float64": by_kernels(np.float64, 1e-10),
    "kernels float32": by_kernels(np.float32, 1e-5),
    "float32": narrow(np.float32, 2e-5),
    "float16": narrow(np.float16, 3e-2),
    "backends": backends,
    "choice": choice,
}

MEASURED = {"slopes", "complex step", "second order"}  # what compares gradients with slopes that were measured

# ------------------------------------------------------------------------------------------------------------- helpers


def _pull(
    f: Callable[..., list[tv.Tensor]],
    inputs: Sequence[tv.Tensor],
    *,
    seed: int = 1,
    seeds: tuple[int, int] | None = None,
    dress: Callable[[Any], Any] = lambda v: v,
    wanted: Sequence[tv.Tensor] | None = None,
) -> tuple[Arrays, Arrays]:
    """The values of f, and the gradients of its inputs along random cotangents."""
    outputs = f(*inputs)
    if seeds:
        half = len(outputs) // 2
        vs = _cotangents(outputs[:half], seeds[0], dress) + _cotangents(outputs[half:], seeds[1], dress)
    else:
        vs = _cotangents(outputs, seed, dress)
    if wanted is None:
        wanted = [x for x in inputs if x.requires_grad]
    return [np.array(y.numpy()) for y in outputs], _gradients(outputs, wanted, vs)


def _cotangents(outputs: Sequence[tv.Tensor], seed: int, dress: Callable[[Any], Any]) -> list[tv.Tensor]:
    rng = np.random.default_rng(seed)
    drawn = (tv.tensor(rng.standard_normal(y.shape), dtype=y.dtype, device=y.device) for y in outputs)
    return [tv.Tensor(dress(v.data)) for v in drawn]


def _gradients(
    outputs: Sequence[tv.Tensor], wanted: Sequence[tv.Tensor], vs: Sequence[tv.Tensor], retain_graph: bool = False
) -> Arrays:
    gradients = tv.grad(outputs, wanted, vs, retain_graph=retain_graph, allow_unused=True)
    return [
        np.zeros(x.shape, x.dtype) if g is None else np.array(g.numpy()) for x, g in zip(wanted, gradients, strict=True)
    ]


def _strided(array: Any) -> Any:
    """The same values in memory that runs backwards along the first axis and skips elements along the last."""
    if not array.ndim:
        return array
    apart = array.repeat(2, axis=-1)
    if array.ndim == 1:
        return apart[::-1].copy()[::-1][::2]
    return apart[::-1].copy()[::-1, ..., ::2]


def _beside(
    method: str, found: tuple[Arrays, Arrays], expected: tuple[Arrays, Arrays], tolerance: float
) -> list[Finding]:
    """Values beside values and gradients beside gradients; the tolerance is relative to the largest element."""
    compared = []
    for what, ours, theirs in zip(("value", "gradient"), found, expected, strict=True):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a.shape != b.shape:
                raise AssertionError(f"{what} {i} has shape {a.shape} instead of {b.shape}")
            a, b = a.astype(np.float64), b.astype(np.float64)
            scale = 1 + np.max(np.abs(b), initial=0.0)
            compared.append(compare(i, method, a, b, tolerance * scale, f"{what} {i}"))
    return compared
