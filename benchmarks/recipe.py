"""A recipe's claim: test accuracy and time of `tinyvit train --config RECIPE`, beside the same recipe in PyTorch.

    python benchmarks/recipe.py fashion-mnist                    # seeds 0 and 1, tinyvit and PyTorch: hours on a CPU
    python benchmarks/recipe.py fashion-mnist --only tinyvit --seeds 1
    python benchmarks/recipe.py fashion-mnist --pace             # a minute or two: only how fast both are, in turn

Each run is a process of its own. PyTorch starts from the same weights, sees the same batches in the same order, and
makes the same updates, in its own idioms (eager, fused attention, fused AdamW): what differs are the roundings, and the
time. Runs that stand in the result file already are kept, and one that was interrupted goes on where it was (`runs/`),
so that a night may be cut in pieces; its seconds are those of all its pieces, and of whatever else the machine did. So
the ratio of the two is measured apart: --pace takes stretches of steps in turn, and their medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import numpy as np

import tinyvit as tv
from tinyvit.training import Trainer
from tinyvit.training.config import Config, merge, open_dataset, read_toml, resolve
from tinyvit.training.flat import decays
from tinyvit.training.run import evaluation_loader, make_trainer

RECIPES = Path(__file__).parent.parent / "recipes"
WHO = ("tinyvit", "pytorch")
STRETCH = 20  # steps of a turn


def tinyvit_run(recipe: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Run the command as a user does, and read what it recorded."""
    command = [sys.executable, "-m", "tinyvit", "train", "--device", "cpu", "--out", str(folder)]
    begun = (folder / "config.toml").exists()
    subprocess.run([*command, *(["--resume"] if begun else ["--config", str(recipe), "--seed", str(seed)])], check=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    *epochs, final = records
    return {
        "test_accuracy": final["test_accuracy"],
        "validation_accuracy": epochs[-1]["validation_accuracy"],
        "seconds": final["seconds"],
        "epochs": len(epochs),
    }


class PyTorchTwin:
    """The recipe's model, first weights and updates in PyTorch; `trainer` is tinyvit's, whose batches it takes."""

    def __init__(self, config: Config, trainer: Trainer):
        import torch

        t = config.training
        if (t.optimizer, t.ema, t.layer_decay, t.init, t.freeze) != ("adamw", 0, 1, "", 0):
            raise SystemExit("the twin in PyTorch knows AdamW without averaged weights, and no fine-tuning")
        self.settings, self.schedule, self.steps = t, trainer.schedule, 0
        self.model = twin(trainer.model)
        names = {name for name, p in trainer.model.named_parameters() if decays(p)}
        groups = [
            {"params": [p for n, p in self.model.named_parameters() if (n in names) == decays], "weight_decay": decay}
            for decays, decay in ((True, t.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=t.lr, fused=True)

    def train_step(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Forward, backward, update: one step on one batch."""
        import torch
        from torch.nn import functional as F

        self.model.train()
        self.optimizer.zero_grad()
        logits, wanted = self.model(torch.from_numpy(images)), torch.from_numpy(labels)
        loss: Any = F.cross_entropy(logits, wanted, label_smoothing=self.settings.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.steps)
        self.optimizer.step()
        self.steps += 1

    def accuracy(self, loader: Any) -> float:
        """The share of a loader's images that the model is right about."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            right = [(self.model(torch.from_numpy(x)).numpy().argmax(axis=1) == y) for x, y in loader]
        return float(np.concatenate(right).mean())


def pytorch_run(recipe: Path, seed: int, kept: Path) -> dict[str, Any]:
    """Train the twin on the same batches; seconds are those of the steps, as in tinyvit's record.

    After each epoch, all that is needed to go on is in the file `kept`.
    """
    import torch

    config, dataset = resolved(recipe, seed)
    trainer = make_trainer(config, dataset)  # never run: it has the first weights, and makes the batches
    peer, epochs = PyTorchTwin(config, trainer), config.training.epochs
    seconds, begin = 0.0, 0
    if kept.exists():
        before = torch.load(kept, weights_only=True)
        peer.model.load_state_dict(before["model"])
        peer.optimizer.load_state_dict(before["optimizer"])
        seconds, peer.steps, begin = before["seconds"], before["step"], before["epochs"]
    for epoch in range(begin, epochs):
        for images, labels in trainer.loader.epoch(epoch):
            start = time.perf_counter()
            peer.train_step(images, labels)
            seconds += time.perf_counter() - start
        accuracy = peer.accuracy(evaluation_loader(config, dataset.validation))
        print(f"pytorch, epoch {epoch + 1}/{epochs}: validation {accuracy:.2%}, {seconds:.1f} s", flush=True)
        state = {"model": peer.model.state_dict(), "optimizer": peer.optimizer.state_dict()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**state, "seconds": seconds, "step": peer.steps, "epochs": epoch + 1}, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    return {
        "test_accuracy": peer.accuracy(evaluation_loader(config, dataset.test)),
        "validation_accuracy": peer.accuracy(evaluation_loader(config, dataset.validation)),
        "seconds": round(seconds, 3),
        "epochs": epochs,
    }


def pace(recipe: Path, rounds: int) -> dict[str, float]:
    """Seconds that an epoch's steps take each, from stretches of steps on the same batches, in turn."""
    config, dataset = resolved(recipe, 0)
    trainer = make_trainer(config, dataset)
    peer = PyTorchTwin(config, trainer)
    batches = list(itertools.islice(trainer.loader.epoch(0), STRETCH))

    def stretch(train_step: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            for images, labels in batches:
                train_step(images, labels)

        return run

    turns = {"tinyvit": stretch(trainer.train_step), "pytorch": stretch(peer.train_step)}
    stretches = _common.medians(_common.paired(turns, rounds, warmup=1))
    return {who: round(1e-3 * ms / len(batches) * len(trainer.loader), 2) for who, ms in stretches.items()}


def twin(ours: tv.ViT) -> Any:
    """Return the same model in PyTorch, with the same weights; class token and learned positions as it has them."""
    import torch
    from peers.pytorch import Model

    c = ours.config

    class Twin(Model):
        def forward(self, x: Any) -> Any:
            x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
            if c.class_token:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            x = x + self.pos_embed
            for block in self.blocks:
                x = block(x)
            x = self.norm(x)
            return self.head(x[:, 0] if c.pool == "cls" else x[:, c.num_prefix_tokens :].mean(1))

    model = Twin(c, checkpoint=False)
    if not c.class_token:
        del model.cls_token
    table = torch.from_numpy(ours.pos_embed.table.numpy().copy())
    if c.position == "learned":
        model.pos_embed = torch.nn.Parameter(table)
    else:
        del model.pos_embed
        model.register_buffer("pos_embed", table, persistent=False)
    state = ours.state_dict()
    model.load_state_dict({name: torch.from_numpy(state[name]) for name in model.state_dict()})
    return model


def resolved(recipe: Path, seed: int) -> tuple[Config, Any]:
    """Return the recipe's config, and its data."""
    tables = merge(read_toml(recipe), {"training": {"seed": seed}})
    dataset = open_dataset(tables)
    return resolve(tables, dataset), dataset


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("recipe", help="a name in recipes/")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--only", choices=WHO)
    options.add_argument("--out", type=Path, default=_common.RESULTS, help="folder of the result file")
    options.add_argument("--runs", type=Path, default=Path("runs"), help="folder of tinyvit's runs")
    options.add_argument("--pace", action="store_true", help="train nothing to its end")
    options.add_argument("--rounds", type=int, default=7, help="turns of each, for --pace (7)")
    given = options.parse_args()
    recipe = RECIPES / f"{given.recipe}.toml"
    name = "recipe_" + given.recipe.replace("-", "_")
    before = given.out / f"{name}.json"
    result: dict[str, Any] = {"recipe": recipe.name, "rows": []}
    if before.exists():
        result |= json.loads(before.read_text())
        del result["machine"]  # that of the last part stands there
    if given.pace:
        seconds = pace(recipe, given.rounds)
        result["pace"] = {"seconds of an epoch": seconds, "ratio to pytorch": _common.ratios(seconds, "pytorch")}
        print(_common.save(name, result, given.out), result["pace"])
        return
    rows = result["rows"]
    for seed in given.seeds:
        for who in [given.only] if given.only else WHO:
            if any((row["who"], row["seed"]) == (who, seed) for row in rows):
                continue
            run = given.runs / f"{recipe.stem}-seed-{seed}"
            twin = run.with_name(f"{run.name}-pytorch.pt")
            made = tinyvit_run(recipe, seed, run) if who == "tinyvit" else pytorch_run(recipe, seed, twin)
            rows.append({"who": who, "seed": seed, **made})
            by = {w: [row["test_accuracy"] for row in rows if row["who"] == w] for w in WHO}
            means = {w: round(statistics.mean(accuracies), 5) for w, accuracies in by.items() if accuracies}
            result["mean_test_accuracy"] = means
            print(_common.save(name, result, given.out), rows[-1], flush=True)


if __name__ == "__main__":
    main()
