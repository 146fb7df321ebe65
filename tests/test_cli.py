"""The `tinyvit` command: what comes out on which stream, with which exit code, and what is left on disk."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tinyvit as tv
from tinyvit import cli
from tinyvit.data import Split, digits
from tinyvit.engine import kernels
from tinyvit.study import terminal
from tinyvit.study.records import describe_skipped
from tinyvit.training import CheckpointError, ConfigError, load_checkpoint, load_trained, predict, save_checkpoint
from tinyvit.training.config import read_toml
from tinyvit.training.trainer import Trainer

TEST = digits().test
SMALL = ["--set", "model.dim=16", "--set", "model.depth=1", "--set", "training.warmup_epochs=0"]
QUICK = [*SMALL, "--epochs", "1", "--set", "data.batch_size=1000"]  # two steps
BRIEF = ["--epochs", "6", "--set", "data.batch_size=64", "--set", "training.lr=1e-2", "--set", "data.augment=none"]


@pytest.fixture
def tinyvit(capsys):
    """Run the command in this process: tinyvit("train", …) -> (exit code, standard output, standard error)."""

    def command(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as exit:  # argparse's
            code = exit.code
        return code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, standard output, standard error) of a model that has seen the digits six times."""
    folder = tmp_path_factory.mktemp("runs") / "brief"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main(["train", *SMALL, *BRIEF, "--set", "model.dim=32", "--out", str(folder)]) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture
def run(trained):
    return trained[0]


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty folder to be in."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Spare the time that drawing takes."""
    monkeypatch.setattr(cli, "_draw_pictures", lambda run, workers: "")


