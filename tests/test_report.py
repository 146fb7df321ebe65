"""The report of a run: its numbers are those of independent counts, and the page is one whole, escaped file."""

import base64
import dataclasses
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

import tinyvit as tv
from tinyvit import cli
from tinyvit.data import DataError, Dataset, Split
from tinyvit.study import write_report
from tinyvit.study.report import answers as room
from tinyvit.study.report.answers import Answers, answers, calibration_error, class_scores, confusion, most_confused
from tinyvit.training import CheckpointError, Run, TrainedModel, load_trained, predict
from tinyvit.training.config import merge

EMPTY_TAGS = {"meta", "img", "path", "use"}
HOSTILE = ('<script>alert("1")</script>', "a & b", "$x_1$ \"quoted\" 'name'")


class Page(HTMLParser):
    """A page, parsed: every tag closed in order, its text, tables and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes, closed=False):
        self.tags.append((tag, dict(attributes)))
        if tag not in EMPTY_TAGS and not closed:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes, closed=True)

    def handle_endtag(self, tag):
        if tag not in EMPTY_TAGS:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def rows_under(self, *head):
        """The rows of the table of this head."""
        first = self.rows.index(list(head)) + 1
        return [row for row in self.rows[first:] if len(row) == len(head)]


def assert_whole(text):
    """Well-formed, self-contained and readable aloud; return the page."""
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.attributes("html") == [{"lang": "en"}]
    assert len(page.attributes("title")) == len(page.attributes("h1")) == 1
    assert not page.attributes("script")
    assert not page.attributes("link")
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes[name])
        if tag == "img":
            assert attributes["alt"]
    urls = re.findall(r"url\(([^)]*)\)|@import", "".join(page.words)) + re.findall(r"url\(([^)]*)\)", text)
    assert all(url.startswith("#") for url in urls)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(used) <= set(ids)
    return page


def pictures(page):
    """The raster pictures of a page, decoded."""
    found = []
    for attributes in page.attributes("img"):
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition("base64,")[2]))) as image:
            found.append(np.asarray(image))
    return found


def cells(n=24, channels=3, classes=("dark", "grey", "bright"), size=(8, 12), test=True, name="cells", spread=90):
    """Images whose class is their brightness."""
    rng = np.random.default_rng(0)
    splits = []
    for count in (n, n, n if test else 0):
        labels = np.arange(count) % len(classes)
        images = rng.integers(0, 60, (count, channels, *size)) + spread * labels[:, None, None, None]
        splits.append(Split(images.astype(np.uint8), labels))
    return Dataset(name, *splits, tuple(classes), "none")


def save(path, data):
    arrays = {}
    for prefix, split in (("train", data.train), ("val", data.validation), ("test", data.test)):
        arrays |= {f"{prefix}_images": split.images.transpose(0, 2, 3, 1), f"{prefix}_labels": split.labels}
    np.savez(path, classes=np.array(data.classes), **arrays)
    return path


def train(folder, data="digits", epochs=2, model=(), **training):
    tables = {
        "model": {"dim": 16, "depth": 1, "num_heads": 2, **dict(model)},
        "data": {"name": str(data), "augment": "none", "batch_size": 200},
        "training": {"epochs": epochs, "warmup_epochs": 0, "lr": 1e-2, **training},
    }
    run = Run(merge(tables), folder, "cpu")
    run.train()
    return run


def untrained(dataset, **model):
    """A model of random weights for a dataset."""
    sizes = {"patch_size": 4, "dim": 8, "depth": 1, "num_heads": 1, "num_classes": dataset.num_classes, **model}
    config = tv.ViTConfig(image_size=dataset.image_size, channels=dataset.channels, **sizes)
    net = tv.ViT(config, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    net.load_state_dict({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in net.state_dict().items()})
    mean, std = dataset.statistics()
    run = tv.training.Config(config, tv.training.DataConfig(dataset.name, mean=mean, std=std))
    return TrainedModel(net.eval(), run, dataset.classes, "nowhere/model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "digits", epochs=6)


@pytest.fixture(scope="module")
def page(run):
    return assert_whole(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def said(run):
    """(labels, probabilities) of the test digits, asked for at once."""
    trained = load_trained(run.folder)
    d = trained.config.data
    return run.dataset.test.labels, predict(trained.model, run.dataset.test.images, d.mean, d.std)


# ---------------------------------------------------------------------------------------------------------- the numbers


def test_the_figures_at_the_head_are_those_of_the_run(run, page, said):
    labels, p = said
    final = json.loads(run.metrics_path.read_text().splitlines()[-1])
    right = p.argmax(axis=1) == labels
    assert f"{right.mean():.2%} of 359 test images right" in page.text
    assert right.mean() == final["test_accuracy"]
    figures = dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", (run.folder / "report.html").read_text()))
    figures = {term: re.sub("<.*?>", "", value) for term, value in figures.items()}
    assert figures["test accuracy"] == f"{right.mean():.2%}"
    assert figures["mistakes"] == f"{(~right).sum()} of 359"
    assert figures["loss"] == f"{final['test_loss']:.3f} nats"
    assert figures["mean F1 of the classes"] == f"{metrics.f1_score(labels, p.argmax(axis=1), average='macro'):.3f}"
    assert figures["parameters"] == f"{run.trainer.model.num_parameters:,}"


def test_precision_recall_and_f1_are_those_of_scikit_learn(page, said):
    labels, p = said
    expected = metrics.precision_recall_fscore_support(labels, p.argmax(axis=1), zero_division=np.nan)
    rows = page.rows_under("class", "images", "precision", "recall", "F1")[:10]
    for k, row in enumerate(rows):
        precision, recall, f1 = ("–" if np.isnan(x[k]) else f"{x[k]:.1%}" for x in expected[:3])
        assert row == [str(k), str(expected[3][k]), precision, recall, f1]


def test_the_confusion_matrix_is_that_of_scikit_learn(page, said):
    labels, p = said
    expected = metrics.confusion_matrix(labels, p.argmax(axis=1))
    shown = [[int(cell or 0) for cell in row[1:]] for row in page.rows_under("", *"0123456789")[:10]]
    np.testing.assert_array_equal(shown, expected)


def test_the_calibration_error_is_the_sum_over_the_bins_written_out(page, said):
    labels, p = said
    confidence, right = p.max(axis=1).astype(float), p.argmax(axis=1) == labels
    error = 0.0
    for b in range(15):
        inside = [i for i in range(len(labels)) if b / 15 < confidence[i] <= (b + 1) / 15]
        if inside:
            error += len(inside) / len(labels) * abs(np.mean(right[inside]) - np.mean(confidence[inside]))
    assert f"Expected calibration error (15 bins): {error:.3f}." in page.text
    assert f"a probability of {confidence.mean():.1%} and is right in {right.mean():.1%}" in page.text


def test_a_perfectly_calibrated_answer_has_no_error_and_a_sure_wrong_one_has_all():
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    assert calibration_error(np.array([0.0]), np.array([True])) == 1  # the least bin takes 0 too


def test_the_worst_mistakes_come_first_with_their_images(run, page, said):
    labels, p = said
    losses = -np.log(p[np.arange(359), labels].astype(float))
    wrong = np.flatnonzero(p.argmax(axis=1) != labels)
    worst = wrong[np.argsort(-losses[wrong], kind="stable")][:12]
    assert re.findall(r"image (\d+), loss (\d+\.\d\d)", page.text) == [(str(i), f"{losses[i]:.2f}") for i in worst]
    for i, shown in zip(worst, pictures(page), strict=False):
        np.testing.assert_array_equal(shown, run.dataset.test.images[i, 0])
        answer = p[i].argmax()
        assert f"{labels[i]}taken for {answer} with {p[i, answer]:.1%}, against {p[i, labels[i]]:.1%}" in page.text


def test_attention_is_drawn_for_answers_that_are_wrong_and_right(page):
    drawn = [a["alt"] for a in page.attributes("img") if "attention" in a["alt"]]
    assert len(drawn) == 6
    assert [a.get("class") for a in page.attributes("figure")].count("right") == 3
    assert [a.get("class") for a in page.attributes("figure")].count("wrong") == 3
    assert all(picture.std() > 10 for picture in pictures(page)[-6:])


def test_the_curves_are_inline_and_say_in_words_what_they_show(run, page):
    epochs = [json.loads(line) for line in run.metrics_path.read_text().splitlines()][:-1]
    spoken = [a["aria-label"] for a in page.attributes("svg")]
    assert len(spoken) == 3
    first, last = epochs[0]["validation_loss"], epochs[-1]["validation_loss"]
    assert f"validation from {first:.3g} to {last:.3g}" in spoken[0]
    text = (run.folder / "report.html").read_text()
    assert text.count("stroke: var(--accent)") >= 3  # in the colours of the page, light and dark
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", text)


def test_the_config_marks_what_is_not_the_default(run, page):
    rows = dict(row for row in page.rows if len(row) == 2)
    assert rows["epochs"] == "6 default 100"
    assert rows["dim"] == "16 default 64"
    assert rows["schedule"] == "cosine"
    assert rows["image_size"] == "8"  # the data's
    assert (run.folder / "config.toml").read_text() in (run.folder / "report.html").read_text().replace("&quot;", '"')
    assert f"tinyvit train --config {run.folder}/config.toml" in page.text


def test_the_times_and_the_machine_are_there(run, page):
    rates = [json.loads(line)["images_per_second"] for line in run.metrics_path.read_text().splitlines()[:-1]]
    assert f"{np.median(rates):,.0f} images/s" in page.text
    assert "Trained, and this page written, on" in page.text
    assert f"NumPy {np.__version__}" in re.sub("(NumPy)", r"\1 ", page.text)
    assert "BLAS" in page.text


# -------------------------------------------------------------------------------------------------- answers, by hand


def made(labels, predicted, K, confidence=0.9, of_truth=0.05):
    labels, predicted = np.array(labels), np.array(predicted)
    truth = np.where(labels == predicted, confidence, of_truth)
    return Answers("test", len(labels), np.arange(len(labels)), labels, predicted, np.full(len(labels), 0.9), truth, K)


def test_a_class_without_images_or_answers_has_no_score():
    s = class_scores(made([0, 0, 1], [0, 2, 2], 4))
    np.testing.assert_array_equal(s.precision, [1, np.nan, 0, np.nan])
    np.testing.assert_array_equal(s.recall, [0.5, 0, np.nan, np.nan])
    np.testing.assert_allclose(s.f1, [2 / 3, 0, 0, np.nan])


def test_most_confused_are_counted():
    a = made([0, 0, 1, 2, 2, 2], [1, 1, 1, 0, 1, 1], 3)
    assert most_confused(a, 2) == [(0, 1, 2), (2, 1, 2)]
    assert confusion(a).tolist() == [[0, 2, 0], [0, 1, 0], [1, 2, 0]]
    assert most_confused(made([1], [1], 3), 5) == []


class Lazy:
    """Images that are decoded when they are asked for; what is asked for is noted."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, images):
        self.images, self.shape, self.asked = images, images.shape, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        self.asked.append(len(self.images[rows]))
        return self.images[rows]


