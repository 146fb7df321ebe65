"""The commands `tinyvit features` and `tinyvit probe`: what comes out on which stream, with which exit code."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import tinyvit as tv
from tinyvit import cli
from tinyvit.data import digits, load_npz
from tinyvit.pretrained import Preprocessing, extract_features, knn, prepare, save_pretrained

CONFIG = {"image_size": 8, "patch_size": 4, "channels": 3, "dim": 16, "depth": 3, "num_heads": 2, "num_classes": 10}


@pytest.fixture
def tinyvit(capsys):
    """Run the command in this process: tinyvit("features", …) -> (exit code, standard output, standard error)."""

    def command(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as exit:  # argparse's
            code = exit.code
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of weights, in an otherwise empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    model = tv.ViT(tv.ViTConfig(**CONFIG), np.random.default_rng(0))
    save_pretrained(model, "w", preprocessing=Preprocessing((8, 8), "shortest", (10, 10)))
    return "w"


@pytest.fixture
def pictures(weights, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for name in ("a", "b", "more/c"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    return ["pictures/a.png", "pictures/b.png", "pictures/more/c.png"]


def test_features_writes_those_of_all_pictures_of_a_folder(tinyvit, weights, pictures):
    code, out, err = tinyvit("features", weights, "pictures", "--out", "new/f.npz", "--layers", 0, -1)
    assert (code, err) == (0, "")
    *report, last = out.splitlines()
    assert report == str(tv.from_pretrained(weights).report).splitlines()
    assert re.fullmatch(
        r"new/f\.npz: 3 images, class_token 16, patch_tokens 2×2×16, pooled 16, layer_0/class_token 16, .*"
        r"layer_2/pooled 16, 0\.0\d MB",
        last,
    )
    model = tv.from_pretrained(weights)
    wanted = extract_features(model, model.preprocessing(pictures), layers=[0, 2])
    with np.load("new/f.npz", allow_pickle=False) as file:
        assert set(file) == {*wanted, "paths", "grid"}
        assert file["paths"].tolist() == pictures
        assert file["grid"].tolist() == [2, 2]
        for name, array in wanted.items():
            np.testing.assert_allclose(file[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "kinds"),
    [("cls", {"class_token"}), ("patches", {"patch_tokens"}), ("all", {"class_token", "patch_tokens"})],
)
def test_features_keeps_the_tokens_that_are_asked_for(tinyvit, weights, pictures, tokens, kinds):
    code, out, err = tinyvit("features", weights, pictures[0], "--out", "f.npz", "--tokens", tokens, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer.keys() == {"out", "images", "features", "grid", "skipped", "weights"}
    assert (answer["out"], answer["images"], answer["grid"], answer["skipped"]) == ("f.npz", 1, [2, 2], [])
    with np.load("f.npz") as file:
        assert set(file) == kinds | {"pooled", "paths", "grid"}
        assert answer["features"] == {name: list(file[name].shape[1:]) for name in kinds | {"pooled"}}


@pytest.mark.parametrize(("size", "grid"), [([16], [4, 4]), ([8, 12], [2, 3])])
def test_features_are_those_of_another_size(tinyvit, weights, pictures, size, grid):
    code, out, _ = tinyvit("features", weights, "pictures", "--out", "f.npz", "--size", *size, "--json", "--batch", 2)
    assert (code, json.loads(out)["grid"]) == (0, grid)
    assert json.loads(out)["features"]["patch_tokens"] == [*grid, 16]


def test_features_of_a_bad_image_are_left_out_and_the_others_written(tinyvit, weights, pictures, tmp_path):
    (tmp_path / "pictures" / "bad.png").write_text("no picture")
    code, out, err = tinyvit("features", weights, "pictures", "gone.png", "--out", "f.npz")
    assert code == 3
    assert "f.npz: 3 images" in out
    bad, gone = err.splitlines()
    assert bad.startswith("tinyvit: pictures/bad.png cannot be read as an image")
    assert gone == "tinyvit: there is no image file gone.png"
    with np.load("f.npz") as file:
        assert file["paths"].tolist() == pictures
    code, out, err = tinyvit("features", weights, "pictures/bad.png", "--out", "none.npz")
    assert (code, err.count("\n")) == (3, 1)
    assert not (tmp_path / "none.npz").exists()
    code, out, _ = tinyvit("features", weights, "pictures", "--out", "f.npz", "--json")
    assert (code, json.loads(out)["images"], len(json.loads(out)["skipped"])) == (3, 3, 1)


def test_probe_prints_a_table(tinyvit, weights):
    code, out, err = tinyvit("probe", weights, "--data", "digits", "--k", 5, 20)
    assert (code, err) == (0, "")
    report = str(tv.from_pretrained(weights).report)
    assert out.startswith(f"{report}\n")
    title, _, head, *rows, _, took = out.removeprefix(f"{report}\n").splitlines()
    assert title == "digits: 1,259 training, 179 validation, 359 test images, 16 features (pooled)"
    assert head.split() == ["probe", "validation", "test"]
    assert [row.split("  ")[0] for row in rows[:2]] == ["k-NN, k = 5", "k-NN, k = 20"]
    assert re.fullmatch(r"linear, L2 \S+ +\d\d\.\d\d% +\d\d\.\d\d%", rows[2])
    assert took.startswith("features ")


def small_set(path):
    data = digits()
    parts = {"train": data.train, "val": data.validation, "test": data.test}
    arrays = {f"{name}_images": part.images[:80, 0] for name, part in parts.items()}
    np.savez(path, **arrays, **{f"{name}_labels": part.labels[:80] for name, part in parts.items()})
    return path


def test_probe_gives_the_report_as_json(tinyvit, weights):
    data = load_npz(small_set("small.npz"))
    given = ["--data", "small.npz", "--k", 3, "--features", "mean", "--json", "--workers", 1, "--batch", 50]
    code, out, err = tinyvit("probe", weights, *given)
    assert (code, err) == (0, "")
    report = json.loads(out)
    model = tv.from_pretrained(weights)
    kept = [prepare(model.preprocessing, split.images) for split in (data.train, data.test)]
    train, test = (extract_features(model, images, ["mean"])["mean"] for images in kept)
    right = (knn(train, data.train.labels, test, 3).argmax(axis=1) == data.test.labels).mean()
    assert report["knn"][0]["test_accuracy"] == pytest.approx(right, abs=1 / 80)
    assert report["images"] == {"train": 80, "validation": 80, "test": 80}
    assert (report["data"], report["features"], report["dim"]) == ("small", "mean", 16)
    assert report["linear"].keys() == {"l2", "validation_accuracy", "test_accuracy"}
    again = json.loads(tinyvit("probe", weights, *given)[1])
    assert {**again, "seconds": None} == {**report, "seconds": None}


ERRORS = [
    (
        ["features", "w", "pictures", "--out", "f.npz", "--layers", "3"],
        2,
        "there is no layer 3: this model",
    ),
    (["features", "w", "pictures", "--out", "f.npz", "--size", "8", "8", "8"], 2, "--size has 3 numbers"),
    (["features", "w", "pictures", "--out", "f.npz", "--size", "9"], 2, "image_size 9×9 is not a multiple"),
    (
        ["features", "w", "pictures", "--out", "pictures"],
        2,
        "--out pictures is a folder; name a file in it",
    ),
    (["features", "gone.safetensors", "pictures", "--out", "f.npz"], 3, r"gone\.safetensors"),
    (["features", "w", "empty", "--out", "f.npz"], 3, "empty holds no pictures"),
    (["features", "w", "gone.png", "--out", "f.npz"], 3, r"there is no image file gone\.png"),
    (["features", "w", "pictures", "--out", "w/config.json/f.npz"], 3, r"config\.json"),
    (["probe", "w", "--data", "digit"], 3, "unknown dataset 'digit': did you mean 'digits'"),
    (
        ["probe", "w", "--data", "small.npz", "--k", "81"],
        2,
        "k is 81; it must be from 1 to the 80 training",
    ),
    (["probe", "gone.safetensors", "--data", "digits"], 3, r"gone\.safetensors"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS, ids=lambda value: str(value)[:60])
def test_errors_are_one_sentence_and_leave_nothing(tinyvit, pictures, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    small_set("small.npz")
    before = sorted(tmp_path.rglob("*"))
    given, _, err = tinyvit(*arguments)
    assert given == code
    assert err.startswith("tinyvit: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "w", "a.png"], "the following arguments are required: --out"),
        (["features", "w", "a.png", "--out", "f.npz", "--tokens", "some"], "invalid choice: 'some'"),
        (["features", "w", "a.png", "--out", "f.npz", "--batch", "0"], "'0' is not a whole number of at least 1"),
        (["probe", "w"], "the following arguments are required: --data"),
        (["probe", "w", "--data", "digits", "--k", "0"], "'0' is not a whole number of at least 1"),
        (["probe", "w", "--data", "digits", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_told_how_it_would(tinyvit, arguments, message):
    code, out, err = tinyvit(*arguments)
    assert (code, out) == (2, "")
    assert message in err