def final(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def save_cells(path, *, channels=3, splits=("train", "val", "test"), **changes):
    """A data set in MedMNIST's layout of 8×12 pixels, one brightness a class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = rng.integers(0, 3, (30 if split in splits else 0, 1))
        images = rng.integers(0, 60, (len(labels), 8, 12, channels)) + 90 * labels[..., None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(path, **{**arrays, **changes})
    return path


# ----------------------------------------------------------------------------------------------------------- train


def test_train_says_what_it_does_on_standard_output_and_nothing_on_standard_error(trained):
    folder, out, err = trained
    lines = out.splitlines()
    assert lines[0] == "digits: 1,259 training, 179 validation, 359 test images of 8×8×1, 10 classes"
    assert "patch 4, width 32, depth 1, 4 heads, " in lines[1]
    assert "on the cpu; 6 epochs of 20 steps, seed 0" in lines[1]
    assert [line.partition(":")[0] for line in lines[2:8]] == [f"epoch {i}/6" for i in range(1, 7)]
    line = r": loss \d\.\d{3}, training \d+\.\d\d%, validation \d+\.\d\d%, [\d,]+ images/s, \d+\.\d s"
    assert all(re.search(rf"{line}, \d\d:\d\d left$", text) for text in lines[2:7])
    assert re.search(rf"{line}$", lines[7])
    record = final(folder)
    assert lines[-1] == (
        f"test accuracy {record['test_accuracy']:.2%}, {record['seconds']:.1f} s of training, "
        f"files in {folder}/ (curves.png, attention.png, report.html)"
    )
    assert err == ""  # no progress bar where there is no terminal


def test_the_table_at_the_end_says_what_the_records_say(trained):
    folder, out, _ = trained
    *epochs, end = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    head, *rows = out.splitlines()[9:-1]
    assert head.split() == ["epoch", "loss", "training", "validation"]
    best = max(epochs, key=lambda epoch: (epoch["validation_accuracy"], -epoch["validation_loss"]))
    names = {best["epoch"]: " (best)", 6: " (last)"} if best["epoch"] < 6 else {6: ""}
    for row, (number, name) in zip(rows, names.items(), strict=False):
        e = epochs[number - 1]
        scores = f"{e['loss']:.4f}", f"{e['train_accuracy']:.2%}", f"{e['validation_accuracy']:.2%}"
        assert re.split("  +", row) == [f"{number}{name}", *scores]
    facts = dict(re.split("  +", row, maxsplit=1) for row in rows[len(names) + 1 : -1])
    assert list(facts) == ["test accuracy", "speed", "training", "parameters", "peak memory", "files"]
    assert facts["test accuracy"].startswith(f"{end['test_accuracy']:.2%} of 359 images, by the last weights; nothing")
    assert facts["speed"] == f"{np.median([e['images_per_second'] for e in epochs]):,.0f} images/s"
    assert facts["training"] == f"{end['seconds']:.1f} s, 120 steps"
    assert facts["parameters"] == f"{load_trained(folder).model.num_parameters:,}"
    assert 50 < int(re.match(r"([\d,]+) MiB", facts["peak memory"])[1].replace(",", "")) < 100_000


def test_the_table_names_the_images_that_were_skipped(tmp_path):
    class Images(np.ndarray):
        bad: dict[Path, str]

    data = digits()
    images = data.test.images.view(Images)
    images.bad = {tmp_path / f"{i}.png": "it is cut short" for i in range(7)}
    skipping = dataclasses.replace(data, test=Split(images, data.test.labels))
    assert data.skipped() == {}
    assert skipping.skipped() == {str(path): why for path, why in images.bad.items()}
    said = describe_skipped(skipping.skipped())
    assert said.startswith(f"7 images: {tmp_path}/0.png (it is cut short); ")
    assert said.endswith(f"{tmp_path}/4.png (it is cut short); and 2 more")


def test_train_keeps_a_final_record_and_two_real_pictures(trained):
    folder = trained[0]
    record = final(folder)
    assert record["event"] == "final"
    assert 0.7 < record["test_accuracy"] <= 1
    assert record["seconds"] > 0
    for name in ("curves.png", "attention.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_train_repeats_a_run_from_its_config_to_the_same_weights(tinyvit, run, tmp_path, no_pictures):
    assert tinyvit("train", "--config", run / "config.toml", "--out", tmp_path / "again")[0] == 0
    first, again = (load_checkpoint(folder / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert first[0].keys() == again[0].keys()
    assert all(first[0][name].tobytes() == again[0][name].tobytes() for name in first[0])
    assert first[1] == again[1]
    assert (run / "config.toml").read_text() == (tmp_path / "again" / "config.toml").read_text()


def test_an_option_wins_over_set_and_set_over_the_config_file(tinyvit, cwd, no_pictures):
    (cwd / "c.toml").write_text("[training]\nepochs = 9\nseed = 9\nlr = 9e-3\nwarmup_epochs = 0\n[model]\ndim = 12\n")
    given = ["--epochs", "1", "--set", "training.epochs=8", "--set", "training.seed=8"]
    assert tinyvit("train", "--config", "c.toml", *given, "--out", "r")[0] == 0
    tables = read_toml("r/config.toml")
    assert {k: tables["training"][k] for k in ("epochs", "seed", "lr")} == {"epochs": 1, "seed": 8, "lr": 9e-3}
    assert tables["model"]["dim"] == 12


def test_on_a_terminal_a_progress_bar_takes_the_place_of_the_lines(tinyvit, cwd, monkeypatch, no_pictures):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = tinyvit("train", *QUICK, "--out", "r")
    assert code == 0
    assert "epoch 1/1" not in out
    *_, bar = err.rstrip().split("\r")
    facts = r"loss=\d\.\d+, val=\S+%, train=\S+%"
    shown = rf"epoch 1/1: 100%\|█+\| 00:00 left, {facts}, [\d.]+k? images/s, lr=2.0e-03"
    assert re.fullmatch(shown, bar)


def test_the_bar_shows_the_loss_of_about_an_epochs_worth_of_images(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(terminal.LOOK, "cpu", 0.0)
    shown = []
    monkeypatch.setattr(terminal._Bar, "_show", lambda self, *facts: shown.append(facts))

    class Fake:  # a Trainer as far as the bar is concerned
        model = SimpleNamespace(device="cpu")
        loader = type("Loader", (), {"split": range(40), "batch_size": 10, "__len__": lambda self: 4})()
        epochs, epoch, batch, running, lr = 2, 0, 1, (4.0, 0.25), 1e-3

    trainer = Fake()
    with terminal.progress(trainer) as (on_step, on_record):
        on_step(trainer)
        on_record({"event": "epoch", "loss": 3.0, "train_accuracy": 0.5, "lr": 1e-3})
        trainer.epoch, trainer.running = 1, (1.0, 0.75)
        on_step(trainer)
    assert shown == [(4.0, 0.25, 1e-3), (3.0, 0.5, 1e-3), (0.25 * 1.0 + 0.75 * 3.0, 0.75, 1e-3)]


def test_the_time_that_is_left_is_not_told_from_the_first_step(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    loader = type("Loader", (), {"split": range(40), "batch_size": 10, "__len__": lambda self: 4})()
    model = SimpleNamespace(device="cpu")
    trainer = SimpleNamespace(model=model, loader=loader, epochs=9, epoch=0, batch=0, running=(4.0, 0.25), lr=1e-3)
    shown = terminal._Bar(trainer)
    with shown.bar as bar:
        bar.start_t -= 3600
        bar.last_print_t -= 3600  # an hour of compiling
        trainer.batch = 1
        shown.on_step(trainer)
        assert (bar.n, bar.initial) == (10, 10)
        assert bar.format_dict["elapsed"] < 60


def test_loops_are_to_be_compiled_until_there_is_a_cache_younger_than_they_are(tmp_path, monkeypatch):
    loops = pytest.importorskip("tinyvit.engine.kernels.loops", reason="Numba is not installed", exc_type=ImportError)
    monkeypatch.setattr(loops, "add_bias", SimpleNamespace(stats=SimpleNamespace(cache_path=tmp_path)))
    with kernels.switched(True):
        assert kernels.to_be_compiled()
        (tmp_path / "loops.add_bias-1.py3.nbi").touch()
        assert not kernels.to_be_compiled()
        os.utime(tmp_path / "loops.add_bias-1.py3.nbi", (0, 0))
        assert kernels.to_be_compiled()
    with kernels.switched(False):
        assert not kernels.to_be_compiled()


def test_what_matters_most_fits_80_columns():
    facts = ["loss=1.984", "val=80.4%", "train=66.4%", terminal.RATE, "lr=1.0e-03"]
    room = [columns - 3 - len("epoch 12/40: ") - terminal.AROUND for columns in (40, 80, 100, 120)]
    assert [terminal._fitting(facts, r) for r in room] == [[], facts[:3], facts[:4], facts]


def test_a_gpu_is_not_waited_for_at_every_step(monkeypatch):
    assert terminal.LOOK["gpu"] >= 10
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    looks = []

    class Fake:
        model = SimpleNamespace(device="gpu")
        loader = type("Loader", (), {"split": range(40), "batch_size": 10, "__len__": lambda self: 4})()
        epochs, epoch, batch, lr = 2, 0, 1, 1e-3
        running = property(lambda self: looks.append(1) or (4.0, 0.25))

    trainer = Fake()
    with terminal.progress(trainer) as (on_step, _):
        for _ in range(100):
            on_step(trainer)
    assert len(looks) == 1


@pytest.mark.parametrize(("epochs", "lines"), [(5, 5), (31, 16)])
def test_elsewhere_there_are_about_fifteen_lines_and_one_for_the_last_epoch(tinyvit, cwd, no_pictures, epochs, lines):
    save_cells(cwd / "cells.npz")
    out = tinyvit("train", *QUICK, "--epochs", epochs, "--data", "cells.npz", "--out", "r")[1]
    shown = [line for line in out.splitlines() if re.match(r"epoch \d", line)]
    assert len(shown) == lines
    assert shown[-1].startswith(f"epoch {epochs}/{epochs}: loss ")


def test_runs_are_numbered_and_resume_takes_the_newest(tinyvit, cwd, no_pictures):
    for _ in range(3):
        assert tinyvit("train", *QUICK)[0] == 0
    assert sorted(os.listdir("runs")) == ["digits", "digits-2", "digits-3"]
    os.utime("runs/digits-2/config.toml", (2e9, 2e9))
    code, out, _ = tinyvit("train", "--resume", "--epochs", "2")
    assert code == 0
    assert "resumed from step-00000002.safetensors: epoch 2, step 2" in out
    assert "files in runs/digits-2/" in out
    assert [len((cwd / "runs" / n / "metrics.jsonl").read_text().splitlines()) for n in os.listdir("runs")].count(
        3
    ) == 1
    assert final(cwd / "runs" / "digits-2")["epoch"] == 2


def test_a_run_of_a_file_is_named_after_it(tinyvit, cwd, no_pictures):
    (cwd / "sub").mkdir()
    save_cells(cwd / "sub" / "cells.npz")
    assert tinyvit("train", *QUICK, "--data", "sub/cells.npz")[0] == 0
    assert os.listdir("runs") == ["cells"]


def test_train_without_a_validation_split_or_matplotlib_says_so_and_goes_on(tinyvit, cwd, monkeypatch):
    save_cells(cwd / "bare.npz", splits=("train",))
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    code, out, err = tinyvit("train", *QUICK, "--data", "bare.npz", "--out", "r")
    assert (code, err) == (0, "")
    assert "test accuracy" not in out
    assert out.endswith("s of training, files in r/ (no pictures: pip install 'tinyvit[vision]')\n")
    assert not list(cwd.rglob("*.png"))


@pytest.mark.parametrize("channels", [pytest.param(n, marks=pytest.mark.slow) if n != 3 else n for n in (1, 2, 3, 4)])
def test_colour_images_that_are_not_square_go_all_the_way(tinyvit, cwd, channels):
    path = save_cells(cwd / "cells.npz", channels=channels, classes=np.array(["dark", "grey", "bright"]))
    more = ["--epochs", "12", "--set", "data.batch_size=10", "--set", "data.augment=none", "--set", "training.lr=1e-2"]
    code, out, err = tinyvit("train", *SMALL, *more, "--data", path, "--out", "r")
    assert (code, err) == (0, "")
    assert f"30 test images of 8×12×{channels}, 3 classes" in out
    assert (cwd / "r" / "attention.png").exists()
    code, out, _ = tinyvit("eval", "r", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["accuracy"] == final(cwd / "r")["test_accuracy"] > 0.9
    with np.load(path) as file:
        image, label = file["test_images"][0], int(file["test_labels"][0, 0])
    np.save("one.npy", image)
    code, out, _ = tinyvit("predict", "r", "one.npy", "--json", "--top", "1", "--attention", "look.png")
    assert code == 0
    assert json.loads(out)["predictions"][0]["top"][0]["class"] == ["dark", "grey", "bright"][label]
    assert (cwd / "look.png").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_one_signal_stops_after_the_step_with_a_checkpoint_and_two_at_once(
    tinyvit, cwd, monkeypatch, no_pictures, number, code, times
):
    step, before = Trainer.train_step, (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

    def interrupted(self, images, labels):
        if self.step == 1:
            for _ in range(times):
                os.kill(os.getpid(), number)
        step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        given, _, err = tinyvit("train", *QUICK, "--epochs", "3", "--out", "my run")
    assert given == code
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert "Traceback" not in err
    checkpoints = [path.name for path in (cwd / "my run").glob("checkpoints/*")]
    if times == 2:
        assert checkpoints == []
        return
    assert checkpoints == ["step-00000002.safetensors"]
    assert "tinyvit: stopped after step 2; go on with: tinyvit train --resume --out " in err
    assert tinyvit(*shlex.split(err.rpartition("go on with: ")[2])[1:])[0] == 0  # a blank in the name needs quotes
    assert final(cwd / "my run")["epoch"] == 3


STAGED = """
import sys, time
from tinyvit import cli
from tinyvit.training import checkpoint, run, trainer
from tinyvit.study.report import document

def slow(place, name, only=lambda *a: True):
    function = getattr(place, name)
    def wrapped(*arguments, **named):
        if only(*arguments):
            print("HERE", flush=True)
            for _ in range(50):  # a signal finds it in the middle
                time.sleep(0.02)
        return function(*arguments, **named)
    setattr(place, name, wrapped)

STAGE
sys.exit(cli.main(sys.argv[1:]))
"""
STAGES = {
    "step": "slow(trainer.Trainer, 'train_step')",
    "validation": "slow(trainer, 'evaluate', lambda model, loader, workers: len(loader.split) == 179)",
    "test": "slow(trainer, 'evaluate', lambda model, loader, workers: len(loader.split) == 359)",
    "report": "slow(document, '_attention')",
    "writing": "slow(checkpoint.os, 'replace', lambda a, b: b.name == 'report.html')",
}


def signalled(stage, folder, *signals):
    """Train in a process of its own and send it signals at a stage, 0.2 s apart: (exit code, output, errors)."""
    command = [
        sys.executable,
        "-c",
        STAGED.replace("STAGE", STAGES[stage]),
        "train",
        *QUICK,
        "--epochs",
        "2",
        "--out",
        folder,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line == "HERE\n":
                break
        for number in signals:
            time.sleep(0.2)
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, "".join(said) + out, err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["train", *QUICK, "--epochs", "2", "--out", str(folder)]) == 0
    return folder


def weights(folder):
    return {name: array.tobytes() for name, array in load_checkpoint(folder / "model.safetensors")[0].items()}


@pytest.mark.parametrize(
    ("stage", "signals", "code", "epochs"),
    [
        pytest.param("step", [signal.SIGINT], 130, 0, marks=pytest.mark.slow),
        ("step", [signal.SIGINT, signal.SIGINT], 130, 0),
        pytest.param("validation", [signal.SIGTERM], 143, 1, marks=pytest.mark.slow),
        ("validation", [signal.SIGTERM, signal.SIGINT], 130, 0),
    ],
)
def test_a_signal_in_training_loses_nothing_that_a_resumed_run_does_not_make_again(
    tinyvit, undisturbed, tmp_path, no_pictures, stage, signals, code, epochs
):
    given, _, err = signalled(stage, tmp_path / "r", *signals)
    assert given == code
    again = "press Ctrl-C again" if signals[0] == signal.SIGINT else "a second signal is needed"
    assert f"finishing this step or evaluation; {again} to stop at once" in err
    at_once = "stopped at once, before a checkpoint was kept; begin anew with: "
    assert (at_once if len(signals) == 2 else "stopped after step ") in err
    assert not list(tmp_path.rglob("*.tmp"))
    metrics = tmp_path / "r" / "metrics.jsonl"
    assert (len(metrics.read_text().splitlines()) if metrics.exists() else 0) == epochs
    assert tinyvit(*shlex.split(err.rpartition(" with: ")[2])[1:])[0] == 0
    assert weights(tmp_path / "r") == weights(undisturbed)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["event"] for record in records] == ["epoch", "epoch", "final"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["test", "report", "writing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_training_leaves_a_complete_run_without_a_report(tinyvit, undisturbed, tmp_path, stage, number):
    code, out, err = signalled(stage, tmp_path / "r", number)
    assert code == 128 + number
    assert "tinyvit: the run is complete; write its report with: tinyvit eval " in err
    assert "s of training, files in" not in out
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".tmp")]
    assert final(tmp_path / "r")["test_accuracy"] == final(undisturbed)["test_accuracy"]
    assert weights(tmp_path / "r") == weights(undisturbed)
    command = re.search("write its report with: (.*)", err)[1]
    assert tinyvit(*shlex.split(command)[1:])[0] == 0
    assert (tmp_path / "r" / "report.html").read_text().endswith("</html>\n")


ENTRY = """
import atexit, os, signal, sys, types
import tinyvit_command

class Importing:  # the signal comes in the middle of an import
    def find_spec(self, name, *rest):
        os.kill(os.getpid(), NUMBER)

WHEN
tinyvit_command.main()
"""
ENDING = """
sys.modules["tinyvit"] = types.SimpleNamespace(cli=types.SimpleNamespace(main=lambda: 128 + NUMBER))
atexit.register(os.kill, os.getpid(), NUMBER)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("when", "said"), [("sys.meta_path.insert(0, Importing())", "tinyvit: interrupted\n"), (ENDING, "")]
)
def test_a_signal_while_the_command_starts_or_ends_gives_its_exit_code_and_no_traceback(number, when, said):
    code = ENTRY.replace("WHEN", when).replace("NUMBER", str(int(number)))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", said)