def test_images_are_asked_for_in_parts_and_evenly_spread_over_a_large_split(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "MOST_IMAGES", 100)
    monkeypatch.setattr(room, "AT_ONCE", 30)
    data = cells(n=250)
    lazy = Split(Lazy(data.test.images), data.test.labels)
    trained = untrained(data)
    a = answers(trained, lazy, "test")
    assert lazy.images.asked == [30, 30, 30, 10]
    assert (len(a), a.of) == (100, 250)
    assert a.rows[0] == 0
    assert set(np.diff(a.rows)) == {2, 3}
    whole = predict(trained.model, data.test.images[a.rows], trained.config.data.mean, trained.config.data.std)
    np.testing.assert_array_equal(a.predicted, whole.argmax(axis=1))
    np.testing.assert_allclose(a.of_truth, whole[np.arange(100), a.labels], rtol=1e-5)
    lazy.images.asked.clear()
    path = write_report(trained, tmp_path / "r.html", data=dataclasses.replace(data, test=lazy))
    assert "Of 250 test images 100 were looked at, evenly spread." in assert_whole(path.read_text()).text
    assert max(lazy.images.asked) <= 30


# --------------------------------------------------------------------------------------------------- all kinds of runs


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_names_are_escaped_and_images_of_any_channels_shown(tmp_path, channels):
    data = cells(channels=channels, classes=HOSTILE)
    folder = tmp_path / "a <b> & 'c'"
    run = train(folder, save(tmp_path / "<i>cells & co.npz", data), epochs=1)
    text = write_report(run).read_text(encoding="utf-8")
    page = assert_whole(text)
    assert "<script>" not in text
    assert "<i>" not in text
    assert "<b> & 'c'" not in text
    assert f"tinyvit train --config '{tmp_path}/a <b> & '\"'\"'c'\"'\"'/config.toml'" in page.text
    rows = page.rows_under("class", "images", "precision", "recall", "F1")[:3]
    assert [row[0] for row in rows] == list(HOSTILE)


