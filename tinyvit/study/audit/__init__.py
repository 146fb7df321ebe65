"""The gradient audit: every op and every layer, looked at by every method that can tell a wrong gradient.

    tinyvit audit                       the worst row of each op, exit code 1 if anything fails
    tinyvit audit softmax --all         every row of some ops
    tinyvit audit --html audit.html     one page with all rows

`samples` and `layers` are the registry, `checks` the methods, `report` the rows and their forms.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from tinyvit.engine.findings import Finding
from tinyvit.study.audit.checks import MEASURED, METHODS, AnySample, NotChecked, NotMeant, carries_no_gradient
from tinyvit.study.audit.layers import LAYERS
from tinyvit.study.audit.report import FAIL, KINK, PASS, SKIP, Report, Row, by_op
from tinyvit.study.audit.samples import KINKS, SAMPLES, STEPS, Sample, normal

__all__ = ["METHODS", "Report", "Row", "Sample", "by_op", "examine", "names", "normal", "registry", "run"]


def registry(only: Iterable[str] = ()) -> list[AnySample]:
    """All samples of ops and layers, or those of some of them.

    Raises:
        ValueError: a name is neither an op nor a layer.
    """
    samples: list[AnySample] = sorted([*SAMPLES, *KINKS, *STEPS], key=lambda sample: sample.op)
    samples += sorted(LAYERS, key=lambda sample: sample.op)
    wanted = set(only)
    known = {sample.op for sample in samples}
    if unknown := sorted(wanted - known):
        near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"{unknown[0]!r} is neither an op nor a layer: {hint}")
    return [sample for sample in samples if not wanted or sample.op in wanted]


def names() -> list[str]:
    """The ops and layers that the registry has samples of."""
    return list(dict.fromkeys(sample.op for sample in registry()))


def run(
    samples: Sequence[AnySample] | None = None,
    *,
    device: str = "cpu",
    workers: int = 1,
    on_sample: Callable[[], object] = lambda: None,
) -> Report:
    """Examine samples by every method.

    Args:
        samples: what to examine; the whole registry if None. A `Sample` of your own op may be among them.
        device: "cpu" or "gpu".
        workers: processes to share the registry's samples out to; the script must guard its `__main__` then, and a
            rule that was replaced in this process is not seen by them.
        on_sample: called after each sample.

    >>> softplus = Sample("softplus", "(3,)", lambda F, x: F.log(1 + F.exp(x)), (normal(3),))
    >>> report = run([softplus])
    >>> report.failures, report.rows[0].method, report.rows[0].verdict
    ([], 'jacobian', 'pass')
    """
    began = time.perf_counter()
    everything = registry()
    samples = everything if samples is None else samples
    rows: list[Row] = []
    if workers == 1 or not set(samples) <= set(everything):
        for sample in samples:
            rows += examine(sample, device)
            on_sample()
    else:
        places = {sample: i for i, sample in enumerate(everything)}
        with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
            futures = {  # the layers first, which take longest
                s: pool.submit(_examine_at, places[s], device)
                for s in sorted(samples, key=lambda s: isinstance(s, Sample))
            }
            for future in futures.values():
                future.add_done_callback(lambda _: on_sample())
            try:
                rows = [row for sample in samples for row in futures[sample].result()]
            except BaseException:  # what has not begun need not
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return Report(tuple(rows), time.perf_counter() - began)


def _one_thread() -> None:
    """Small products: BLAS threads of several processes would wait for one another."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _examine_at(place: int, device: str) -> list[Row]:
    return examine(registry()[place], device)


def examine(sample: AnySample, device: str = "cpu", methods: Iterable[str] = METHODS) -> list[Row]:
    """Look at one sample by every method, or by some; one row for each that is meant for it.

    >>> from tinyvit.study.audit.samples import SAMPLES
    >>> {row.verdict for row in examine(SAMPLES[0], methods=["slopes", "layout"])}
    {'pass'}
    """
    if sample in STEPS:
        return [_step_row(sample, device)]
    if getattr(sample, "choice", None) is not None:  # it stands on a kink
        methods = [name for name in methods if name in ("slopes", "choice")]  # nothing else can be compared there
    return [row for name in methods if (row := _examine_by(name, sample, device))]


def _examine_by(name: str, sample: AnySample, device: str) -> Row | None:
    dtype = name.split()[-1] if "float" in name else "float64"
    try:
        shapes = tuple(x.shape for x in sample.prepare(device)[1])
    except Exception as error:
        return Row(sample.op, sample.case, (), dtype, name, FAIL, note=f"{type(error).__name__}: {error}")
    facts = sample.op, sample.case, shapes, dtype
    try:
        found = METHODS[name](sample, device)
    except NotMeant:
        return None
    except NotChecked as reason:
        return Row(*facts, name, SKIP, note=str(reason))
    except Exception as error:  # a rule that raises is as wrong as one that lies
        return Row(*facts, name, FAIL, note=f"{type(error).__name__}: {error}")
    return _row(facts, name, found)


def _row(facts: tuple[str, str, tuple[tuple[int, ...], ...], str], name: str, found: list[Finding]) -> Row:
    """The worst of some findings, and what they come to together."""
    if not found:
        return Row(*facts, name, SKIP, note="nothing to compare")
    if not any(f.elements for f in found):
        return Row(*facts, name, SKIP, note="it runs, but is empty: there are no numbers to compare")
    worst = max(found, key=lambda f: (f.failed > 0, f.kinks > 0, _badness(f), f.elements > 0))
    failed, kinks = (sum(getattr(f, name) for f in found) for name in ("failed", "kinks"))
    error, size = worst.error, abs(worst.measured)
    with np.errstate(all="ignore"):
        return Row(
            *facts,
            worst.method if name == "slopes" else name,
            FAIL if failed else KINK if kinks else PASS,
            elements=sum(f.elements for f in found),
            absolute=error,
            relative=error / size if size else (0.0 if error == 0 else math.inf),
            where=f"{_input_name(worst.input, len(facts[2]))}, {worst.where}" if name in MEASURED else worst.where,
            given=worst.given,
            measured=worst.measured,
            tolerance=worst.tolerance,
            margin=worst.tolerance / error if error else math.inf,
            note="; ".join(filter(None, [worst.note, f"{failed:,} in all fail" if failed else ""])),
        )


def _input_name(i: int, inputs: int) -> str:
    """In the second order the gradients of the results stand behind the op's own inputs."""
    return f"input {i}" if i < inputs else f"gy of result {i - inputs}"


def _badness(finding: Finding) -> float:
    if finding.error == 0 or finding.given == finding.measured:
        return 0.0
    return finding.error / finding.tolerance if finding.tolerance else math.inf


def _step_row(sample: AnySample, device: str) -> Row:
    assert isinstance(sample, Sample)
    shapes = tuple(array.shape for array in sample.arrays())
    facts = sample.op, sample.case, shapes, "float64", "dtype"
    try:
        return Row(*facts, KINK, note=f"gives {carries_no_gradient(sample, device)}, which carries no gradient")
    except AssertionError as error:
        return Row(*facts, FAIL, note=str(error))
    except Exception as error:
        return Row(*facts, FAIL, note=f"{type(error).__name__}: {error}")
