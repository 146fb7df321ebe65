"""The tape's own cost: a chain of tiny ops, recorded and swept, beside PyTorch and the bare NumPy calls.

    python benchmarks/tape.py

The time is the processor's, not the clock's, and the least of many rounds is kept: an op of a few microseconds is
disturbed by whatever else the machine does, and only ever upwards. The medians stand beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import _common
import numpy as np

import tinyvit as tv

OPS = 10_000


def chain(x: Any) -> Any:
    """OPS multiplications of one number."""
    for _ in range(OPS):
        x = x * 1.0000001
    return x


def main() -> None:
    options = _common.parser(__doc__).parse_args()
    leaf = tv.tensor([1.0], requires_grad=True)
    array = np.ones(1, np.float32)
    forward: dict[str, Callable[[], Any]] = {"tinyvit": lambda: chain(leaf), "numpy": lambda: chain(array)}
    both: dict[str, Callable[[], Any]] = {"tinyvit": lambda: chain(leaf).backward()}
    try:
        import torch

        torch_leaf = torch.ones(1, requires_grad=True)
        forward["torch"] = lambda: chain(torch_leaf)
        both["torch"] = lambda: chain(torch_leaf).backward()
    except ImportError:
        pass
    started = time.perf_counter()
    result = {
        "unit": "µs of processor time an op: the least of all rounds, and their median",
        "forward": _an_op(forward, options.rounds),
        "forward_and_backward": _an_op(both, options.rounds),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(_common.save("tape", result, options.out), result)


def _an_op(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """(least, median) of each candidate; they run in turn, so that a drift of the machine touches all."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    figures = {name: (min(times), statistics.median(times)) for name, times in seconds.items()}
    return {name: (round(1e6 * least / OPS, 2), round(1e6 * mid / OPS, 2)) for name, (least, mid) in figures.items()}


if __name__ == "__main__":
    main()