def test_two_classes_and_no_mistake(tmp_path):
    data = cells(classes=("dark", "bright"), spread=180)
    run = train(tmp_path / "r", save(tmp_path / "two.npz", data), epochs=15)
    page = assert_whole(write_report(run).read_text())
    assert "100.00% of 24 test images right" in page.text
    assert "None of the 24 answers is wrong. These are the right ones of the largest loss." in page.text
    assert len(re.findall(r"rightly, with", page.text)) >= 6 + 2


def test_a_thousand_classes_are_a_picture_and_the_most_confused_pairs(tmp_path):
    classes = [f"class {i}" for i in range(1000)]
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (2000, 3, 8, 8)).astype(np.uint8), np.arange(2000) % 1000)
    data = Dataset("many", split, split, split, tuple(classes), "none")
    trained = untrained(data)
    page = assert_whole(write_report(trained, tmp_path / "many.html", data=data).read_text())
    a = answers(trained, split, "test")
    i, j, times = most_confused(a, 1)[0]
    row = page.rows_under("class", "was taken for", "times", "of its images")[0]
    assert row == [f"class {i}", f"class {j}", str(times), f"{times / 2:.1%}"]
    [matrix] = [p for p in pictures(page) if p.shape == (1000, 1000, 4)]
    np.testing.assert_array_equal(matrix[..., 3] > 0, confusion(a) > 0)
    rows = page.rows_under("class", "images", "precision", "recall", "F1")
    assert len([row for row in rows if row[0].startswith("class ")]) == 20 + 1000
    assert (tmp_path / "many.html").stat().st_size < 1_500_000


