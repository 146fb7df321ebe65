"""The first command's claim: test accuracy and seconds of `tinyvit train`, seeds 0, 1 and 2.

python benchmarks/digits.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

SEEDS = (0, 1, 2)


def train(seed: int, folder: Path) -> dict[str, Any]:
    """Run the command as a newcomer does, in a process of its own, and read what it recorded."""
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "tinyvit.cli",
        "train",
        "--device",
        "cpu",
        "--seed",
        str(seed),
        "--out",
        str(folder),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "seed": seed,
        "test_accuracy": final["test_accuracy"],
        "seconds": final["seconds"],
        "command_seconds": round(wall, 1),
    }


def main() -> None:
    options = _common.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [train(seed, Path(folder) / str(seed)) for seed in SEEDS]
    mean = statistics.mean(row["test_accuracy"] for row in rows)
    result = {"command": "tinyvit train", "rows": rows, "mean_test_accuracy": round(mean, 5)}
    print(_common.save("digits", result, options.out), result)


if __name__ == "__main__":
    main()