@pytest.mark.slow
def test_the_digits_are_learnt_to_98_percent_over_three_seeds(tinyvit, cwd):
    accuracies = []
    for seed in (0, 1, 2):
        code, out, _ = tinyvit("train", "--seed", seed, "--out", f"seed-{seed}")
        record = final(cwd / f"seed-{seed}")
        assert code == 0
        assert f"{record['seconds']:.1f} s of training" in out
        accuracies.append(record["test_accuracy"])
    print(accuracies)
    assert np.mean(accuracies) >= 0.98


# ------------------------------------------------------------------------------------------- eval, predict, summary


@pytest.mark.parametrize("what", ["folder", "model", "checkpoint"])
def test_eval_measures_a_folder_a_model_file_or_a_checkpoint_alike(tinyvit, run, what):
    checkpoint = next(iter((run / "checkpoints").iterdir()))
    path = {"folder": run, "model": run / "model.safetensors", "checkpoint": checkpoint}[what]
    code, out, err = tinyvit("eval", path, "--json")
    record = final(run)
    loss = pytest.approx(record["test_loss"], rel=1e-5)  # training had one BLAS thread
    expected = {"data": "digits", "split": "test", "images": 359, "loss": loss, "accuracy": record["test_accuracy"]}
    expected["skipped"] = {}
    assert json.loads(out) == expected
    assert (code, err, out.count("\n")) == (0, "", 1)


