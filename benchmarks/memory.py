"""Peak memory of some train steps of four ViTs, beside PyTorch, each in a fresh process of its own. Linux only.

    python benchmarks/memory.py

Counted is what a process has in memory at the highest moment of its steps, less what it had before there was a model,
after its imports and a step of a tiny one: weights, gradients, moments, the batch, what the backward pass needs, and
all that the library sets aside besides. What a process has in all stands in the result file too.
"""

from __future__ import annotations

import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _common
import peers
from _work import WORK, Work, add_rows
from peers import OURS, PLAIN

PROCESS = Path("/proc/self")
CANDIDATES = (OURS, PLAIN, "tinyvit checkpoint", "torch", "torch checkpoint")
TINY = {"image_size": 4, "patch_size": 2, "num_classes": 2, "dim": 8, "depth": 1, "num_heads": 1}


def peak(candidate: str, name: str, steps: int) -> tuple[int, int]:
    """Return the KiB that some steps take at most, and these with the imports; for a fresh process.

    Linux keeps the highest resident size of a process as VmHWM. It is not `ru_maxrss`: that one a process inherits from
    the one which started it. Writing 5 to clear_refs sets VmHWM back to the size of the moment, and so forgets what
    only the imports needed. A step of a tiny model comes before: what is imported or compiled at the first call is no
    part of a step.
    """
    peers.make(candidate, Work.of(TINY, 2)).step()
    (PROCESS / "clear_refs").write_text("5")
    before = _status("VmRSS")
    peer = peers.make(candidate, Work.of(*WORK[name]))
    for _ in range(steps):
        peer.step()
    highest = _status("VmHWM")
    return highest - before, highest


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
    assert found, name
    return int(found[1])


def measure(candidate: str, name: str, steps: int, repeats: int) -> tuple[float, float]:
    """Return the medians of some processes, in MiB."""
    found = []
    for _ in range(repeats):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found.append(process.submit(peak, candidate, name, steps).result())
    step, whole = (round(statistics.median(sizes) / 1024, 1) for sizes in zip(*found, strict=True))
    return step, whole


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table that is printed."""
    compared = {f"{name} / torch": ratio for name, ratio in row["ratio to torch"].items()}
    return {"model": row["work"], "batch": row["batch"], **row["MiB"], **compared}


def main() -> None:
    parser = _common.parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=5, help="train steps of each process (5)")
    add_rows(parser)
    options = parser.parse_args()
    if not (PROCESS / "clear_refs").exists():
        raise SystemExit("the peak of a process is read from Linux's /proc, which is not here: run this on Linux")
    candidates = peers.installed(CANDIDATES)
    rows = []
    for name in options.rows:
        found = {candidate: measure(candidate, name, options.steps, options.rounds) for candidate in candidates}
        sizes, whole = ({candidate: pair[i] for candidate, pair in found.items()} for i in (0, 1))
        ratios = _common.ratios(sizes, "torch")
        rows.append(
            {"work": name, "batch": WORK[name][1], "MiB": sizes, "ratio to torch": ratios, "MiB with imports": whole}
        )
        print(in_short(rows[-1]), flush=True)
    print(_common.table([in_short(row) for row in rows]))
    result = {"unit": "MiB, peak over the imports", "steps": options.steps, "rows": rows}
    print(_common.save("memory", result, options.out))


if __name__ == "__main__":
    main()
