"""Draw the README's picture from the result files: time and peak memory of a train step, as a share of PyTorch's.

    python benchmarks/plot.py

It needs train_step_cpu.json and memory.json in benchmarks/results/, and Matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _common
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "speed.png"
TIME = {  # who: (what the legend says, colour); colours that the colour-blind can tell apart
    "tinyvit": ("tinyvit", "#0072b2"),
    "tinyvit without kernels": ("tinyvit, NumPy only", "#8fc1e3"),
    "compile": ("torch.compile", "#e69f00"),
    "jax": ("JAX, jit", "#009e73"),
    "products alone": ("matrix products alone", "#999999"),
}
MEMORY = {
    "tinyvit": ("tinyvit", "#0072b2"),
    "tinyvit checkpoint": ("tinyvit, checkpoint", "#56b4e9"),
    "torch checkpoint": ("PyTorch, checkpoint", "#e69f00"),
}
LABEL: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7}
WHITE = {"color": "white", "pad": 0.4}  # behind a label, where the line at 1 would cross it
TALLEST = 2.0  # a bar above is cut off, and says how tall it is


def bars(axes: Axes, rows: list[dict[str, Any]], shown: dict[str, tuple[str, str]], title: str) -> None:
    """A group of bars a row; the line at 1 is PyTorch eager."""
    present = {who: look for who, look in shown.items() if any(who in row["ratio to torch"] for row in rows)}
    width = 0.84 / len(present)
    for i, (who, (label, colour)) in enumerate(present.items()):
        heights = [row["ratio to torch"].get(who, np.nan) for row in rows]
        places = np.arange(len(rows)) + (i - (len(present) - 1) / 2) * width
        axes.bar(places, np.minimum(heights, TALLEST), width * 0.92, label=label, color=colour)
        for place, height in zip(places, heights, strict=True):
            if np.isfinite(height):
                text, top = f"{height:.2f}" + " ↑" * (height > TALLEST), min(height, TALLEST)
                axes.annotate(text, (place, top), (0, 2), textcoords="offset points", bbox=WHITE, **LABEL)
    axes.axhline(1, color="#d55e00", linewidth=1.2, label="PyTorch eager = 1")
    axes.set_xticks(range(len(rows)), map(_tick, rows), fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(0, 1.12 * min(TALLEST, max(1.0, *(h for row in rows for h in _ratios(row, present)))))
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.2))


def _tick(row: dict[str, Any]) -> str:
    image, _, model = row["work"].partition(" ")
    return f"{image}\n{model}\nbatch {row['batch']}"


def _ratios(row: dict[str, Any], present: dict[str, Any]) -> list[float]:
    return [ratio for who, ratio in row["ratio to torch"].items() if who in present]


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return a result file."""
    path = folder / f"{name}.json"
    if not path.exists():
        command = name.removesuffix("_cpu")
        raise SystemExit(f"{path} is missing: run `python benchmarks/{command}.py` first, which writes it")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", type=Path, default=_common.RESULTS, help="folder of the result files")
    options.add_argument("--out", type=Path, default=IMAGE, help="the picture")
    chosen = options.parse_args()
    time, memory = read(chosen.results, "train_step_cpu"), read(chosen.results, "memory")
    mpl.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(5, 4), layout="constrained")
    bars(left, time["rows"], TIME, "Time of a train step on a CPU, PyTorch eager = 1 (shorter is faster)")
    bars(right, memory["rows"], MEMORY, "Peak memory of a train step, PyTorch eager = 1 (shorter is less)")
    facts = time["machine"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "jax", "numpy", "numba") if name in facts)
    figure.supxlabel(f"{facts['processor']}, {facts['cores']} cores; {versions}", fontsize=7, color="#666666", x=0.5)
    figure.savefig(chosen.out, dpi=150, facecolor="white")
    print(chosen.out)


if __name__ == "__main__":
    main()
