"""How the time of a train step grows with batch, tokens, width and depth: the slope on a log-log scale.

    python benchmarks/scaling.py

One size is varied at a time, in turn in one run, and a line is fitted through log time over log size. Beside it stands
the slope of a line through the multiply-adds of the same sizes, counted by `tinyvit summary`: what the time would do
if nothing but matrix products took any, at the same speed at every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import _common
import numpy as np
import peers
from _work import Work
from peers import OURS

from tinyvit.study.summary import summary, totals

BASE = {"image_size": 32, "patch_size": 4, "num_classes": 10, "dim": 192, "depth": 4, "num_heads": 3}
BATCH = 16
HEAD = 64  # numbers, of each head at every width
AXES: dict[str, dict[int, tuple[dict[str, int], int]]] = {  # axis: {size: (config, batch)}
    "batch": {batch: (BASE, batch) for batch in (8, 16, 32, 64)},
    "tokens": {
        (side // 4) ** 2 + 1: ({**BASE, "image_size": side}, BATCH) for side in (16, 24, 32, 48, 64)
    },  # with the class token
    "width": {dim: ({**BASE, "dim": dim, "num_heads": dim // HEAD}, BATCH) for dim in (128, 192, 256, 384, 512)},
    "depth": {depth: ({**BASE, "depth": depth}, BATCH) for depth in (2, 4, 8, 16)},
}


def slope(values: Mapping[int, float]) -> float:
    """Fit log value = slope · log size + constant, by least squares."""
    sizes = np.log(list(values))
    return round(float(np.polyfit(sizes, np.log(list(values.values())), 1)[0]), 3)


def measure(axis: str, name: str, rounds: int) -> dict[str, Any]:
    """Time a train step at all sizes of one axis."""
    works = {size: Work.of(fields, batch) for size, (fields, batch) in AXES[axis].items()}
    candidates = {str(size): peers.make(name, work).step for size, work in works.items()}
    ms = _common.medians(_common.paired(candidates, rounds))
    multiply_adds = {
        size: totals(summary(work.config), len(work.labels))["batch_multiply_adds"] for size, work in works.items()
    }
    return {
        "axis": axis,
        "ms": ms,
        "forward multiply-adds": multiply_adds,
        "slope": slope({size: ms[str(size)] for size in works}),
        "slope of the multiply-adds": slope(multiply_adds),
    }


def in_short(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table that is printed."""
    sizes = list(row["ms"])
    texts = {"sizes": f"{sizes[0]} … {sizes[-1]}", "ms": f"{row['ms'][sizes[0]]:.0f} … {row['ms'][sizes[-1]]:.0f}"}
    return {"varied": row["axis"], **texts, **{name: row[name] for name in ("slope", "slope of the multiply-adds")}}


def main() -> None:
    options = _common.parser(__doc__, rounds=7).parse_args()
    rows = [measure(axis, OURS, options.rounds) for axis in AXES]
    print(_common.table([in_short(row) for row in rows]))
    result = {"unit": "ms of a train step, medians", "base": {**BASE, "batch": BATCH}, "rows": rows}
    print(_common.save("scaling", result, options.out))


if __name__ == "__main__":
    main()
