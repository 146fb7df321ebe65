"""A run and its folder: what is written, that it repeats to the last bit, and that stopping it changes nothing."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tinyvit import cli
from tinyvit.data import AUGMENTATIONS, Loader, load_dataset
from tinyvit.training import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteLossError,
    Run,
    evaluate,
    load_checkpoint,
    load_trained,
    save_checkpoint,
)
from tinyvit.training.checkpoint import checkpoint_path, latest_checkpoint
from tinyvit.training.config import merge, read_toml, resolve
from tinyvit.training.run import continue_config, make_schedule, make_trainer

STEPS, EPOCHS = 3, 4  # of an epoch (16, 16 and 8 images), of a run
EVERYTHING_RANDOM = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.2}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A data set in MedMNIST's layout: RGB, not square, one colour a class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 40), ("val", 12), ("test", 12)):
        labels = rng.integers(0, 3, (n, 1))
        images = rng.integers(0, 120, (n, 8, 12, 3))
        images[np.arange(n), :, :, labels[:, 0]] += 100
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def tables(cells):
    """A config in which everything that is random, averaged or clipped takes part."""
    return tables_of(cells)


def tables_of(cells, **training):
    return merge(
        {
            "model": {"dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0, **EVERYTHING_RANDOM},
            "data": {"name": str(cells), "batch_size": 16},
            "training": {"epochs": EPOCHS, "warmup_epochs": 1, "ema": 0.9, "clip_norm": 0.5, "checkpoint_epochs": 2},
        },
        {"training": training},
    )


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    Run(tables, folder, "cpu").train()
    return folder


def bits(path):
    arrays, meta = load_checkpoint(path)
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}, meta


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def outcome(folder):
    """All that a run's folder says, but for its times."""
    state, meta = bits(latest_checkpoint(folder / "checkpoints"))
    metrics = [{**record, "seconds": None, "images_per_second": None} for record in records(folder)]
    meta["state"]["seconds"] = None
    return {
        "config": (folder / "config.toml").read_text(),
        "model": bits(folder / "model.safetensors"),
        "checkpoint": (state, meta),
        "metrics": metrics,
    }


def assert_same_outcome(folder, other):
    left, right = outcome(folder), outcome(other)
    for part in left:
        assert left[part] == right[part], part


def contents(folder):
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def stop_at(step):
    def on_step(trainer):
        trainer.stop = trainer.step == step

    return on_step


# ------------------------------------------------------------------------------------------------- stopped, resumed


@pytest.mark.parametrize("stops", [*((step,) for step in range(1, STEPS * EPOCHS + 1)), range(1, STEPS * EPOCHS + 1)])
def test_a_run_stopped_after_any_step_and_resumed_is_the_uninterrupted_one_bit_for_bit(tmp_path, tables, whole, stops):
    for step in stops:
        run = Run(tables, tmp_path, "cpu", resume=True)
        with pytest.raises(Interrupted):
            run.train(stop_at(step))
        assert latest_checkpoint(tmp_path / "checkpoints") == checkpoint_path(tmp_path / "checkpoints", step)
        assert not (tmp_path / "model.safetensors").exists()
    run = Run(continue_config(tmp_path), tmp_path, "cpu", resume=True)
    assert run.resumed_from == checkpoint_path(tmp_path / "checkpoints", step)
    assert run.train()["event"] == "final"
    assert_same_outcome(tmp_path, whole)
    seconds = [record["seconds"] for record in records(tmp_path)]
    assert seconds == sorted(seconds)  # the time before the interruption counts
    assert seconds[0] > 0


