"""A logger is a function: `on_record` hears of each epoch and of the end, `on_step` of each step.

    python demos/14_a_logger_of_your_own.py

A `Run` writes its records as JSON lines anyway. Whoever else is to hear of them is given to `Run.train`: here a CSV
file, and a list of numbers for a sparkline in the terminal.
"""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

from tinyvit.training import Run, Trainer

EPOCHS = 8
BARS = "▁▂▃▄▅▆▇█"
CONFIG: dict[str, dict[str, Any]] = {
    "model": {"dim": 32, "depth": 2},
    "data": {"augment": "none"},
    "training": {"epochs": EPOCHS, "warmup_epochs": 0},
}


class Table:
    """The records of epochs as a CSV file."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, record: dict[str, Any]) -> None:
        # TensorBoard, with writer = SummaryWriter(folder):
        #     for key, value in record.items(): key == "event" or writer.add_scalar(key, value, record["step"])
        # Weights & Biases, after wandb.init(config=CONFIG):
        #     wandb.log(record, step=record["step"])
        if record["event"] != "epoch":  # the last one tells of the test images, and has other keys
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, record)
            if not file.tell():
                writer.writeheader()
            writer.writerow(record)


def sparkline(numbers: list[float]) -> str:
    """Numbers as bars of one character each, the least and the largest at the ends."""
    low, high = min(numbers), max(numbers)
    return "".join(BARS[round((x - low) / ((high - low) or 1) * (len(BARS) - 1))] for x in numbers)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Run(CONFIG, folder / "run", "cpu")
        table, norms = Table(folder / "epochs.csv"), []

        def on_step(trainer: Trainer) -> None:  # sees everything of the loop: here, how large the weights are
            norms.append(sum(float((p.data**2).sum()) for p in trainer.model.parameters()) ** 0.5)

        final = run.train(on_step=on_step, on_record=table)

        rows = list(csv.DictReader((folder / "epochs.csv").read_text(encoding="utf-8").splitlines()))
        lines = [json.loads(line) for line in run.metrics_path.read_text(encoding="utf-8").splitlines()]
    print(f"{len(lines)} records in metrics.jsonl, {len(rows)} rows in epochs.csv: {', '.join(rows[0])}")
    print(f"loss                 {sparkline([float(row['loss']) for row in rows])}  to {float(rows[-1]['loss']):.3f}")
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    print(f"validation accuracy  {sparkline(accuracies)}  to {accuracies[-1]:.1%}")
    print(
        f"norm of the weights  {sparkline(norms[:: len(norms) // EPOCHS])}  to {norms[-1]:.2f}, of {len(norms)} steps"
    )
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in lines[:-1]]
    assert final == lines[-1]


if __name__ == "__main__":
    main()