@pytest.mark.parametrize(("test", "validation", "name"), [(0, 24, "validation"), (0, 0, "training")])
def test_without_test_images_the_next_best_are_taken_and_it_says_so(tmp_path, test, validation, name):
    data = cells(test=bool(test))
    if not validation:
        data = dataclasses.replace(data, validation=data.test)
    run = train(tmp_path / "r", save(tmp_path / "cells.npz", data), epochs=1)
    page = assert_whole(write_report(run).read_text())
    assert f"of 24 {name} images right" in page.text
    told = "Measured on the validation images" if validation else "these are the images it was trained on"
    assert told in page.text


def test_a_run_whose_data_is_gone_says_so_and_shows_the_rest(tmp_path, capsys):
    path = save(tmp_path / "cells.npz", cells())
    folder = train(tmp_path / "r", path, epochs=1).folder
    path.unlink()
    page = assert_whole(write_report(folder).read_text())
    assert f"The images could not be read, so nothing was measured: {path} does not exist." in page.text
    assert len(page.attributes("svg")) == 3
    assert not page.attributes("img")
    assert "This page, though not the run, was made on" in page.text
    assert cli.main(["eval", str(folder), "--report", str(tmp_path / "late.html")]) == 3
    assert "does not exist" in capsys.readouterr().err
    assert "The images could not be read" in (tmp_path / "late.html").read_text()


def test_a_run_of_one_epoch_without_layers_or_validation_is_reported(tmp_path):
    data = dataclasses.replace(cells(), validation=cells(test=False).test)
    run = train(tmp_path / "r", save(tmp_path / "cells.npz", data), epochs=1, model={"depth": 0})
    page = assert_whole(write_report(run).read_text())
    assert "Where it looks" not in page.text
    assert "best validation" not in page.text


def test_a_run_that_is_not_finished_is_reported_from_its_checkpoint(tmp_path):
    run = train(tmp_path / "r", epochs=2, checkpoint_epochs=1)
    (run.folder / "model.safetensors").unlink()
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(CheckpointError, match="holds neither"):
        write_report(run.folder)
    run.checkpoint()
    lines = run.metrics_path.read_text().splitlines()
    run.metrics_path.write_text(lines[0] + "\n" + lines[1][:20])  # a last line cut short
    page = assert_whole(write_report(run.folder).read_text())
    assert "The weights are those of step-00000014.safetensors; the run has finished 1 of 2 epochs." in page.text


def test_a_model_alone_without_its_folder_is_reported(tmp_path, run):
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "config.toml").write_text("")  # of somebody else
    shutil.copy(run.folder / "model.safetensors", alone)
    page = assert_whole(write_report(alone / "model.safetensors").read_text())
    assert "There are no records of its epochs beside the weights." in page.text
    assert sorted(path.name for path in alone.iterdir()) == ["model.safetensors", "report.html"]