@pytest.mark.parametrize(("alias", "split"), [("val", "validation"), ("training", "train")])
def test_eval_takes_other_words_for_a_split(tinyvit, run, alias, split):
    assert tinyvit("eval", run, "--split", alias) == tinyvit("eval", run, "--split", split)


def save_photographs(folder, broken=("train/dark/001.png", "test/dark/001.png")):
    """Colour pictures by class, of which some files are cut short."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 120), ("val", 60), ("test", 22)):
        for i in range(count):
            path = folder / part / ("dark" if i % 2 else "bright") / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = 40 if i % 2 else 200
            Image.fromarray(rng.integers(level - 40, level + 40, (12, 12, 3)).astype(np.uint8)).save(path)
    for name in broken:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])


def test_images_that_were_skipped_are_counted_nowhere_and_named_everywhere(tinyvit, cwd):
    save_photographs(cwd / "photographs")
    small = [*QUICK, "--set", "model.image_size=8", "--set", "data.augment=none"]
    out = tinyvit("train", *small, "--data", "photographs", "--on-bad-image", "skip", "--out", "r")[1]
    assert out.startswith("photographs: 120 training, ")
    right = final(cwd / "r")["test_accuracy"] * 21
    assert right == pytest.approx(round(right))
    assert "of 21 images, by the last weights" in out
    code, said, _ = tinyvit("eval", "r")
    assert (code, f"({round(right)} of 21)" in said) == (0, True)
    broken = str(cwd / "photographs" / "test" / "dark" / "001.png")
    assert said.splitlines()[1].startswith(f"skipped 1 image: {broken} (")
    answer = json.loads(tinyvit("eval", "r", "--json", "--report", "late.html")[1])
    assert (answer["images"], list(answer["skipped"])) == (21, [broken])
    for page in (cwd / "r" / "report.html", cwd / "late.html"):
        text = page.read_text()
        assert "Skipped 2 images: " in text
        assert f"{cwd}/photographs/train/dark/001.png (" in text
        assert "Of 22 test images 21 could be read." in text
        assert re.search(r'alt="test/(dark|bright)/\d+\.png of the test images"', text)
        assert re.search(r"<span>test/(dark|bright)/\d+\.png, loss ", text)


@pytest.mark.parametrize(("split", "images"), [("train", 1259), ("validation", 179), ("test", 359)])
def test_eval_says_in_words_what_it_measured(tinyvit, run, split, images):
    accuracy = json.loads(tinyvit("eval", run, "--split", split, "--json")[1])["accuracy"]
    code, out, _ = tinyvit("eval", run, "--split", split)
    assert code == 0
    right = round(accuracy * images)
    assert out.startswith(f"digits {split}: accuracy {accuracy:.2%} ({right} of {images}), loss ")
    assert right / images == accuracy


def test_eval_takes_other_data_of_the_same_shape(tinyvit, run, cwd):
    data = digits()
    arrays = {f"{s}_images": TEST.images[:50, 0] for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": TEST.labels[:50] for s in ("train", "val", "test")}
    np.savez("some.npz", **arrays, classes=np.array(data.classes))
    answer = json.loads(tinyvit("eval", run, "--data", "some.npz", "--json")[1])
    assert (answer["data"], answer["images"]) == ("some", 50)
    probabilities = probabilities_of(run, TEST.images[:50])
    assert answer["accuracy"] == (probabilities.argmax(axis=1) == TEST.labels[:50]).mean()


def probabilities_of(run, images):
    trained = load_trained(run)
    return predict(trained.model, images, trained.config.data.mean, trained.config.data.std)


@pytest.mark.parametrize("suffix", ["png", "bmp", "npy"])
def test_predict_says_what_digits_in_files_are_as_if_given_the_arrays(tinyvit, run, cwd, suffix):
    names = [f"{i}.{suffix}" for i in range(10)]
    for name, image in zip(names, TEST.images, strict=False):
        if suffix == "npy":
            np.save(name, image[0])
        else:
            Image.fromarray(image[0]).save(name)
    code, out, err = tinyvit("predict", run, *names, "--json", "--top", "10")
    assert (code, err) == (0, "")
    predictions = json.loads(out)["predictions"]
    assert [p["image"] for p in predictions] == names
    expected = probabilities_of(run, TEST.images[:10])
    for prediction, row in zip(predictions, expected, strict=True):
        assert [answer["probability"] for answer in prediction["top"]] == sorted(map(float, row), reverse=True)
        assert all(row[int(a["class"])] == np.float32(a["probability"]) for a in prediction["top"])
    right = [int(p["top"][0]["class"]) == label for p, label in zip(predictions, TEST.labels, strict=False)]
    assert np.mean(right) >= 0.7
    assert sorted(os.listdir()) == sorted(names)


def test_predict_says_in_words_the_likeliest_classes(tinyvit, run, cwd):
    np.save("a.npy", TEST.images[0])
    code, out, _ = tinyvit("predict", run, "a.npy", "--top", "2")
    row = probabilities_of(run, TEST.images[:1])[0]
    first, second = np.argsort(-row)[:2]
    assert (code, out) == (0, f"a.npy: {first} {row[first]:.1%}, {second} {row[second]:.1%}\n")
    assert tinyvit("predict", run, "a.npy", "--top", "99")[1].count("%") == 10


def test_predict_draws_where_the_model_looks(tinyvit, run, cwd):
    np.save("a.npy", TEST.images[0])
    assert tinyvit("predict", run, "a.npy", "a.npy", "--attention", "look.png")[0] == 0
    with Image.open("look.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > picture.width / 2


def test_predict_makes_the_folder_of_its_picture_and_refuses_a_format_before_any_work(tinyvit, run, cwd, monkeypatch):
    np.save("a.npy", TEST.images[0])
    assert tinyvit("predict", run, "a.npy", "--attention", "new/look.png")[0] == 0
    assert (cwd / "new" / "look.png").exists()
    monkeypatch.setattr(cli, "load_trained", None)
    code, out, err = tinyvit("predict", run, "a.npy", "--attention", "look.xyz")
    assert (code, out) == (2, "")
    assert re.search(r"--attention look\.xyz: a picture is written as one of .*png.*, not as xyz\n$", err)


def test_predict_answers_the_good_files_and_names_the_bad(tinyvit, run, cwd):
    np.save("a.npy", TEST.images[0])
    (cwd / "bad.png").write_bytes(b"")
    (cwd / "photographs").mkdir()
    code, out, err = tinyvit("predict", run, "bad.png", "a.npy", "photographs")
    assert code == 3
    assert out == tinyvit("predict", run, "a.npy")[1]
    assert err.splitlines() == [
        "tinyvit: bad.png cannot be read as an image: it is empty",
        "tinyvit: photographs is a folder; give the image files in it",
    ]
    assert tinyvit("predict", run, "photographs", "--json")[:2] == (3, "")


def test_predict_names_the_classes_that_the_data_lacks_too(tinyvit, cwd, no_pictures):
    assert tinyvit("train", *QUICK, "--set", "model.num_classes=12", "--out", "r")[0] == 0
    np.save("a.npy", TEST.images[0])
    code, out, _ = tinyvit("predict", "r", "a.npy", "--top", "12")
    assert code == 0
    assert out.count("%") in (10, 12)


def test_summary_counts_the_parameters_of_vit_base(tinyvit, cwd):
    code, out, err = tinyvit("summary", "vit_base_patch16_224")
    assert (code, err) == (0, "")
    assert ["Total", "86,567,656", "17,563,828,224", "33,142,650"] in [line.split() for line in out.splitlines()]
    answer = json.loads(tinyvit("summary", "vit_base_patch16_224", "--json")[1])
    assert answer["parameters"] == sum(row["parameters"] for row in answer["rows"]) == 86_567_656
    assert os.listdir() == []


def test_summary_of_a_run_or_its_config_is_that_of_its_model(tinyvit, run):
    texts = {tinyvit("summary", path)[1] for path in (run, run / "config.toml")}
    assert len(texts) == 1
    answer = json.loads(tinyvit("summary", run, "--json")[1])
    assert answer["parameters"] == load_trained(run).model.num_parameters


def test_summary_of_a_run_does_not_need_its_data(tinyvit, cwd, no_pictures):
    path = save_cells(cwd / "cells.npz")
    assert tinyvit("train", *QUICK, "--data", path, "--out", "r")[0] == 0
    expected = tinyvit("summary", "r")
    path.unlink()
    assert tinyvit("summary", "r") == expected


def test_summary_of_a_config_that_leaves_things_open_is_that_of_the_model_it_trains(tinyvit, cwd, no_pictures):
    (cwd / "mine.toml").write_text("[model]\ndepth = 1\n")
    assert tinyvit("train", "--config", "mine.toml", *QUICK[2:], "--out", "r")[0] == 0
    assert tinyvit("summary", "mine.toml") == tinyvit("summary", "r")


def test_the_version_and_the_help_go_to_standard_output(tinyvit):
    assert tinyvit("--version") == (0, f"tinyvit {tv.__version__}\n", "")
    code, out, err = tinyvit("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in ("train", "eval", "predict", "summary", "explain"))


# --------------------------------------------------------------------------------------------------------- explain


def shown(path):
    """The facts in a page."""
    [data] = re.findall(r'<script type="application/json" id="tape">(.*?)</script>', path.read_text(), flags=re.DOTALL)
    return json.loads(data)


def last_line(path):
    data = shown(path)
    size = path.stat().st_size / 1e6
    return f"{path.name}: {data['totals']['nodes']:,} nodes, {size:.2f} MB; open it in a browser"


def test_explain_shows_fresh_weights_on_test_digits_and_says_so(tinyvit, cwd):
    code, out, err = tinyvit("explain")
    assert (code, err, os.listdir()) == (0, "", ["tape.html"])
    title = "ViT for digits with fresh weights, 4 test images of digits"
    assert out.splitlines() == [title, last_line(cwd / "tape.html")]
    data = shown(cwd / "tape.html")
    assert data["title"] == title
    images = data["attention"]["images"]
    assert [image["label"] for image in images] == [str(label) for label in TEST.labels[:4]]
    assert all(image["pixel_gradient_max"] > 0 for image in images)  # nothing stops at the head
    assert not [node for node in data["nodes"] if "zero gradient" in node["flags"]]


def test_explain_shows_a_trained_run_or_its_model_file(tinyvit, run, cwd):
    assert tinyvit("explain", "--run", run, "--images", 2, "--out", "a.html")[0] == 0
    code, out, _ = tinyvit("explain", "--run", run / "model.safetensors", "--images", 2, "--out", "b.html")
    assert (code, out.splitlines()[-1]) == (0, last_line(cwd / "b.html"))
    a, b = shown(cwd / "a.html"), shown(cwd / "b.html")
    assert a["totals"]["loss"] == b["totals"]["loss"]
    probabilities = predict(load_trained(run).model, TEST.images[:2], *digits().statistics())
    for image, p in zip(a["attention"]["images"], probabilities, strict=True):
        assert image["prediction"] == str(p.argmax())
        assert image["probabilities"][0][1] == pytest.approx(p.max(), rel=1e-4)


def test_explain_shows_a_model_by_its_name_and_an_image_file(tinyvit, cwd):
    (cwd / "mine.toml").write_text("[model]\ndepth = 1\ndim = 16\n")
    Image.fromarray(TEST.images[5, 0]).save("five.png")
    code, out, err = tinyvit("explain", "--model", "mine.toml", "--image", "five.png")
    assert (code, err) == (0, "")
    assert out.startswith("mine.toml with fresh weights, five.png\n")
    [image] = shown(cwd / "tape.html")["attention"]["images"]
    assert "label" not in image
    code, out, err = tinyvit("explain", "--model", "vit_tiny_patch16_32", "--images", 2, "--seed", 3)
    assert (code, err) == (0, "")
    assert out.startswith(
        "vit_tiny_patch16_32 with fresh weights, 2 images of random pixels and a random class (seed 3)"
    )
    assert shown(cwd / "tape.html")["attention"]["layers"] == 12


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import tinyvit as tv
from helper import START

assert sys.argv == ["train.py"] and __name__ == "__main__"
w = tv.tensor(np.array([START]), requires_grad=True)
for step in range(3):
    error = w - 1.0
    (error * error).sum().backward()
    with tv.no_grad():
        w -= 0.25 * w.grad  # overwrites what the tape had saved
    w.grad = None
Path("end.txt").write_text(f"{w.item()}")
"""


