"""The twin in PyTorch that benchmarks/recipe.py trains beside a recipe computes the recipe's own model."""

import importlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv

pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_the_twin_starts_as_the_recipes_model(monkeypatch, pool, position):
    import torch

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    twin = importlib.import_module("recipe").twin
    shape = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 3, "dim": 16, "depth": 2, "num_heads": 2}
    config = tv.ViTConfig(**shape, pool=pool, class_token=pool == "cls", position=position)
    ours, rng = tv.ViT(config, np.random.default_rng(0)), np.random.default_rng(1)
    ours.load_state_dict({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in ours.state_dict().items()})
    images = rng.standard_normal((5, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        theirs = twin(ours)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(ours(images).numpy(), theirs, atol=1e-5)


@pytest.mark.slow
def test_a_twin_that_was_interrupted_goes_on_to_the_same_result(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    recipe = importlib.import_module("recipe")
    file = tmp_path / "short.toml"
    file.write_text('[model]\ndim = 16\ndepth = 1\n[data]\nname = "digits"\naugment = []\n[training]\nepochs = 3\n')
    whole = recipe.pytorch_run(file, 0, tmp_path / "whole.pt")
    accuracy, looks = recipe.PyTorchTwin.accuracy, []

    def interrupted(self, loader):
        looks.append(loader)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return accuracy(self, loader)

    monkeypatch.setattr(recipe.PyTorchTwin, "accuracy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.pytorch_run(file, 0, tmp_path / "cut.pt")
    monkeypatch.setattr(recipe.PyTorchTwin, "accuracy", accuracy)
    resumed = recipe.pytorch_run(file, 0, tmp_path / "cut.pt")
    for name in ("test_accuracy", "validation_accuracy", "epochs"):
        assert resumed[name] == whole[name]
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_the_pace_of_both_is_measured_on_the_same_batches(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    recipe = importlib.import_module("recipe")
    short = '[model]\ndim = 16\ndepth = 1\n[data]\nname = "digits"\naugment = []\n[training]\nepochs = 1\n'
    (tmp_path / "short.toml").write_text(short)
    rows = [{"who": "tinyvit", "seed": 0, "test_accuracy": 0.5}]
    kept = tmp_path / "recipe_short.json"
    kept.write_text(json.dumps({"machine": {}, "recipe": "short.toml", "rows": rows}))
    seen = {"Trainer": [], "PyTorchTwin": []}

    def train_step(self, images, labels):
        seen[type(self).__name__].append(labels)
        time.sleep(0.01)

    for name in seen:
        monkeypatch.setattr(getattr(recipe, name), "train_step", train_step)
    monkeypatch.setattr(recipe, "RECIPES", tmp_path)
    monkeypatch.setattr("sys.argv", ["recipe.py", "short", "--pace", "--rounds", "1", "--out", str(tmp_path)])
    recipe.main()
    for ours, theirs in zip(seen["Trainer"][:5], seen["PyTorchTwin"][:5], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    result = json.loads(kept.read_text())
    assert result["rows"] == rows
    assert set(result["pace"]["seconds of an epoch"]) == {"tinyvit", "pytorch"}
    assert "recipe_short.json" in capsys.readouterr().out
