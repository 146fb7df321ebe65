"""`tinyvit data`: what is listed, fetched, told about a dataset and found wrong with it."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tinyvit import cli
from tinyvit.data import DATASETS, digits, inspection
from tinyvit.data.sources import named

CHINA, FLOWER = (Image.fromarray(photo).resize((320, 214)) for photo in load_sample_images().images)


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "SYSTEM", tmp_path / "system")


@pytest.fixture
def data(capsys):
    """Run the command in this process: data("list", …) -> (exit code, standard output, standard error)."""

    def command(*arguments):
        try:
            code = cli.main(["data", *map(str, arguments)])
        except SystemExit as exit:  # argparse's
            code = exit.code
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def photos(tmp_path):
    """Ten good photographs of each class to train on, and two to test with."""
    folder = tmp_path / "photos"
    for name, photo in (("china", CHINA), ("flower", FLOWER)):
        for i in range(12):
            path = folder / ("train" if i < 10 else "test") / name / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((i, 0, 320, 214)).save(path, quality=90)
    return folder


def test_list_says_what_is_here(data, tmp_path):
    code, out, err = data("list")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["name", "download", "licence", "place"]
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert list(rows) == list(DATASETS)
    assert rows["cifar10"].split(maxsplit=1)[1] == "170.1 MB  no licence stated   not here"
    assert rows["digits"].endswith(" none  CC BY 4.0           comes with tinyvit")
    assert max(map(len, out.splitlines())) <= 100
    (tmp_path / "cache" / "cifar10").mkdir(parents=True)
    listed = json.loads(data("list", "--json")[1])["datasets"]
    assert {row["name"]: row["place"] is not None for row in listed} == {name: name == "digits" for name in DATASETS}
    assert [row["size"] for row in listed if row["name"] == "cifar100"] == [168513733]


def test_get_says_where_it_is_or_what_to_do(data, tmp_path, monkeypatch):
    code, out, err = data("get", "mnist", "--offline")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz" in err
    assert f"into {tmp_path}/cache/mnist" in err
    asked = []
    monkeypatch.setattr(named, "download", lambda file, folder, mirrors: asked.append((file.name, folder)))
    assert data("get", "cifar10") == (0, f"{tmp_path}/cache/cifar10\n", "")
    assert asked == [("cifar-10-binary.tar.gz", tmp_path / "cache" / "cifar10")]
    code, _, err = data("get", "minst")
    assert (code, "did you mean 'mnist'?" in err) == (3, True)
    assert data("get", "digits")[0] == 0


def test_info_of_the_digits(data):
    code, out, err = data("info", "digits")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "dataset  digits"
    assert re.match(r"layout   npz, \d\d\.\d kB in ", lines[1])
    assert lines[2] == "images   1,259 training, 179 validation, 359 test, of 8×8×1"
    assert lines[3] == "mean     0.306, std 0.376"
    assert "CC BY 4.0" in lines[4]
    assert lines[-1].split() == ["9", "126", "18", "36"]


def test_info_of_photographs(data, photos):
    code, out, _ = data("info", photos, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["name"], found["layout"], found["channels"]) == ("photos", "pictures in folders", 3)
    assert found["image_size"] == [224, 224]
    assert found["counts"] == {
        "training": {"china": 9, "flower": 9},
        "validation": {"china": 1, "flower": 1},
        "test": {"china": 2, "flower": 2},
    }
    assert found["file_sizes"][0] == [311, 214] or found["file_sizes"][0] == [312, 214]
    assert found["disk_bytes"] == sum(path.stat().st_size for path in photos.rglob("*.jpg"))
    assert len(found["mean"]) == len(found["std"]) == 3
    assert "files    31" in data("info", photos)[1]


def test_info_describes_what_can_be_read_and_counts_the_rest(data, photos):
    for path in sorted((photos / "train").rglob("*.jpg"))[:8]:
        path.write_bytes(b"")
    code, out, err = data("info", photos)
    assert (code, err) == (0, "")
    found = json.loads(data("info", photos, "--json")[1])
    assert 7 <= len(found["unusable"]) <= 8  # one may be drawn for validation
    assert set(found["unusable"].values()) == {"is empty"}
    assert f"unusable {len(found['unusable'])} of 18 training files looked at; `tinyvit data scan` names all" in out
    left = Image.new("RGB", (50, 40), (255, 0, 0))
    for path in (photos / "train").rglob("*.jpg"):
        if path.stat().st_size:
            left.save(path, quality=100)
    assert "mean     0.99" in data("info", photos)[1]


def test_info_of_photographs_that_are_all_bad(data, photos):
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    code, out, err = data("info", photos)
    assert (code, err) == (0, "")
    assert "unusable 18 of 18 training files looked at" in out
    assert "mean" not in out
    assert data("scan", photos)[0] == 1


def test_info_and_scan_download_nothing(data, monkeypatch):
    monkeypatch.setattr(named, "download", lambda *_: pytest.fail("it downloads"))
    code, out, err = data("info", "mnist")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == "place    not on this machine; `tinyvit data get mnist` fetches it"
    assert lines[2].startswith("download 11.6 MB: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-")
    assert lines[3] == "licence  CC BY-SA 3.0: Y. LeCun and C. Cortes"
    found = json.loads(data("info", "mnist", "--json")[1])
    assert (found["place"], found["size"], len(found["files"])) == (None, 11594722, 4)
    code, out, err = data("scan", "mnist")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "mnist is not on this machine; `tinyvit data get mnist` fetches it (11.6 MB)" in err


def test_scan_of_what_is_good(data, photos):
    code, out, err = data("scan", photos)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "photos: 24 images looked at, 0 of them cannot be used"
    assert "the same image in several splits: 0" in out
    assert out.splitlines()[-2:] == [
        "sizes: 309 × 214 to 320 × 214 pixels, median 315 × 214",
        "training images a class: 9 each",
    ]
    assert "with a side under 32 pixels: 0" in out
    code, out, _ = data("scan", "digits", "--json")
    found = json.loads(out)
    counts = np.bincount(digits().train.labels)
    assert (code, found["images"], found["unreadable"]) == (0, 1797, {})
    assert found["imbalance"] == counts.max() / counts.min()
    assert found["sizes"] == {"8 × 8": 1797}
    lines = data("scan", "digits")[1].splitlines()
    assert [line.partition(":")[0] for line in lines[4:]] == ["of one colour", "sizes", "training images a class"]
    assert lines[5] == "sizes: all of 8 × 8 pixels"


def test_scan_finds_every_fault_that_was_put_in(data, photos):
    train, test = photos / "train", photos / "test"
    original = train / "china" / "00.jpg"
    faults = {
        "leak": test / "china" / "leak.jpg",
        "double": train / "china" / "double.jpg",
        "contradiction": train / "flower" / "china.png",
    }
    for path in (faults["leak"], faults["double"]):
        path.write_bytes(original.read_bytes())
    with Image.open(original) as picture:
        picture.save(faults["contradiction"])  # other bytes, the same pixels
    Image.new("RGB", (64, 64), (9, 9, 9)).save(train / "china" / "flat.png")
    FLOWER.resize((31, 60)).save(train / "flower" / "tiny.png")
    FLOWER.resize((400, 70)).save(train / "flower" / "long.png")
    (train / "flower" / "cut.jpg").write_bytes(original.read_bytes()[:3000])
    (train / "flower" / "named.jpg").write_bytes((train / "flower" / "tiny.png").read_bytes())
    (train / "notes.txt").touch()
    code, out, _ = data("scan", photos, "--json")
    found = json.loads(out)
    assert code == 1
    assert found["images"] == 24 + 8
    assert {path.rpartition("/")[2]: reason for path, reason in found["unreadable"].items()}.keys() == {
        "cut.jpg",
        "named.jpg",
    }
    assert found["unreadable"][str(train / "flower" / "named.jpg")] == "is mislabelled: its contents are PNG"
    same = sorted(map(str, (original, *faults.values())))
    assert [sorted(group) for group in found["leaks"]] == [same]
    assert [sorted(group) for group in found["contradictions"]] == [same]
    assert sum(len(group) for group in found["duplicates"]) >= 2
    assert found["constant"] == [str(train / "china" / "flat.png")]
    assert found["tiny"] == [str(train / "flower" / "tiny.png")]
    assert found["extreme"] == [str(train / "flower" / "long.png")]
    assert found["passed_over"] == [str(train / "notes.txt")]
    code, out, _ = data("scan", photos)
    assert code == 1
    assert "32 images looked at, 2 of them cannot be used" in out
    assert "named.jpg is mislabelled: its contents are PNG" in out
    assert "the same image under two labels: 1, 1 of them above" in out
    assert out.count("flower/china.png") == 1
    assert "passed over: 1" in out
    code, out, err = data("scan", photos, "--list")
    assert (code, err) == (1, "")
    assert sorted(out.splitlines()) == [str(train / "flower" / name) for name in ("cut.jpg", "named.jpg")]
    assert data("scan", "digits", "--list") == (0, "", "")


def test_scan_of_arrays_names_images_by_split_and_row(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (30, 6, 6), dtype=np.uint8) for part in ("train", "val", "test")}
    labels = {f"{part}_labels": np.repeat([0, 1], [29, 1]) for part in ("train", "val", "test")}
    arrays["train_images"][29] = arrays["train_images"][4]
    arrays["train_images"][6] = arrays["train_images"][5]
    arrays["test_images"][7] = arrays["val_images"][8]
    arrays["val_images"][2] = 0
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    steps = []
    found = inspection.scan(tmp_path / "x.npz", on_images=lambda done, total: steps.append((done, total)))
    assert steps == [(30, 90)] * 3
    assert found.contradictions == [["training[4]", "training[29]"]]
    assert found.duplicates == [["training[5]", "training[6]"]]
    assert found.leaks == [["validation[8]", "test[7]"]]
    assert (found.constant, found.tiny, found.extreme) == (["validation[2]"], [], [])
    assert found.imbalance == 29
    assert "29 (0); the classes are far from balanced" in found.to_text()


def test_scan_of_a_class_without_training_images():
    counts = {"training": {"a": 3, "b": 0}}
    scan = inspection.Scan("x", 3, counts=counts)
    assert json.loads(scan.to_json())["imbalance"] is None
    assert "0 (b) to 3 (a); the classes are far from balanced" in scan.to_text()


@pytest.mark.parametrize("action", ["info", "scan"])
def test_what_is_no_dataset(data, tmp_path, action):
    (tmp_path / "x.csv").touch()
    for name, message in (("imagenet", "unknown dataset 'imagenet'"), (tmp_path / "x.csv", "is not a dataset")):
        code, out, err = data(action, name)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert message in err


def test_data_alone_says_what_there_is(data):
    code, _, err = data()
    assert code == 2
    assert "ACTION" in err
    code, out, _ = data("--help")
    assert (code, all(action in out for action in ("list", "get", "info", "scan"))) == (0, True)
