"""Classifying one image, and 64 at once, with four ViTs, beside other libraries.

    python benchmarks/inference.py
    python benchmarks/inference.py --peers torch --batches 1

Float32, the same weights and images for all, taken in turn in one run; nothing is recorded on either side (PyTorch's
inference mode). Before anything is timed, the logits must agree.
"""

from __future__ import annotations

from typing import Any

import _common
import peers
from _work import WORK, Work, add_rows
from peers import EVERY, OURS, PLAIN

OTHERS = ("torch", "compile", "jax")
LIMIT = 20  # seconds of timed calls that a candidate gets on one row


def measure(name: str, work: Work, names: list[str], rounds: int) -> dict[str, Any]:
    """Time one row of the table."""
    made = {peer: peers.make(peer, work) for peer in names}
    peers.check_logits(made)
    candidates = {peer: one.forward for peer, one in made.items()}
    ms = _common.medians(_common.paired(candidates, rounds, limit=LIMIT))
    return {"work": name, "batch": len(work.labels), "ms": ms, "ratio to torch": _common.ratios(ms, "torch")}


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table that is printed."""
    compared = {f"{OURS} / torch": row["ms"][OURS] / row["ms"]["torch"]} if "torch" in row["ms"] else {}
    return {"model": row["work"], "batch": row["batch"], **row["ms"], **compared}


def main() -> None:
    parser = _common.parser(__doc__)
    parser.add_argument("--peers", type=_common.choice(OTHERS), default=OTHERS, help=f"some of {','.join(OTHERS)}")
    parser.add_argument("--batches", type=_common.choice(("1", "64")), default=("1", "64"), help="1, 64 or both")
    add_rows(parser)
    options = parser.parse_args()
    names = peers.installed([OURS, EVERY, PLAIN, *options.peers])
    rows = []
    for name in options.rows:
        for batch in map(int, options.batches):
            rows.append(measure(name, Work.of(WORK[name][0], batch), names, options.rounds))
            print(in_short(rows[-1]), flush=True)
    print(_common.table([in_short(row) for row in rows]))
    print(_common.save("inference", {"unit": "ms, medians", "rows": rows}, options.out))


if __name__ == "__main__":
    main()