@pytest.mark.parametrize("step", [2, 5, 7, 11], ids=lambda step: f"step {step}")
def test_a_run_that_died_goes_on_from_its_last_checkpoint_to_the_same_end(tmp_path, tables, whole, step):
    def die(trainer):
        if trainer.step == step:
            raise MemoryError

    with pytest.raises(MemoryError):
        Run(tables, tmp_path, "cpu").train(die)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epo')  # a line cut short, and what a killed writer leaves
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / ".step-00000099.safetensors.1.tmp").write_bytes(b"half")
    run = Run(continue_config(tmp_path), tmp_path, "cpu", resume=True)
    assert run.trainer.step == step // 6 * 6  # a checkpoint every two epochs of three steps
    assert (run.resumed_from is None) == (step < 6)
    run.train()
    assert_same_outcome(tmp_path, whole)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_newest_checkpoint_cut_short_makes_the_run_go_on_from_the_one_before(tmp_path, tables, whole):
    for step in (4, 8):
        with pytest.raises(Interrupted):
            Run(tables, tmp_path, "cpu", resume=True).train(stop_at(step))
    newest = latest_checkpoint(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    run = Run(tables, tmp_path, "cpu", resume=True)
    assert run.trainer.step == 6
    run.train()
    assert_same_outcome(tmp_path, whole)


def test_a_finished_run_resumed_says_the_same_again_and_can_be_given_more_epochs(tmp_path, tables, whole):
    final = Run(tables, tmp_path, "cpu").train()
    assert Run(tables, tmp_path, "cpu", resume=True).train() == final == records(tmp_path)[-1]
    assert_same_outcome(tmp_path, whole)
    longer = merge(tables, {"training": {"epochs": EPOCHS + 1}})
    assert Run(longer, tmp_path, "cpu", resume=True).train()["step"] == STEPS * (EPOCHS + 1)
    assert [r.get("epoch") for r in records(tmp_path)] == [1, 2, 3, 4, 5, 5]
    assert [r["event"] for r in records(tmp_path)] == ["epoch"] * 5 + ["final"]


def test_a_finished_run_that_goes_on_and_is_interrupted_is_no_longer_its_old_model(tmp_path, tables):
    Run(tables, tmp_path, "cpu").train()
    longer = Run(merge(tables, {"training": {"epochs": EPOCHS + 1}}), tmp_path, "cpu", resume=True)
    with pytest.raises(Interrupted):
        longer.train(stop_at(STEPS * EPOCHS + 1))
    assert load_trained(tmp_path).path == checkpoint_path(tmp_path / "checkpoints", STEPS * EPOCHS + 1)


def test_a_checkpoint_with_a_changed_bit_is_passed_over_and_named(tmp_path, tables, whole):
    for step in (3, 6):
        with pytest.raises(Interrupted):
            Run(tables, tmp_path, "cpu", resume=True).train(stop_at(step))
    newest = latest_checkpoint(tmp_path / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[-10] ^= 1
    newest.write_bytes(content)
    run = Run(tables, tmp_path, "cpu", resume=True)
    assert run.trainer.step == 3
    assert newest.name in str(run.damaged[0])
    run.train()
    assert_same_outcome(tmp_path, whole)


def test_weights_that_are_not_finite_are_never_the_newest_checkpoint(tmp_path, tables):
    run = Run(tables, tmp_path, "cpu")

    def poison_and_stop(trainer):
        trainer.stop = trainer.step == 4
        if trainer.stop:
            trainer.model.head.bias.data[0] = np.nan

    with pytest.raises(NonFiniteLossError, match="weights are not finite at step 4"):
        run.train(poison_and_stop)
    assert latest_checkpoint(tmp_path / "checkpoints") in (None, checkpoint_path(tmp_path / "checkpoints", 3))


def test_a_model_of_another_origin_is_not_written_over(tmp_path, tables):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="holds a run already"):
        Run(tables, tmp_path, "cpu")
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_trained(tmp_path, tables):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; choose another --out"):
        Run(tables, path, "cpu")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"seed": 1}}, "started with seed 0 and cannot go on with 1"),
        ({"model": {"dim": 32}}, "does not fit this config: .*shape"),
        ({"training": {"optimizer": "sgd"}}, "does not fit this config: .*SGD"),
        ({"data": {"batch_size": 40}}, "batch_size"),  # the second of 3 batches would be one of 1
    ],
    ids=["seed", "model", "optimizer", "batch size"],
)
def test_a_run_cannot_go_on_as_another_and_stays_as_it_is(tmp_path, tables, change, message):
    with pytest.raises(Interrupted):
        Run(tables, tmp_path, "cpu").train(stop_at(5))
    before = contents(tmp_path)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        Run(merge(tables, change), tmp_path, "cpu", resume=True).train()
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------------------------- signals and kills


LONG = 60  # epochs, of 3 steps each: long enough to be interrupted, short enough for a test


@pytest.fixture(scope="module")
def long(cells, tmp_path_factory):
    """(config file, folder) of an uninterrupted run of LONG epochs."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    Run(tables_of(cells, epochs=LONG, checkpoint_epochs=7), folder, "cpu").train()
    return folder / "config.toml", folder


def start(*arguments):
    """Start `tinyvit train` and wait until its first epoch is reported."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyvit.cli", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (line := process.stdout.readline()).startswith("epoch "):
        assert line, process.communicate()[1]
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_command_that_resumes_it(tmp_path, long, number, code, capsys):
    config, uninterrupted = long
    folder = tmp_path / "run"
    with start("--config", config, "--out", folder) as process:
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == code
    step = load_checkpoint(latest_checkpoint(folder / "checkpoints"))[1]["state"]["step"]
    assert 0 < step < LONG * STEPS
    assert f"stopped after step {step}; go on with: tinyvit train --resume" in stderr
    assert "Traceback" not in stderr
    program, *arguments = shlex.split(stderr.rpartition("go on with: ")[2])
    assert program == "tinyvit"
    assert cli.main(arguments) == 0
    assert f"resumed from step-{step:08d}.safetensors" in capsys.readouterr().out
    assert_same_outcome(folder, uninterrupted)


