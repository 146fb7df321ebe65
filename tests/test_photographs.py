"""A folder of photographs from the first look to the last prediction, by the commands that a user types."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tinyvit import cli
from tinyvit.data import ImageFiles, Reading, preprocess
from tinyvit.engine import ops
from tinyvit.training import load_checkpoint, load_trained
from tinyvit.training.config import reading

RECIPE = ["--config", str(Path(__file__).resolve().parents[1] / "recipes" / "folder.toml")]
CHOICES = ["model.image_size=24", "model.dim=16", "model.depth=1", "model.num_heads=2", "data.batch_size=32"]
CHOICES += ["training.epochs=2", "training.warmup_epochs=0", "training.lr=3e-3", "training.checkpoint_epochs=1"]
CHOICES += ["data.validation=0.15", "data.test=0.15", "data.crop_ratio=0.8", "data.interpolation=bicubic"]
SET = [word for choice in CHOICES for word in ("--set", choice)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Parts of the two photographs of scikit-learn, of several sizes, as JPEG and PNG: 160 in two classes."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir()
        for i in range(80):
            h, w = rng.integers(60, 200, 2)
            y, x = rng.integers(0, picture.shape[0] - h), rng.integers(0, picture.shape[1] - w)
            Image.fromarray(picture[y : y + h, x : x + w]).save(root / name / f"{i:03d}.{'jpg' if i % 3 else 'png'}")
    return root


def train(data, out, *more):
    return cli.main(["train", *RECIPE, "--data", str(data), "--out", str(out), "--device", "cpu", *SET, *more])


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "mine"
    assert train(photographs, folder) == 0
    return folder


def test_the_run_tells_its_classes_and_repeats_itself_bit_for_bit(run, photographs, tmp_path):
    arrays, meta = load_checkpoint(run / "model.safetensors")
    assert meta["classes"] == ["china", "flower"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records] == ["epoch", "epoch", "final"]
    again = ["train", "--config", str(run / "config.toml"), "--out", str(tmp_path / "again"), "--workers", "1"]
    assert cli.main([*again, "--device", "cpu"]) == 0
    others, _ = load_checkpoint(tmp_path / "again" / "model.safetensors")
    assert all(np.array_equal(array, others[name]) for name, array in arrays.items())


def test_predict_sees_a_picture_as_evaluation_does(run, photographs, tmp_path, capsys):
    asked = [photographs / "china" / "001.jpg", photographs / "flower" / "003.png"]
    picture = tmp_path / "where.png"
    assert cli.main(["predict", str(run), *map(str, asked), "--json", "--attention", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    with Image.open(picture) as drawn:
        assert drawn.width > 100
    trained = load_trained(run)
    wanted = reading(trained.config.to_dict())
    assert (wanted.size, wanted.crop_ratio, wanted.interpolation) == ((24, 24), 0.8, "bicubic")
    images = preprocess(ImageFiles(asked, wanted)[:], trained.config.data.mean, trained.config.data.std)
    chances = ops.softmax(trained.model(images)).numpy()
    for answer, row in zip(found, chances, strict=True):
        told = {top["class"]: top["probability"] for top in answer["top"]}
        assert told == pytest.approx(dict(zip(trained.classes, row.tolist(), strict=True)), abs=1e-6)
    plain = ImageFiles(asked, Reading(image_size=24))[:]
    assert not np.array_equal(plain, ImageFiles(asked, wanted)[:])  # what travels with the model matters


def test_a_bad_photograph_ends_a_run_or_is_skipped_as_the_user_says(photographs, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(photographs, data)
    bad = data / "china" / "bad.jpg"
    bad.write_bytes((data / "china" / "001.jpg").read_bytes()[:600])
    assert cli.main(["data", "scan", str(data)]) == 1
    assert "bad.jpg" in capsys.readouterr().out
    assert train(data, tmp_path / "raised", "--on-bad-image", "raise") == 3
    error = capsys.readouterr().err
    assert "bad.jpg" in error
    assert "--on-bad-image skip" in error
    assert train(data, tmp_path / "skipped", "--on-bad-image", "skip") == 0
    assert re.search(r"1 image: \S*bad\.jpg", capsys.readouterr().out)


def test_print_config_shows_the_whole_and_leaves_nothing(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["train", *RECIPE, "--data", str(photographs), "--print-config", "--on-bad-image", "raise"]
    assert cli.main([*given, *SET]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["printed.toml"]
    assert cli.main(["train", "--config", str(printed), "--print-config"]) == 0
    assert capsys.readouterr().out == printed.read_text()
    assert 'on_bad_image = "raise"' in printed.read_text()
