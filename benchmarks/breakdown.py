"""Where the time of a train step goes: how long each kernel takes, with one worker and with all of them.

    python benchmarks/breakdown.py --rows 1

Every kernel is wrapped in two looks at the clock, and so are the adding of gradients and the optimizer. The times of
the parts are those of all workers together: a part whose time rises with the workers waits for memory, or for another
thread.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import _common
from _work import WORK, Work, add_rows
from peers.ours import Ours

from tinyvit.engine import kernels
from tinyvit.training import parallel, parallel_backward

REST = "all else, and waiting"


class Clock:
    """Seconds by name, added up over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.lock = threading.Lock()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, and its calls are timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - start
                with self.lock:
                    self.seconds[name] += took

        return timed

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Time the kernels and the adding of gradients inside the block."""
        found, take = dict(kernels.table("cpu")), parallel._Sum._take
        for name, (forward, backward) in found.items():
            if backward:  # the optimizer's have none
                timed = self.around(f"{name} forward", forward), self.around(f"{name} backward", backward)
                kernels.table("cpu")[name] = kernels.Kernel(*timed)
        parallel._Sum._take = self.around("adding gradients", take)  # type: ignore[method-assign]
        try:
            yield
        finally:
            kernels.table("cpu").update(found)
            parallel._Sum._take = take  # type: ignore[method-assign]


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Time the parts of a step, in turn with one worker and with one a core."""
    fields, batch = WORK[name]
    ours = Ours(Work.of(fields, batch), "cpu")
    ways = {"one worker": 1, "all workers": parallel.default_workers()}
    steps: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    ours.step()
    for _ in range(rounds):
        for way, workers in ways.items():
            steps[way].append(_step(ours, workers))
    return {
        "work": name,
        "batch": batch,
        "workers": ways,
        "ms": {way: _medians(found) for way, found in steps.items()},
    }


def _step(ours: Ours, workers: int) -> dict[str, float]:
    """Seconds of the whole step by the clock, and of its parts, those of all workers added."""
    clock = Clock()
    ours.optimizer.zero_grad()
    start = time.perf_counter()
    with clock.inside():
        parallel_backward(ours._loss, ours.images, ours.labels, shards=ours.shards, workers=workers)
    swept = time.perf_counter()
    ours.optimizer.step()
    end = time.perf_counter()
    rest = workers * (swept - start) - sum(clock.seconds.values())
    return {"the step": end - start, **clock.seconds, "optimizer": end - swept, REST: rest}


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    return {part: round(1e3 * statistics.median(step[part] for step in steps), 2) for part in steps[0]}


def main() -> None:
    parser = _common.parser(__doc__)
    add_rows(parser)
    options = parser.parse_args()
    if not kernels.in_use():
        raise SystemExit("breakdown.py times kernels, and there are none here: pip install 'tinyvit[fast]'")
    rows = [measure(name, options.rounds) for name in options.rows]
    for row in rows:
        one, several = row["ms"].values()
        parts = sorted(one, key=lambda part: -one[part])
        print(f"\n{row['work']}, batch {row['batch']}, ms:")
        print(
            _common.table(
                [
                    {
                        "part": part,
                        **{way: row["ms"][way][part] for way in row["ms"]},
                        "ratio": several[part] / one[part],
                    }
                    for part in parts
                ]
            )
        )
    print(_common.save("breakdown", {"unit": "ms, medians", "rows": rows}, options.out))


if __name__ == "__main__":
    main()