@pytest.fixture
def script(cwd):
    (cwd / "helper.py").write_text("START = 5.0")
    (cwd / "train.py").write_text(SCRIPT)
    yield cwd / "train.py"
    sys.modules.pop("helper", None)


def test_explain_shows_the_last_backward_of_a_script(tinyvit, script, cwd):
    code, out, err = tinyvit("explain", "--script", "train.py")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["train.py, backward() number 3", last_line(cwd / "tape.html")]
    data = shown(cwd / "tape.html")
    values = {node.get("name") or node["op"]: node["value"]["numbers"] for node in data["nodes"]}
    assert (values["w"], values["subtract"], values["sum"]) == ([2.0], [1.0], 1.0)
    assert {line["code"] for line in data["lines"]} == {"error = w - 1.0", "(error * error).sum().backward()"}
    assert (cwd / "end.txt").read_text() == "1.5"  # the script came to its own end, with its own gradients


def test_explain_shows_a_step_of_a_script_and_ends_it_there(tinyvit, script, cwd):
    code, out, _ = tinyvit("explain", "--script", "train.py", "--step", 2)
    assert (code, out.splitlines()[0]) == (0, "train.py, backward() number 2")
    values = {node.get("name") or node["op"]: node["value"]["numbers"] for node in shown(cwd / "tape.html")["nodes"]}
    assert values["w"] == [3.0]
    assert not (cwd / "end.txt").exists()


