"""Train steps on an NVIDIA GPU: tinyvit, as it is and as a CUDA graph, beside PyTorch eager and compiled.

    python benchmarks/gpu.py

The ViTs of the literature on images of 224×224, in bfloat16 (PyTorch: autocast) and in float32 (without TF32, on either
side). PyTorch has its fused attention, LayerNorm, GELU and AdamW. A turn is ten steps that are launched one after the
other and waited for at the end, as in training. Before anything is timed, the losses of two steps must agree.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import _common
import peers
from _work import Work
from peers import GRAPH, OURS

import tinyvit as tv
from tinyvit.engine.backend import namespace_on
from tinyvit.engine.kernels.cublas import product
from tinyvit.study.summary import summary, totals

ROWS = (  # (size, batch, precision)
    ("tiny", 64, "bf16"),
    ("tiny", 256, "bf16"),
    ("small", 64, "bf16"),
    ("base", 16, "bf16"),
    ("base", 128, "bf16"),
    ("tiny", 64, "fp32"),
    ("base", 32, "fp32"),
)
NAMES = (OURS, GRAPH, "torch", "compile")
STEPS = 10  # a turn
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-4}  # relative, between losses
MANY = 1000  # steps, over which memory must not grow
MIB = 2**20


def wait() -> None:
    namespace_on("gpu").module.cuda.Device().synchronize()


def peak_rate(precision: str, side: int = 8192) -> float:
    """Multiply-adds a second of a large product, the best of some."""
    xp = namespace_on("gpu")
    dtype = "bfloat16" if precision == "bf16" else "float32"
    a, b = (xp.random.standard_normal((side, side), dtype="float32").astype(dtype) for _ in range(2))
    out = xp.empty((side, side), dtype)
    best = 0.0
    for _ in range(8):
        wait()
        start = time.perf_counter()
        for _ in range(3):
            product(a, b, out)
        wait()
        best = max(best, 3 * side**3 / (time.perf_counter() - start))
    return best


def turn(peer: Any) -> Callable[[], None]:
    """Ten steps, and the wait for them."""

    def steps() -> None:
        for _ in range(STEPS):
            peer.queue()
        wait()

    return steps


def held() -> float:
    """MiB of the GPU that all libraries of this process have taken."""
    free, total = namespace_on("gpu").module.cuda.runtime.memGetInfo()
    return (total - free) / MIB


def give_back() -> None:
    """Return what no array needs to the GPU, so that the next candidate's share can be seen."""
    namespace_on("gpu").module.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def launches(peer: Any) -> int | None:
    """How often the host launches something in a step; None without PyTorch, whose profiler counts."""
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        peer.queue()
        wait()
    return sum(event.count for event in found.key_averages() if "Launch" in event.key)


def measure(row: tuple[str, int, str], peak: float, rounds: int) -> dict[str, Any]:
    """Time one row of the table."""
    size, batch, precision = row
    name = f"vit_{size}_patch16_224"
    work = Work.of_config(tv.ViTConfig.named(name), batch)
    made: dict[str, Any] = {}
    memory: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    for peer in peers.installed(NAMES):
        give_back()
        before = held()
        made[peer] = peers.make(peer, work, "gpu", precision=precision)
        losses[peer] = [made[peer].step() for _ in range(2)]
        for _ in range(2):  # a graph is recorded in the third step
            made[peer].queue()
        wait()
        memory[peer] = round(held() - before, 1)
    _agree(losses, TOLERANCE[precision])
    turns = _common.paired({peer: turn(one) for peer, one in made.items()}, rounds, warmup=1)
    ms = {peer: round(value / STEPS, 3) for peer, value in _common.medians(turns).items()}
    counted = totals(summary(work.config), batch)
    forward = dict.fromkeys(ms, counted["batch_multiply_adds"])
    for peer in {OURS, GRAPH} & {*ms}:
        forward[peer] -= batch * counted["skipped_multiply_adds"]
    return {
        "work": name,
        "batch": batch,
        "precision": precision,
        "losses": losses,
        "ms": ms,
        "images a second": {peer: round(1e3 * batch / value) for peer, value in ms.items()},
        "share of the peak": {peer: round(3 * forward[peer] / (1e-3 * value) / peak, 3) for peer, value in ms.items()},
        "MiB": memory,
        "launches": {peer: launches(one) for peer, one in made.items()},
        **{f"ratio to {to}": _common.ratios(ms, to) for to in ("torch", "compile") if to in ms},
    }


def _agree(losses: dict[str, list[float]], tolerance: float) -> None:
    for peer, given in losses.items():
        for loss, expected in zip(given, losses[OURS], strict=True):
            if not abs(loss / expected - 1) <= tolerance:
                raise SystemExit(
                    f"the losses are {given} with {peer} and {losses[OURS]} with {OURS}: nothing was timed"
                )


def growth() -> dict[str, Any]:
    """MiB that a small model's memory has grown by in many steps, after the first ten."""
    config = tv.ViTConfig(image_size=32, patch_size=4, num_classes=10, dim=192, depth=6, num_heads=3)
    grown = {}
    for name in (OURS, GRAPH):
        peer = peers.make(name, Work.of_config(config, 128), "gpu", precision="bf16")
        for _ in range(10):
            peer.queue()
        wait()
        before = held()
        for _ in range(MANY):
            peer.queue()
        wait()
        grown[name] = round(held() - before, 1)
    return {"steps": MANY, "MiB": grown}


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table that is printed."""
    best = min((peer for peer in row["ms"] if peer in (OURS, GRAPH)), key=row["ms"].get)
    compared = {f"graph / {to}": row["ms"][GRAPH] / row["ms"][to] for to in ("torch", "compile") if to in row["ms"]}
    line = {"model": row["work"], "batch": row["batch"], "in": row["precision"], **row["ms"], **compared}
    return {**line, "of the peak": row["share of the peak"][best], "MiB": row["MiB"][best]}


def main() -> None:
    options = _common.parser(__doc__, rounds=5).parse_args()
    namespace_on("gpu")
    peaks = {precision: peak_rate(precision) for precision in TOLERANCE}
    rows = []
    for row in ROWS:
        rows.append(measure(row, peaks[row[2]], options.rounds))
        print(in_short(rows[-1]), flush=True)
        give_back()
    print(_common.table([in_short(row) for row in rows]))
    result = {
        "unit": "ms of a train step, medians",
        "peak, TFLOP/s": {precision: round(2e-12 * rate, 1) for precision, rate in peaks.items()},
        "rows": rows,
        "memory grown": growth(),
    }
    print(result["peak, TFLOP/s"], result["memory grown"])
    print(_common.save("gpu", result, options.out))


if __name__ == "__main__":
    main()
