"""A recipe's claim: test accuracy and time of `tinyvit train --config RECIPE`, beside the same recipe in PyTorch.

    python benchmarks/recipe.py fashion-mnist                    # seeds 0 and 1, tinyvit and PyTorch: hours on a CPU
    python benchmarks/recipe.py fashion-mnist --only tinyvit --seeds 1

Each run is a process of its own. PyTorch starts from the same weights, sees the same batches in the same order, and
makes the same updates, in its own idioms (eager, fused attention, fused AdamW): what differs are the roundings, and the
time. Runs that stand in the result file already are kept, and one that was interrupted goes on where it was (`runs/`),
so that a night may be cut in pieces; its seconds are those of all its pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _common
import numpy as np

import tinyvit as tv
from tinyvit.training.config import Config, merge, open_dataset, read_toml, resolve
from tinyvit.training.flat import decays
from tinyvit.training.run import evaluation_loader, make_schedule, make_trainer

RECIPES = Path(__file__).parent.parent / "recipes"
WHO = ("tinyvit", "pytorch")


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


def pytorch_run(recipe: Path, seed: int, kept: Path) -> dict[str, Any]:
    """Train the same model on the same batches; seconds are those of the steps, as in tinyvit's record.

    After each epoch, all that is needed to go on is in the file `kept`.
    """
    import torch
    from torch.nn import functional as F

    config, dataset = resolved(recipe, seed)
    trainer = make_trainer(config, dataset)  # never run: it has the first weights, and makes the batches
    t, schedule, loader = config.training, make_schedule(config, len(trainer.loader)), trainer.loader
    if (t.optimizer, t.ema, t.layer_decay, t.init, t.freeze) != ("adamw", 0, 1, "", 0):
        raise SystemExit("the twin in PyTorch knows AdamW without averaged weights, and no fine-tuning")
    model = twin(trainer.model)
    names = {name for name, p in trainer.model.named_parameters() if decays(p)}
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in names) == decays], "weight_decay": decay}
        for decays, decay in ((True, t.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=t.lr, fused=True)
    seconds, step, begin = 0.0, 0, 0
    if kept.exists():
        before = torch.load(kept, weights_only=True)
        model.load_state_dict(before["model"])
        optimizer.load_state_dict(before["optimizer"])
        seconds, step, begin = before["seconds"], before["step"], before["epochs"]
    for epoch in range(begin, t.epochs):
        model.train()
        for images, labels in loader.epoch(epoch):
            start = time.perf_counter()
            optimizer.zero_grad()
            logits = model(torch.from_numpy(images))
            loss: Any = F.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=t.label_smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip_norm or float("inf"))
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.step()
            step += 1
            seconds += time.perf_counter() - start
        accuracy = _accuracy(model, evaluation_loader(config, dataset.validation))
        print(f"pytorch, epoch {epoch + 1}/{t.epochs}: validation {accuracy:.2%}, {seconds:.1f} s", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**state, "seconds": seconds, "step": step, "epochs": epoch + 1}, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    return {
        "test_accuracy": _accuracy(model, evaluation_loader(config, dataset.test)),
        "validation_accuracy": _accuracy(model, evaluation_loader(config, dataset.validation)),
        "seconds": round(seconds, 3),
        "epochs": t.epochs,
    }


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


def _accuracy(model: Any, loader: Any) -> float:
    import torch

    model.eval()
    with torch.inference_mode():
        right = [(model(torch.from_numpy(x)).numpy().argmax(axis=1) == y) for x, y in loader]
    return float(np.concatenate(right).mean())


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
    given = options.parse_args()
    recipe = RECIPES / f"{given.recipe}.toml"
    name = "recipe_" + given.recipe.replace("-", "_")
    before = given.out / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(before.read_text())["rows"] if before.exists() else []
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
            result = {"recipe": recipe.name, "rows": rows, "mean_test_accuracy": means}
            print(_common.save(name, result, given.out), rows[-1], flush=True)


if __name__ == "__main__":
    main()