def test_image_files_that_cannot_be_read_are_left_out_and_named(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 20), ("test", 120)):
        for i in range(count):
            path = tmp_path / "photos" / part / ("dark" if i % 2 else "bright") / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = 40 if i % 2 else 200
            Image.fromarray(rng.integers(level - 40, level + 40, (12, 12, 3)).astype(np.uint8)).save(path)
    broken = tmp_path / "photos" / "test" / "dark" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    tables = {
        "model": {"image_size": 8, "dim": 8, "depth": 1, "num_heads": 1},
        "data": {"name": str(tmp_path / "photos"), "augment": "none", "on_bad_image": "skip"},
        "training": {"epochs": 1, "warmup_epochs": 0},
    }
    run = Run(tables, tmp_path / "r", "cpu")
    final = run.train()
    page = assert_whole(write_report(run).read_text())
    assert f"{final['test_accuracy']:.2%} of 119 test images right" in page.text
    assert f"Skipped 1 image: {broken} (" in page.text
    late = write_report(run.folder, tmp_path / "late.html").read_text()
    assert f"{final['test_accuracy']:.2%} of 119 test images right" in late


def test_skipped_images_are_named(tmp_path, run):
    class Images(np.ndarray):
        bad: dict

    test = run.dataset.test
    images = test.images.view(Images)
    images.bad = {tmp_path / "a<b>.png": "it is no image"}
    data = dataclasses.replace(run.dataset, test=Split(images, test.labels))
    text = write_report(run.folder, tmp_path / "r.html", data=data).read_text()
    assert f"Skipped 1 image: {tmp_path}/a&lt;b&gt;.png (it is no image)." in text


# ------------------------------------------------------------------------------------------------------------- the file


def test_eval_writes_the_same_page_later_and_other_splits(run, tmp_path, capsys):
    here = (run.folder / "report.html").read_text() if (run.folder / "report.html").exists() else None
    out = tmp_path / "new" / "late.html"
    assert cli.main(["eval", str(run.folder), "--report", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: open it in a browser"
    write_report(run)
    late, now = (path.read_text() for path in (out, run.folder / "report.html"))
    assert late.replace("This page, though not the run, was made on", "Trained, and this page written, on") == now
    assert here is None or here == now
    assert cli.main(["eval", str(run.folder), "--report", str(out), "--split", "validation", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert f"{answer['accuracy']:.2%} of 179 validation images right" in out.read_text()


def test_eval_reports_on_other_data_and_says_so(run, tmp_path, capsys):
    d = run.dataset
    few = Split(d.test.images[:40], d.test.labels[:40])
    path = save(tmp_path / "few.npz", Dataset("few", few, few, few, d.classes, ""))
    out = tmp_path / "r.html"
    assert cli.main(["eval", str(run.folder), "--data", str(path), "--report", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    page = assert_whole(out.read_text())
    assert f"{answer['accuracy']:.2%} of 40 test images right" in page.text
    assert "Measured on other images than the run's own: few." in page.text
    assert "trained on images of digits" in page.text


def test_what_cannot_be_reported_is_an_error_and_leaves_nothing(run, tmp_path, capsys):
    out = tmp_path / "r.html"
    with pytest.raises(DataError, match="does not exist"):
        write_report(run.folder, out, data=tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match=r"has images of \(3, 8, 12\)"):
        write_report(run.folder, out, data=cells())
    with pytest.raises(DataError, match="cells has no test images"):
        write_report(untrained(cells()), out, data=cells(test=False), split="test")
    (tmp_path / "file").write_text("")
    assert cli.main(["eval", str(run.folder), "--report", str(tmp_path / "file" / "r.html")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib_eval_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["eval", str(run.folder), "--report", str(tmp_path / "r.html")]) == 2
    assert capsys.readouterr().err == "tinyvit: --report needs matplotlib: pip install 'tinyvit[vision]'\n"
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
def test_in_a_browser_nothing_is_asked_of_a_network_and_nothing_is_wider_than_a_phone(run, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    long = cells(n=60, classes=[f"a class of the rather long name {i}" for i in range(20)], spread=9)
    pages = [write_report(run.folder, tmp_path / "digits.html")]
    pages.append(write_report(untrained(long, depth=14), tmp_path / "long.html", data=long))
    complaints, seen = [], []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--headless", "--no-sandbox", "--disable-gpu"])
        for path in pages:
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme=scheme)
                page.on("console", lambda message: complaints.append(message.text))
                page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
                page.goto(path.as_uri(), wait_until="load")
                assert page.evaluate("document.documentElement.scrollWidth") == 360
                assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
                seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                page.close()
        browser.close()
    assert complaints == []
    assert seen[0] != seen[1]