def kill_and_resume(folder, long, seconds):
    config, uninterrupted = long
    with start("--config", config, "--out", folder) as process:
        time.sleep(seconds)
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    Run(continue_config(folder), folder, "cpu", resume=True).train()
    assert_same_outcome(folder, uninterrupted)


def test_a_run_killed_at_once_resumes_to_the_same_end(tmp_path, long):
    kill_and_resume(tmp_path / "run", long, np.random.default_rng().uniform(0, 0.2))


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_a_run_killed_at_any_moment_resumes_to_the_same_end(tmp_path, long, attempt):
    kill_and_resume(tmp_path / "run", long, np.random.default_rng().uniform(0, 0.5))


# ------------------------------------------------------------------------------------------------------ the folder


def test_a_run_writes_these_files_and_no_others(whole):
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    checkpoints = [f"checkpoints/step-{step:08d}.safetensors" for step in (6, 12)]
    assert names == [*checkpoints, "config.toml", "metrics.jsonl", "model.safetensors"]


def test_the_metrics_are_a_record_an_epoch_and_then_the_final_one(whole, cells):
    *epochs, final = records(whole)
    assert [(r["event"], r["epoch"], r["step"]) for r in epochs] == [("epoch", i, 3 * i) for i in (1, 2, 3, 4)]
    assert final.keys() == {"event", "epoch", "step", "test_images", "test_loss", "test_accuracy", "seconds"}
    assert final["test_images"] == 12
    assert (final["event"], final["seconds"]) == ("final", epochs[-1]["seconds"])
    trained = load_trained(whole)
    loader = Loader(load_dataset(cells).test, 256, mean=trained.config.data.mean, std=trained.config.data.std)
    scores = evaluate(trained.model, loader)
    assert final["test_accuracy"] == scores["accuracy"]
    assert final["test_loss"] == pytest.approx(scores["loss"], rel=1e-5)  # here BLAS has more threads


def test_only_the_newest_two_checkpoints_are_kept(tmp_path, cells):
    tables, seen = tables_of(cells, checkpoint_epochs=1), []

    def on_record(record):
        seen.append([path.name[5:13] for path in sorted((tmp_path / "checkpoints").glob("*"))])

    Run(tables, tmp_path, "cpu").train(on_record=on_record)
    assert seen[:4] == [[], ["00000003"], ["00000003", "00000006"], ["00000006", "00000009"]]
    assert seen[4] == ["00000009", "00000012"]


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_a_seed_gives_the_same_run_again_and_another_seed_another(tmp_path, cells, whole, seed, same):
    Run(tables_of(cells, seed=seed), tmp_path, "cpu").train()
    if same:
        assert_same_outcome(tmp_path, whole)
    else:
        ours, theirs = (load_checkpoint(folder / "model.safetensors")[0] for folder in (tmp_path, whole))
        assert all((ours[name] != theirs[name]).any() for name in ours)


def test_the_config_that_a_run_writes_is_whole_and_repeats_it_bit_for_bit(tmp_path, tables, whole):
    tables = read_toml(whole / "config.toml")
    assert tables["model"]["image_size"] == [8, 12]
    assert (tables["model"]["channels"], tables["model"]["num_classes"]) == (3, 3)
    assert len(tables["data"]["mean"]) == len(tables["data"]["std"]) == 3
    Run(merge(tables), tmp_path, "cpu").train()
    assert_same_outcome(tmp_path, whole)


def test_a_folder_that_holds_a_run_is_refused_and_not_touched(tmp_path, tables, whole):
    before = contents(whole)
    with pytest.raises(ConfigError, match="holds a run already: go on with it by --resume, or choose another --out"):
        Run(tables, whole, "cpu")
    assert contents(whole) == before


def test_nothing_is_written_before_training_begins(tmp_path, tables):
    Run(tables, tmp_path / "run", "cpu")
    assert os.listdir(tmp_path) == []


def test_data_without_validation_or_test_images_is_trained_on_all_the_same(tmp_path, cells):
    with np.load(cells) as file:
        arrays = {k: v if k.startswith("train") else v[:0] for k, v in file.items()}
    np.savez(tmp_path / "bare.npz", **arrays)
    final = Run(tables_of(tmp_path / "bare.npz"), tmp_path / "run", "cpu").train()
    assert final.keys() == {"event", "epoch", "step", "seconds"}
    assert "validation_loss" not in records(tmp_path / "run")[0]


