"""Each recipe is a config that makes a run, and a document that says what it takes and gives."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tinyvit import cli
from tinyvit.data import DATASETS, Dataset, Split
from tinyvit.training.config import merge, read_toml, reading, resolve
from tinyvit.training.run import make_trainer

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
SHAPES = {"digits": (1, 8, 8, 10), "fashion-mnist": (1, 28, 28, 10), "cifar10": (3, 32, 32, 10)}
FOLDERS = {"folder": 5, "imagenet-s16": 1000}  # recipe: classes

named = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def header(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").rstrip() for line in lines[: next(i for i, line in enumerate(lines) if not line)]]


def data_for(tables, path):
    """Data of the right form, however little."""
    if path.stem in FOLDERS:
        wanted = reading(tables)
        C, (H, W), K = wanted.channels, wanted.size, FOLDERS[path.stem]
    else:
        C, H, W, K = SHAPES[tables["data"]["name"]]
    rng = np.random.default_rng(0)
    few = Split(rng.integers(0, 256, (4, C, H, W), dtype=np.uint8), rng.integers(0, K, 4))
    return Dataset("few", few, few, few, tuple(map(str, range(K))), "")


@named
def test_a_recipe_makes_a_step(path):
    tables = merge(read_toml(path))
    assert path.stem in FOLDERS or tables["data"]["name"] in DATASETS
    data = data_for(tables, path)
    trainer = make_trainer(resolve(merge(tables, {"training": {"precision": "fp32"}}), data), data)
    if path.stem == "imagenet-s16":
        assert trainer.model.num_parameters == pytest.approx(22e6, rel=0.01)  # ViT-S/16
        return
    images, labels = next(trainer.loader.epoch())
    trainer.train_step(images, labels)
    assert trainer.step == 1


@named
def test_a_recipe_says_command_machine_time_and_result(path):
    text = "\n".join(header(path))
    for word in ("machine", "time", "result"):
        assert re.search(rf"^ {word} +\S", text, re.MULTILINE), word
    command = re.search(r"^ +(tinyvit train .*?)(?:  .*)?$", text, re.MULTILINE)[1]
    options = cli._parser().parse_args(shlex.split(command)[1:])
    assert ROOT / options.config == path
    for file in re.findall(r"benchmarks/results/\S+?\.json", text):
        assert (ROOT / file).is_file()
    assert "not measured" in text or "benchmarks/results/" in text


def test_the_recipe_of_the_digits_is_the_default():
    tables = merge(read_toml(ROOT / "recipes" / "digits.toml"))
    assert resolve(tables, DATASETS["digits"].load()) == resolve(merge(), DATASETS["digits"].load())
