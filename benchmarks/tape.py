"""The tape's own cost: a chain of tiny ops, recorded and swept, beside PyTorch and the bare NumPy calls.

python benchmarks/tape.py
"""

from __future__ import annotations

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
        "unit": "µs an op, medians",
        "forward": _an_op(_common.medians(_common.paired(forward, options.rounds))),
        "forward_and_backward": _an_op(_common.medians(_common.paired(both, options.rounds))),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(_common.save("tape", result, options.out), result)


def _an_op(milliseconds: dict[str, float]) -> dict[str, float]:
    return {name: round(1e3 * ms / OPS, 2) for name, ms in milliseconds.items()}


if __name__ == "__main__":
    main()