def test_explain_shows_the_global_loss_of_a_script(tinyvit, cwd):
    (cwd / "one.py").write_text(
        "import tinyvit as tv\n"
        "x = tv.tensor([1.0, 2.0], requires_grad=True)\n"
        "(x * x).sum().backward()\n"
        "loss = tv.ops.exp(x).sum()\n"
        "raise SystemExit\n"
    )
    assert tinyvit("explain", "--script", "one.py")[0] == 0  # it ended early: the last backward
    assert "multiply" in shown(cwd / "tape.html")["ops"]
    (cwd / "one.py").write_text((cwd / "one.py").read_text().replace("raise SystemExit\n", ""))
    code, out, _ = tinyvit("explain", "--script", "one.py")
    assert (code, out.splitlines()[0]) == (0, "one.py")
    assert list(shown(cwd / "tape.html")["ops"]) == ["exp", "sum"]


def test_explain_audits_the_ops_when_it_is_asked_to(tinyvit, cwd):
    (cwd / "one.py").write_text("import tinyvit as tv\nloss = tv.ops.sin(tv.tensor([1.0], requires_grad=True)).sum()\n")
    assert tinyvit("explain", "--script", "one.py", "--audit")[0] == 0
    verdict = shown(cwd / "tape.html")["ops"]["sin"]["verdict"]
    assert (verdict["verdict"], verdict["from"]) == ("pass", "audited now")


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def bad_files(cwd, run):
    """Every kind of broken file that a command may be given."""
    content = (run / "model.safetensors").read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    (cwd / "flipped.safetensors").write_bytes(flipped)
    (cwd / "short.safetensors").write_bytes(content[:-10])
    (cwd / "text.safetensors").write_text("no model at all")
    save_checkpoint(cwd / "other.safetensors", {}, {"kind": "model"})
    (cwd / "empty").mkdir()
    save_cells(cwd / "good.npz")
    (cwd / "short.npz").write_bytes((cwd / "good.npz").read_bytes()[:-100])
    (cwd / "text.npz").write_text("no archive at all")
    np.savez(cwd / "lacking.npz", train_images=np.zeros((3, 8, 8), np.uint8))
    save_cells(cwd / "floats.npz", train_images=np.zeros((30, 8, 12)))
    (cwd / "text.png").write_text("no picture at all")
    Image.fromarray(TEST.images[0, 0]).save(cwd / "good.png")
    (cwd / "short.png").write_bytes((cwd / "good.png").read_bytes()[:60])
    np.save(cwd / "good.npy", TEST.images[0])
    np.save(cwd / "large.npy", np.zeros((9, 8), np.uint8))
    np.save(cwd / "floats.npy", np.zeros((8, 8)))
    np.save(cwd / "objects.npy", np.array([{}]))
    (cwd / "text.npy").write_text("no array at all")
    (cwd / "yaml.toml").write_text("lr: 0.1")
    (cwd / "typo.toml").write_text("[training]\nlearning_rate = 0.1")
    (cwd / "file").write_text("in the way of a folder")
    (cwd / "half.py").write_text("print(1")
    (cwd / "raises.py").write_text("def f():\n    return 1 / 0\n\n\nf()\n")
    (cwd / "exits.py").write_text("raise SystemExit('no data')")
    (cwd / "nothing.py").write_text("loss = 3.0")
    (cwd / "vector.py").write_text("import tinyvit as tv\nloss = tv.tensor([1.0, 2.0], requires_grad=True) * 2\n")
    (cwd / "constant.py").write_text("import tinyvit as tv\nloss = tv.tensor([1.0]).sum()\n")
    (cwd / "twice.py").write_text("import tinyvit as tv\nwith tv.study.watch():\n    pass\n")
    return cwd


