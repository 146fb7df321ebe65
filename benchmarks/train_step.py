"""A whole train step (forward, backward, AdamW) of four ViTs, beside other libraries and the products alone.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --peers torch    # beside PyTorch eager alone

On a CPU (`gpu.py` is for a GPU), in float32, with exact GELU, the same weights and images for all, taken in turn in one
run. Before anything is timed, the losses of two steps must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import _common
import peers
from _work import WORK, Work, add_rows
from peers import EVERY, OTHERS, OURS, PLAIN
from peers.products import Products

FLOOR = "products alone"
TARGETS = ("torch", "compile", FLOOR)  # what tinyvit is measured by
LIMIT = 20  # seconds of timed calls that a candidate gets on one row


def measure(name: str, work: Work, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Time one row of the table."""
    made = {peer: peers.make(peer, work) for peer in names}
    losses = peers.check_losses(made)
    candidates: dict[str, Callable[[], Any]] = {peer: one.step for peer, one in made.items()}
    row: dict[str, Any] = {"work": name, "batch": len(work.labels), "losses": losses}
    floor = Products(work)
    candidates[FLOOR] = floor.step
    row["arrangement of the products"] = floor.arrangement
    # no warm-up: the steps that were compared are enough
    row["ms"] = ms = _common.medians(_common.paired(candidates, options.rounds, 0, LIMIT))
    row |= {f"ratio to {to}": _common.ratios(ms, to) for to in TARGETS if to in ms}
    return row


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table that is printed: milliseconds, and tinyvit's ratios."""
    compared = {f"{OURS} / {to}": row["ms"][OURS] / ms for to, ms in row["ms"].items() if to in TARGETS}
    return {"model": row["work"], "batch": row["batch"], **row["ms"], **compared}


def main() -> None:
    parser = _common.parser(__doc__, rounds=5)
    parser.add_argument("--peers", type=_common.choice(OTHERS), default=OTHERS, help=f"some of {','.join(OTHERS)}")
    add_rows(parser)
    parser.add_argument("--all", action="store_true", help="HIPS autograd on every row, not on the first alone")
    options = parser.parse_args()
    names = peers.installed([OURS, EVERY, PLAIN, *options.peers])
    rows = []
    for name in options.rows:
        work = Work.of(*WORK[name])
        fast = [peer for peer in names if peer != "autograd" or name == next(iter(WORK)) or options.all]
        rows.append(measure(name, work, fast, options))
        print(in_short(rows[-1]), flush=True)
    print(_common.table([in_short(row) for row in rows]))
    print(_common.save("train_step_cpu", {"unit": "ms, medians", "rows": rows}, options.out))


if __name__ == "__main__":
    main()
