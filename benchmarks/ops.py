"""The ops of an encoder layer, one at a time: forward, and forward with backward, beside PyTorch eager.

    python benchmarks/ops.py
    python benchmarks/ops.py --only gelu,layer_norm

The shapes are those of the second row of train_step.py: 64 images of 65 tokens, 192 wide, 3 heads. Each op is timed
with everybody on one thread, which is how tinyvit's shards run it, and with the libraries' default threads. Freed
memory is kept for the next array, as in a train step of tinyvit; it is the process's, and so PyTorch has it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import _common
import numpy as np
from _work import WORK
from threadpoolctl import threadpool_limits

import tinyvit as tv
from tinyvit.engine import kernels
from tinyvit.engine.kernels.memory import keep_freed_memory

FIELDS, BATCH = WORK["32x32x3 p4 D192 L12"]
CONFIG = tv.ViTConfig(**FIELDS)
TOKENS = (BATCH, CONFIG.num_patches + 1, CONFIG.dim)
HIDDEN = (*TOKENS[:2], CONFIG.mlp_hidden)
HEADS = (BATCH, CONFIG.num_heads, TOKENS[1], CONFIG.dim // CONFIG.num_heads)
SCORES = (*HEADS[:3], TOKENS[1])
LABELS = np.random.default_rng(0).integers(0, CONFIG.num_classes, BATCH)

Function = Callable[..., Any]


def _stream(x: Any, branch: Any) -> Any:
    """A residual stream: each value is used twice, so that the sweep has gradients to add."""
    for _ in range(4):
        x = x + branch
        branch = branch + x
    return x


def _torch_ops() -> dict[str, Function]:
    import torch
    from torch.nn import functional as F

    labels = torch.from_numpy(LABELS)
    return {
        "linear": F.linear,
        "layer_norm": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-6),
        "gelu": F.gelu,
        "softmax": partial(F.softmax, dim=-1),
        "scaled_dot_product_attention": F.scaled_dot_product_attention,
        "cross_entropy": lambda x: F.cross_entropy(x, labels),
        "8 additions": _stream,
    }


OPS: dict[str, tuple[Function, list[tuple[int, ...]]]] = {  # name: (tinyvit's, the shapes of its arguments)
    "linear": (tv.ops.linear, [TOKENS, (HIDDEN[2], TOKENS[2]), HIDDEN[2:]]),
    "layer_norm": (tv.ops.layer_norm, [TOKENS, TOKENS[2:], TOKENS[2:]]),
    "gelu": (tv.ops.gelu, [HIDDEN]),
    "softmax": (tv.ops.softmax, [SCORES]),
    "scaled_dot_product_attention": (tv.ops.scaled_dot_product_attention, [HEADS] * 3),
    "cross_entropy": (lambda x: tv.ops.cross_entropy(x, LABELS), [(BATCH, CONFIG.num_classes)]),
    "8 additions": (_stream, [TOKENS, TOKENS]),
}


def ours(function: Function, arrays: Sequence[np.ndarray], backward: bool) -> Callable[[], Any]:
    """Tinyvit's forward, recorded, or forward and backward."""
    xs = [tv.tensor(array, requires_grad=True) for array in arrays]
    y = function(*xs)
    gy = np.ones(y.shape, y.dtype)
    return (lambda: tv.grad(function(*xs), xs, gy)) if backward else lambda: function(*xs)


def theirs(function: Function, arrays: Sequence[np.ndarray], backward: bool) -> Callable[[], Any]:
    """PyTorch's."""
    import torch

    xs = [torch.from_numpy(array).requires_grad_() for array in arrays]
    gy = torch.ones_like(function(*xs))
    return (lambda: torch.autograd.grad(function(*xs), xs, gy)) if backward else lambda: function(*xs)


def switched_off(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same without tinyvit's kernels."""

    def run_plain() -> None:
        with kernels.switched(False):
            run()

    return run_plain


def measure(op: str, backward: bool, rounds: int) -> dict[str, Any]:
    """Time an op with everybody on as many threads as there are now."""
    function, shapes = OPS[op]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    candidates = {"tinyvit": ours(function, arrays, backward)}
    if kernels.in_use():
        candidates["tinyvit without kernels"] = switched_off(candidates["tinyvit"])
    if find_spec("torch"):
        candidates["torch"] = theirs(_torch_ops()[op], arrays, backward)
    ms = _common.medians(_common.paired(candidates, rounds))
    elements = sum(array.size for array in arrays)
    return {
        "op": op,
        "pass": "forward and backward" if backward else "forward",
        "elements": elements,
        "ms": ms,
        "ns an element": {name: round(1e6 * value / elements, 3) for name, value in ms.items()},
        "ratio to torch": _common.ratios(ms, "torch"),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's BLAS and PyTorch on one thread."""
    torch: Any = import_module("torch") if find_spec("torch") else None
    usual = torch.get_num_threads() if torch else 0
    with threadpool_limits(1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(usual)


def main() -> None:
    parser = _common.parser(__doc__, rounds=9)
    parser.add_argument("--only", type=_common.choice(OPS), default=tuple(OPS), help="some of the ops")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for threads, limits in (("default", nullcontext), ("one", one_thread)):
        with limits():
            for op in options.only:
                for backward in (False, True):
                    rows.append({"threads": threads, **measure(op, backward, options.rounds)})
    print(_common.table([in_short(row) for row in rows]))
    print(_common.save("ops", {"unit": "ms, medians", "rows": rows}, options.out))


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table that is printed."""
    compared = {f"{name} / torch": ratio for name, ratio in row["ratio to torch"].items()}
    return {"op": row["op"], "pass": row["pass"], "threads": row["threads"], **row["ms"], **compared}


if __name__ == "__main__":
    main()