def train(*settings):
    return ["train", *(word for setting in settings for word in ("--set", setting))]


ERRORS = [
    # wrong usage
    (["train", "--data", "digits", "--epochs", "0"], 2, r"training\.epochs is 0; it must be at least 1"),
    (train("model.patch_size=3"), 2, "image_size 8×8 is not a multiple of patch_size 3"),
    (train("model.num_heads=5"), 2, "num_heads 5 does not divide dim 64"),
    (train("model.dimm=5"), 2, r"unknown key in \[model\] 'dimm': did you mean 'dim'"),
    (train("modle.dim=5"), 2, "unknown config table 'modle': did you mean 'model'"),
    (train("model.dim=wide"), 2, r"model\.dim must be of type int, like .*, not 'wide'"),
    (train("training.lr=true"), 2, r"training\.lr must be of type .*, like .*, not True"),
    (train("training.lr=inf"), 2, "lr"),
    (train("model.mlp_ratio=inf"), 2, "mlp_ratio"),
    (train("training.lr"), 2, r"is not of the form table\.key=value"),
    (["train", "--seed", "-1"], 2, r"training\.seed is -1; it must be at least 0"),
    (["train", "--config", "nowhere.toml"], 2, r"cannot read the config nowhere\.toml: No such file"),
    (["train", "--config", "yaml.toml"], 2, r"yaml\.toml is not a TOML file"),
    (["train", "--config", "typo.toml"], 2, r"unknown key in \[training\] 'learning_rate'"),
    (["train", "--resume"], 2, "there is no run in runs/ to resume: name its folder with --out"),
    (["train", "--resume", "--out", "empty"], 2, "empty holds no run to resume"),
    (["train", "--out", "RUN"], 2, "holds a run already: go on with it by --resume, or choose another --out"),
    (["train", "--device", "gpu"], 2, "GPU"),
    (["eval", "RUN", "--device", "gpu"], 2, "GPU"),
    (["predict", "RUN", "good.npy", "--top", "0"], 2, "--top is 0; it must be at least 1"),
    (["predict", "RUN", "good.npy", "--attention", "out.xyz"], 2, "xyz"),
    (["summary", "vit_bas_patch16_224"], 2, "unknown model 'vit_bas_patch16_224': names are vit_SIZE_patchP_R"),
    (["summary", "vit_base_patch16_225"], 2, "image_size 225×225 is not a multiple of patch_size 16"),
    (["summary", "nowhere.toml"], 2, r"cannot read the config nowhere\.toml"),
    (["summary", "typo.toml"], 2, "unknown key"),
    (["summary", "empty"], 2, r"cannot read the config empty/config\.toml"),
    (["explain", "--model", "vit_bas_patch16_224"], 2, "unknown model 'vit_bas_patch16_224'"),
    (["explain", "--model", "nowhere.toml"], 2, r"cannot read the config nowhere\.toml"),
    (["explain", "--step", "2"], 2, "--step is for a script: name it with --script"),
    (["explain", "--images", "0"], 2, "--images is 0; it must be at least 1"),
    # bad data or file
    (["explain", "--run", "empty"], 3, r"empty holds neither model\.safetensors nor a checkpoint"),
    (["explain", "--image", "nowhere.png"], 3, r"there is no image file nowhere\.png"),
    (["explain", "--out", "file/tape.html", "--images", "1"], 3, "file"),
    (["explain", "--script", "nowhere.py"], 3, r"there is no script nowhere\.py"),
    (["explain", "--script", "half.py"], 3, r"half\.py, line 1: SyntaxError: '\(' was never closed"),
    (["explain", "--script", "raises.py"], 3, r"raises\.py, line 2: ZeroDivisionError: division by zero"),
    (["explain", "--script", "exits.py"], 3, r"exits\.py ended with 'no data'"),
    (
        ["explain", "--script", "nothing.py"],
        3,
        r"nothing\.py has nothing to explain: name its result `loss`",
    ),
    (["explain", "--script", "vector.py"], 3, r"the global `loss` of vector\.py: .* has the shape \(2,\)"),
    (["explain", "--script", "constant.py"], 3, r"the global `loss` of constant\.py: this Tensor has no tape"),
    (["explain", "--script", "twice.py"], 3, r"twice\.py, line 2: RuntimeError: a recording is open already"),
    (["explain", "--script", "raises.py", "--step", "0"], 2, "--step is 0; the first backward\\(\\) is 1"),
    (["explain", "--script", "raises.py", "--images", "3"], 2, "--images and --image are for a model or a run"),
    (["explain", "--run", "RUN", "--seed", "3"], 2, "--seed is for fresh weights"),
    (["explain", "--out", "."], 3, r"the page cannot be written to \.: it is a folder"),
    (["explain", "--script", "nothing.py", "--step", "2"], 3, "called backward.* 0 times, so there is no step 2"),
    (["train", "--data", "digit"], 3, "unknown dataset 'digit': did you mean 'digits'"),
    (["train", "--data", "nowhere.npz"], 3, r"nowhere\.npz does not exist"),
    (["train", "--data", "short.npz"], 3, r"short\.npz cannot be read as an \.npz file"),
    (["train", "--data", "text.npz"], 3, r"text\.npz cannot be read as an \.npz file"),
    (["train", "--data", "lacking.npz"], 3, r"lacking\.npz lacks train_labels, val_images"),
    (["train", "--data", "floats.npz"], 3, r"floats\.npz: the training images must be uint8"),
    (["train", "--data", "good.png"], 3, r"good\.png is not a dataset; datasets are read from an \.npz file"),
    (["eval", "nowhere"], 3, "nowhere does not exist"),
    (["eval", "empty"], 3, r"empty holds neither model\.safetensors nor a checkpoint"),
    (["eval", "flipped.safetensors"], 3, r"flipped\.safetensors is damaged"),
    (["eval", "short.safetensors"], 3, r"short\.safetensors is damaged"),
    (["eval", "text.safetensors"], 3, r"text\.safetensors"),
    (["eval", "other.safetensors"], 3, r"other\.safetensors holds no model"),
    (
        ["eval", "RUN", "--data", "good.npz"],
        3,
        r"good has images of \(3, 8, 12\) \(C, H, W\), but .* takes \(1, 8, 8\)",
    ),
    (["predict", "flipped.safetensors", "good.png"], 3, r"flipped\.safetensors is damaged"),
    (["predict", "RUN", "nowhere.png"], 3, r"there is no image file nowhere\.png"),
    (["predict", "RUN", "empty"], 3, "empty is a folder; give the image files in it"),
    (["predict", "RUN", "text.png"], 3, r"text\.png cannot be read as an image"),
    (["predict", "RUN", "short.png"], 3, r"short\.png cannot be read as an image"),
    (["predict", "RUN", "text.npy"], 3, r"text\.npy cannot be read as an \.npy file"),
    (["predict", "RUN", "objects.npy"], 3, r"objects\.npy cannot be read as an \.npy file"),
    (["predict", "RUN", "large.npy"], 3, r"large\.npy holds uint8 \(1, 9, 8\); the model takes uint8 \(1, 8, 8\)"),
    (["predict", "RUN", "floats.npy"], 3, r"floats\.npy holds float64"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS, ids=lambda v: " ".join(v) if type(v) is list else "")
def test_an_error_is_one_sentence_an_exit_code_and_nothing_on_disk(tinyvit, bad_files, run, arguments, code, message):
    if "gpu" in arguments and tv.gpu_available():
        pytest.skip("there is a GPU")
    before = {path: path.stat().st_mtime_ns for folder in (bad_files, run) for path in folder.rglob("*")}
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    given, out, err = tinyvit(*arguments)
    assert (given, out) == (code, "")
    assert err.startswith("tinyvit: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert {path: path.stat().st_mtime_ns for folder in (bad_files, run) for path in folder.rglob("*")} == before
    with pytest.raises(tuple(cli.EXIT_CODES)):
        cli.main([*arguments, "--debug"])


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_file_in_the_place_of_the_runs_folder_is_an_error_and_stays(tinyvit, bad_files, out):
    code, _, err = tinyvit("train", *QUICK, "--out", out)
    assert code in (2, 3)
    assert err.count("\n") == 1
    assert "file" in err
    assert (bad_files / "file").read_text() == "in the way of a folder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--epochs", "ten"], "argument --epochs: invalid int value: 'ten'"),
        (["train", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["train", "--epoch-count", "3"], "unrecognized arguments: --epoch-count"),
        (["eval"], "the following arguments are required: RUN"),
        (["predict", "here"], "the following arguments are required: IMAGE"),
        (["summary"], "the following arguments are required: MODEL"),
        (["explain", "--run", "r", "--script", "s.py"], "argument --script: not allowed with argument --run"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_told_how_it_would(tinyvit, cwd, arguments, message):
    code, out, err = tinyvit(*arguments)
    assert (code, out, os.listdir()) == (2, "", [])
    assert err.startswith("usage: tinyvit ")
    assert message in err


def test_a_seed_cannot_change_on_the_way(tinyvit, run):
    before = (run / "config.toml").read_bytes()
    code, out, err = tinyvit("train", "--resume", "--out", run, "--seed", "1")
    assert (code, out) == (3, "")
    assert "started with seed 0 and cannot go on with 1" in err
    assert (run / "config.toml").read_bytes() == before


@pytest.mark.parametrize("setting", ["training.lr=1e30", "training.weight_decay=1e38"])
def test_a_loss_that_is_no_number_is_exit_code_4_and_one_sentence(tinyvit, cwd, setting):
    with warnings.catch_warnings(record=True) as caught:  # the command would print them
        warnings.simplefilter("always")
        code, _, err = tinyvit("train", *QUICK, "--epochs", "5", "--set", setting, "--out", "r")
    assert code == 4
    assert "the loss is not finite at step" in err
    assert "lower training.lr" in err
    assert (err.count("\n"), caught) == (1, [])
    assert not (cwd / "r" / "model.safetensors").exists()


def test_attention_without_matplotlib_says_what_to_install(tinyvit, run, cwd, monkeypatch):
    np.save("a.npy", TEST.images[0])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = tinyvit("predict", run, "a.npy", "--attention", "look.png")
    assert (code, out) == (2, "")
    assert err == "tinyvit: --attention needs matplotlib: pip install 'tinyvit[vision]'\n"


def test_an_image_without_pillow_says_what_to_install(tinyvit, run, cwd, monkeypatch):
    Image.fromarray(TEST.images[0, 0]).save("a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = tinyvit("predict", run, "a.png")
    assert code == 3
    assert "needs Pillow: pip install 'tinyvit[vision]'" in err


def test_debug_shows_where_an_error_came_from(cwd):
    with pytest.raises(CheckpointError):
        cli.main(["eval", "nowhere", "--debug"])
    with pytest.raises(ConfigError):
        cli.main(["train", "--debug", "--set", "model.dim=5.5"])


@pytest.mark.slow
def test_a_model_without_layers_or_class_token_can_be_trained_and_drawn(tinyvit, cwd):
    for i, settings in enumerate((["model.depth=0"], ["model.class_token=false", "model.pool=mean"])):
        code, out, err = tinyvit("train", *QUICK, *train(*settings)[1:], "--out", f"r{i}")
        assert (code, err) == (0, "")
        assert f"files in r{i}/" in out


def test_a_run_of_a_few_epochs_needs_no_other_setting(tinyvit, cwd, no_pictures):
    code, _, err = tinyvit("train", "--epochs", "2", "--out", "r")
    assert (code, err) == (0, "")


def test_a_reader_that_stops_early_is_no_error(cwd):
    command = f"{shlex.quote(sys.executable)} -m tinyvit.cli summary vit_base_patch16_224 | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141)  # 0 where the table was written before the reader left
    assert done.stderr == ""


def test_a_script_whose_result_has_several_numbers_is_explained_for_the_gradient_it_was_given(tinyvit, tmp_path):
    script = tmp_path / "several.py"
    script.write_text(
        "import numpy as np, tinyvit as tv\n"
        "x = tv.tensor(np.array([1.0, 2.0]), requires_grad=True)\n"
        "(x * x).backward(np.array([1.0, 10.0]))\n"
        "assert x.grad.tolist() == [2.0, 40.0]\n"
    )
    code, _, err = tinyvit("explain", "--script", str(script), "--out", str(tmp_path / "page.html"))
    assert (code, err) == (0, "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="tape">(.*?)</script>', page, re.DOTALL)[1])
    assert data["nodes"][0]["gradient"]["numbers"] == [2.0, 40.0]
