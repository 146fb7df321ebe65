"""What the benchmarks share: paired timing, the machine's description, tables and result files."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

RESULTS = Path(__file__).parent / "results"
PAUSE = 0.05  # seconds; worker threads spin for a while after their work, and would slow down the next candidate
TURN = 0.1  # seconds; a shorter call is repeated until its turn has lasted so long
QUIET = 0.05  # the share of the machine that others may take
PACKAGES = ("tinyvit", "numpy", "numba", "torch", "jax", "jaxlib", "autograd", "cupy-cuda13x", "cupy-cuda12x")


def paired(
    candidates: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2, limit: float = float("inf")
) -> dict[str, list[float]]:
    """Time the candidates in turn, A B C A B C …, so that a drift of the machine touches all.

    Args:
        candidates: what is called, by name.
        rounds: turns of each candidate.
        warmup: calls before the first turn, not counted; without any, a turn is one call.
        limit: seconds; who has had so many sits out the rounds that are left.

    Returns:
        Seconds a call, a number for each turn: the mean of its calls.
    """
    calls = {}
    for name, run in candidates.items():
        took = [_clocked(run, 1) for _ in range(warmup)]
        calls[name] = max(1, round(TURN / took[-1])) if took else 1
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    before = _processor_seconds()
    for _ in range(rounds):
        for name, run in candidates.items():
            if calls[name] * sum(seconds[name]) < limit:
                time.sleep(PAUSE)
                seconds[name].append(_clocked(run, calls[name]))
    _spent.append([after - then for after, then in zip(_processor_seconds(), before, strict=True)])
    return seconds


def _clocked(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


_spent: list[list[float]] = []  # of each paired run: see _processor_seconds


def _processor_seconds() -> tuple[float, float, float]:
    """Seconds that all cores had, were busy for anybody, and for this process; zeros without Linux's /proc."""
    try:
        user, nice, system, idle, wait, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0, 0.0, 0.0
    busy = user + nice + system + interrupts + soft + stolen
    ticks = os.sysconf("SC_CLK_TCK")
    return (busy + idle + wait) / ticks, busy / ticks, time.process_time()


def others() -> float | None:
    """Return the share of the machine that other processes took while this one timed; None where nobody knows."""
    whole, busy, own = (sum(column) for column in zip(*_spent, strict=True)) if _spent else (0.0, 0.0, 0.0)
    return round(max(0.0, (busy - own) / whole), 3) if whole else None


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each candidate, in milliseconds."""
    return {name: round(1e3 * statistics.median(times), 4) for name, times in seconds.items()}


def ratios(values: dict[str, float], to: str) -> dict[str, float]:
    """Return every value as a multiple of one of them; nothing where that one is missing."""
    return {name: round(value / values[to], 3) for name, value in values.items() if to in values and name != to}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out rows as Markdown; the columns are the keys, in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Return what a figure needs beside it to mean something."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for library in threadpool_info():
        facts[f"threads of {library['internal_api']}"] = library["num_threads"]
    if "torch" in sys.modules:
        facts["threads of torch"] = sys.modules["torch"].get_num_threads()
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        facts["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return facts


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def save(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result beside the benchmarks, or to the folder that was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    facts = machine()
    if (share := others()) is not None:
        facts["share of the machine that others took"] = share
        if share > QUIET:
            print(f"other processes took {share:.0%} of this machine: on a quiet one, the figures will be others")
    path.write_text(json.dumps({"machine": facts, **result}, indent=1) + "\n")
    return path


def parser(description: str | None, rounds: int = 15) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds, help=f"turns of each candidate ({rounds})")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    return options


def choice(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a type for an option that takes some of the known words, with commas between them."""

    def words(text: str) -> tuple[str, ...]:
        names = tuple(word.strip() for word in text.split(",") if word.strip())
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: use some of {','.join(known)}")
        return names

    return words