def test_a_loss_that_is_no_number_leaves_the_checkpoints_before_it(tmp_path, tables, monkeypatch):
    run = Run(tables, tmp_path, "cpu")
    step = run.trainer.train_step

    def poisoned(images, labels):
        step(images * math.nan if run.trainer.step == 7 else images, labels)

    monkeypatch.setattr(run.trainer, "train_step", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"at step 7 \(epoch 3\)"):
        run.train()
    assert [r["epoch"] for r in records(tmp_path)] == [1, 2]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000006.safetensors"]
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_every_schedule_fits_a_run_of_any_length(cells, tables, schedule, epochs):
    changes = {"schedule": schedule, "epochs": epochs, "warmup_epochs": 0}
    config = resolve(merge(tables, {"training": changes}), load_dataset(cells))
    lr = make_schedule(config, steps_an_epoch=1)
    assert lr(0) == config.training.lr
    assert (lr(epochs) < 0.2 * lr(0)) == (schedule != "constant")


# ---------------------------------------------------------------------------------------------- what a run leaves


def test_a_folder_gives_its_final_model_with_averaged_weights_and_its_classes(whole):
    trained = load_trained(whole)
    assert (trained.path, trained.classes) == (whole / "model.safetensors", ("0", "1", "2"))
    assert trained.config.model.image_size == (8, 12)
    assert not trained.model.training
    checkpoint = load_checkpoint(latest_checkpoint(whole / "checkpoints"))[0]
    for name, array in trained.model.state_dict().items():
        np.testing.assert_array_equal(array, checkpoint[f"ema.shadow.{name}"])
        assert (array != checkpoint[f"model.{name}"]).any()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_unfinished_folder_gives_what_its_newest_checkpoint_would_be_evaluated_by(tmp_path, cells, ema):
    run = Run(tables_of(cells, ema=ema), tmp_path, "cpu")
    with pytest.raises(Interrupted):
        run.train(stop_at(7))
    newest = checkpoint_path(tmp_path / "checkpoints", 7)
    loader = Loader(run.dataset.test, 256, mean=run.config.data.mean, std=run.config.data.std)
    for path in (tmp_path, newest):
        trained = load_trained(path)
        assert trained.path == newest
        assert evaluate(trained.model, loader) == run.trainer.evaluate(loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, meta: meta.pop("config"), "holds no model that this version can open: 'config'"),
        (lambda arrays, meta: meta.pop("classes"), "holds no model that this version can open: 'classes'"),
        (lambda arrays, meta: meta.pop("kind"), "holds no model that this version can open: 'kind'"),
        (lambda arrays, meta: meta["config"]["model"].update(dimm=3), "unknown key .*'dimm'"),
        (lambda arrays, meta: meta["config"]["model"].update(dim=15), "num_heads 2 does not divide dim 15"),
        (lambda arrays, meta: meta["config"].update(model=3), "must be a table"),
        (lambda arrays, meta: meta.update(config=[3]), "holds no model that this version can open"),
        (lambda arrays, meta: arrays.pop("head.weight"), r"missing head\.weight"),
        (lambda arrays, meta: arrays.update(more=np.zeros(2)), "unexpected more"),
    ],
)
def test_a_model_file_of_other_contents_is_refused_by_name(tmp_path, whole, change, message):
    arrays, meta = load_checkpoint(whole / "model.safetensors")
    change(arrays, meta)
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, arrays, meta)
    with pytest.raises(CheckpointError, match=rf"other\.safetensors.*{message}"):
        load_trained(path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor a checkpoint"):
        load_trained(tmp_path)


def test_a_trainer_is_built_just_as_the_config_says(cells, tables):
    training = {"optimizer": "sgd", "momentum": 0.7, "weight_decay": 0.2, "seed": 9, "ema": 0.0}
    changes = {"training": {**training, "label_smoothing": 0.3, "shards": 3}, "data": {"augment": "none"}}
    dataset = load_dataset(cells)
    trainer = make_trainer(resolve(merge(tables, changes), dataset), dataset)
    optimizer, loader, validation = trainer.optimizer, trainer.loader, trainer.validation
    assert (type(optimizer).__name__, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.7, 0.2)
    assert (trainer.label_smoothing, trainer.clip_norm, trainer.shards, trainer.ema) == (0.3, 0.5, 3, None)
    assert (loader.batch_size, loader.shuffle, loader.augment, loader.seed, trainer.seed) == (16, True, (), 9, 9)
    assert (trainer.epochs, validation.split, validation.shuffle) == (EPOCHS, dataset.validation, False)
    other = make_trainer(resolve(tables, dataset), dataset)
    assert (other.ema.decay, other.loader.augment) == (0.9, (AUGMENTATIONS["affine"],))
    ours, theirs = (t.model.patch_embed.proj.weight.numpy() for t in (trainer, other))
    assert (ours != theirs).any()  # of seeds 9 and 0
