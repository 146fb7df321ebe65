"""Fine-tuning: step sizes by depth, frozen layers, and runs that start from weights."""

import dataclasses
import json

import numpy as np
import pytest
from peer_libraries import timm_module
from PIL import Image
from test_run import assert_same_outcome, bits, cells, stop_at, tables_of  # noqa: F401 -- cells is a fixture

import tinyvit as tv
from tinyvit import cli, pretrained
from tinyvit.data import load_dataset
from tinyvit.training import (
    ConfigError,
    Initial,
    Interrupted,
    Run,
    freeze,
    layer_scales,
    load_checkpoint,
    load_trained,
)
from tinyvit.training.checkpoint import latest_checkpoint
from tinyvit.training.config import merge, open_dataset, read_toml, reading, resolve
from tinyvit.training.run import make_trainer, read_model_config
from tinyvit.vit import ViTConfig

EVERYTHING = {"register_tokens": 2, "layer_scale": 0.1, "distillation_token": True, "pool": "cls_mean", "pre_logits": 8}
EMBEDDINGS = ("patch_embed.", "cls_token", "dist_token", "reg_token", "pos_embed")


def model_of(**changes):
    shape = {"image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 3, "dim": 16, "depth": 3, "num_heads": 2}
    return tv.ViT(ViTConfig(**{**shape, **changes}))


def names_of(model):
    return [name for name, _ in model.named_parameters()]


# ---------------------------------------------------------------------------------------------------- layer decay


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"reg_tokens": 4, "init_values": 0.1}, {"register_tokens": 4, "layer_scale": 0.1}),
        ({"global_pool": "avg", "class_token": False}, {"pool": "mean", "class_token": False, "pool_norm": True}),
        ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
    ],
    ids=["plain", "registers", "pooled norm", "mean"],
)
@pytest.mark.parametrize("decay", [0.65, 1.0])
def test_the_factors_are_those_of_timm(theirs, ours, decay):
    timm = timm_module()
    from timm.optim import param_groups_layer_decay

    twin = timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=3, num_heads=2, **theirs
    )
    name_of = {p: name for name, p in twin.named_parameters()}
    groups = param_groups_layer_decay(twin, layer_decay=decay)
    expected = {name_of[p]: group["lr_scale"] for group in groups for p in group["params"]}
    for name in (
        "norm.weight",
        "norm.bias",
    ):  # BEiT's code leaves it where the head is; timm takes it to the last layer
        if name in expected:
            assert expected[name] == decay
            expected[name] = 1.0
    scales = layer_scales(names_of(model_of(**ours)), 3, decay)
    assert scales.keys() == expected.keys()
    assert scales == pytest.approx(expected, rel=1e-15)


def test_whatever_is_in_the_model_has_its_place():
    scales = layer_scales(names_of(model_of(**EVERYTHING)), 3, 0.5)
    for name, scale in scales.items():
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
        exponent = 4 if name.startswith(EMBEDDINGS) else 0 if layer is None else 3 - layer
        assert scale == 0.5**exponent, name
    assert set(scales.values()) == {1.0, 0.5, 0.25, 0.125, 0.0625}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_layer_decay_gives_the_optimizer_a_step_size_for_each_layer(cells, optimizer):  # noqa: F811
    tables = tables_of(cells, layer_decay=0.5, optimizer=optimizer)
    made = make_trainer(resolve(tables, load_dataset(cells)), load_dataset(cells)).optimizer
    assert made.lr_scales == layer_scales(made.names, 2, 0.5)
    assert len(set(made.lr_scales.values())) == 4


# ----------------------------------------------------------------------------------------------------- frozen layers


def is_frozen(name, freeze):
    """Of a model of two layers; -1 is all but the head."""
    frozen = {0: (), 1: (*EMBEDDINGS, "blocks.0."), 2: (*EMBEDDINGS, "blocks.")}
    return name.split(".")[0] not in ("head", "head_dist") if freeze == -1 else name.startswith(frozen[freeze])


@pytest.mark.parametrize("layers", [0, 1, 2, -1])
def test_what_is_frozen(layers):
    model = model_of(depth=2, **EVERYTHING)
    freeze(model, layers)
    for name, p in model.named_parameters():
        assert p.requires_grad != is_frozen(name, layers), name


@pytest.mark.parametrize("layers", [1, 2, -1])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_frozen_weights_keep_their_bits_and_the_others_move(tmp_path, cells, layers, ema):  # noqa: F811
    run = Run(tables_of(cells, freeze=layers, ema=ema, epochs=2, warmup_epochs=0), tmp_path, "cpu")
    model = run.trainer.model
    before = model.state_dict()
    run.train()
    arrays, _ = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    kept = load_checkpoint(tmp_path / "model.safetensors")[0]
    loaded = load_trained(latest_checkpoint(tmp_path / "checkpoints")).model.state_dict()
    for name, p in model.named_parameters():
        frozen = is_frozen(name, layers)
        assert (p.grad is None) == frozen, name
        assert np.array_equal(p.numpy(), before[name]) == frozen, name
        assert np.array_equal(kept[name], before[name]) == frozen, name
        assert np.array_equal(kept[name], loaded[name]), name
        assert (f"optimizer.exp_avg.{name}" in arrays) == (not frozen), name
        assert (f"ema.shadow.{name}" in arrays) == (bool(ema) and not frozen), name
        assert f"model.{name}" in arrays


@pytest.mark.parametrize("changes", [{}, {"model": {"checkpoint": True}}], ids=["kept", "recomputed"])
@pytest.mark.parametrize("training", [{"freeze": 1, "layer_decay": 0.7}, {"freeze": -1, "optimizer": "sgd"}], ids=str)
def test_a_frozen_run_resumes_bit_for_bit(tmp_path, cells, training, changes):  # noqa: F811
    tables = merge(tables_of(cells, **training), changes)
    Run(tables, tmp_path / "whole", "cpu").train()
    for step in (4, 8):
        with pytest.raises(Interrupted):
            Run(tables, tmp_path / "parts", "cpu", resume=True).train(stop_at(step))
    run = Run(read_toml(tmp_path / "parts" / "config.toml"), tmp_path / "parts", "cpu", resume=True)
    assert not run.trainer.model.pos_embed.table.requires_grad
    run.train()
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_frozen_layers_recomputed_in_the_sweep_train_to_the_same_bits(tmp_path, cells):  # noqa: F811
    weights = []
    for recomputed in (False, True):
        tables = merge(tables_of(cells, freeze=1), {"model": {"checkpoint": recomputed, "depth": 3}})
        Run(tables, tmp_path / str(recomputed), "cpu").train()
        weights.append(bits(tmp_path / str(recomputed) / "model.safetensors")[0])
    assert weights[0] == weights[1]


@pytest.mark.parametrize("layers", [0, 1, 2, -1])
def test_dropout_and_drop_path_of_frozen_layers_stay_off(cells, layers):  # noqa: F811
    data = load_dataset(cells)
    trainer = make_trainer(resolve(tables_of(cells, freeze=layers), data), data)
    images, labels = next(trainer.loader.epoch())
    trainer.train_step(images, labels)
    trainer.evaluate(trainer.validation)
    trainer.train_step(images, labels)  # in the right mode after an evaluation, too
    model = trainer.model
    frozen = 2 if layers == -1 else layers
    for _ in range(3):  # one of them might drop nothing by chance
        tokens = model.embed(images)
        alike = [np.array_equal(tokens.numpy(), model.embed(images).numpy())]
        alike += [np.array_equal(block(tokens).numpy(), block(tokens).numpy()) for block in model.blocks]
        if alike == [frozen > 0, frozen > 0, frozen > 1]:
            break
    assert alike == [frozen > 0, frozen > 0, frozen > 1]


def test_more_frozen_layers_than_there_are_are_refused(cells):  # noqa: F811
    for layers in (3, -2):
        with pytest.raises(ConfigError, match=rf"training\.freeze is {layers}; .* up to 2, or -1 for all but the head"):
            resolve(tables_of(cells, freeze=layers), load_dataset(cells))


# -------------------------------------------------------------------------------------------------- initial weights


@pytest.fixture(scope="module")
def source(cells, tmp_path_factory):  # noqa: F811
    """A run of another config, whose weights others start from."""
    folder = tmp_path_factory.mktemp("source") / "run"
    tables = merge(tables_of(cells, epochs=1, warmup_epochs=0), {"model": {"register_tokens": 1, "activation": "relu"}})
    Run(tables, folder, "cpu").train()
    return folder


def opened(path, **changes):
    """The weights of a run, for a model of other classes too; `weights.asked` is what they were asked for."""
    trained = load_trained(path)
    model = dataclasses.asdict(trained.config.model)
    data = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop_ratio": 0.9, "interpolation": "bicubic"}

    def weights(config):
        weights.asked.append(config)
        return trained.model.with_head(config.num_classes).state_dict()

    weights.asked = []
    return Initial(**{"model": model, "data": data, "weights": weights, **changes})


@pytest.fixture
def initial(source):
    return opened(source)


@pytest.fixture
def tables(cells, source):  # noqa: F811
    """A config that says little of the model, and is random in everything."""
    training = {"epochs": 4, "warmup_epochs": 1, "ema": 0.9, "checkpoint_epochs": 2, "init": str(source)}
    return merge({"data": {"name": str(cells), "batch_size": 16}, "training": {**training, "layer_decay": 0.7}})


def test_weights_say_what_the_config_and_the_data_leave_open(tables, cells, source, initial):  # noqa: F811
    config = resolve(tables, load_dataset(cells), initial)
    assert config.model == load_trained(source).config.model  # width, registers, dropout, … and the data's own facts
    assert (config.data.mean, config.data.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert (config.data.crop_ratio, config.data.interpolation) == (0.9, "bicubic")
    asked = merge(tables, {"model": {"drop_path": 0.5, "depth": 7}, "data": {"mean": [0.1] * 3, "crop_ratio": 1.0}})
    config = resolve(asked, load_dataset(cells), initial)
    assert (config.model.drop_path, config.model.depth, config.model.register_tokens) == (0.5, 7, 1)
    assert (config.data.mean, config.data.std, config.data.crop_ratio) == ((0.1,) * 3, (0.2,) * 3, 1.0)


def test_a_name_on_the_hub_stays_a_name_in_the_config(tables, cells, initial):  # noqa: F811
    named = merge(tables, {"training": {"init": "hf://owner/name@v2"}})
    assert resolve(named, load_dataset(cells), initial).training.init == "hf://owner/name@v2"


def test_image_size_channels_and_classes_are_the_datas(tables, cells, source):  # noqa: F811
    other = {"image_size": 224, "channels": 1, "num_classes": 1000, "patch_size": 4}
    data = load_dataset(cells)
    config = resolve(tables, data, opened(source, model=other, data={"mean": (0.5,), "std": (0.5,)}))
    assert (config.model.image_size, config.model.channels, config.model.num_classes) == ((8, 12), 3, 3)
    assert (config.data.mean, config.data.std) == data.statistics()  # not of one channel
    assert config.model.dim == 64  # nobody says: the default of a small model
    empty = merge(tables, {"data": {"mean": []}})
    assert resolve(empty, data, opened(source)).data.mean == data.statistics()[0]  # asked for


def test_photographs_are_read_as_the_weights_want_them(tmp_path, source):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (40 + i, 30), (10 * i, 99, 0)).save(tmp_path / name / f"{i}.png")
    weights = opened(source, model={"image_size": 24, "channels": 1, "patch_size": 8})
    tables = merge({"data": {"name": str(tmp_path)}, "training": {"init": "w"}})
    asked = reading(tables, initial=weights)
    assert (asked.size, asked.channels, asked.crop_ratio, asked.interpolation) == ((24, 24), 1, 0.9, "bicubic")
    config = resolve(tables, open_dataset(tables, initial=weights), weights)
    assert (config.model.image_size, config.model.channels, config.model.patch_size) == (24, 1, 8)
    own = merge(tables, {"model": {"image_size": 16, "channels": 3}, "data": {"interpolation": "box"}})
    asked = reading(own, initial=weights)
    assert (asked.size, asked.channels, asked.crop_ratio, asked.interpolation) == ((16, 16), 3, 0.9, "box")


def test_a_field_that_there_is_not_is_refused(tables, cells, source):  # noqa: F811
    with pytest.raises(ConfigError, match=r"unknown key in \[model\] 'width': did you mean model\.dim"):
        resolve(tables, load_dataset(cells), opened(source, model={"width": 3}))


def test_a_run_starts_from_the_weights_and_its_config_repeats_it(tmp_path, tables, source, initial, monkeypatch):
    monkeypatch.chdir(source.parent)
    relative = merge(tables, {"training": {"init": "run"}})
    run = Run(relative, tmp_path / "first", "cpu", initial=initial)
    assert initial.weights.asked == [run.config.model]
    assert run.config.training.init == str(source)
    expected = load_checkpoint(source / "model.safetensors")[0]
    for name, p in run.trainer.model.named_parameters():
        same = np.zeros_like(expected[name]) if name.startswith("head") else expected[name]
        np.testing.assert_array_equal(p.numpy(), same, err_msg=name)
        np.testing.assert_array_equal(run.trainer.ema.state_dict()[f"shadow.{name}"], same, err_msg=name)
    run.train()
    monkeypatch.chdir(tmp_path)
    written = read_toml(tmp_path / "first" / "config.toml")
    assert written["model"].keys() == {f.name for f in dataclasses.fields(ViTConfig)}
    Run(written, tmp_path / "second", "cpu", initial=opened(source, data={}, model={})).train()
    assert_same_outcome(tmp_path / "first", tmp_path / "second")


def test_a_run_from_weights_resumes_without_them_bit_for_bit(tmp_path, tables, initial):
    Run(tables, tmp_path / "whole", "cpu", initial=initial).train()
    with pytest.raises(Interrupted):
        Run(tables, tmp_path / "parts", "cpu", initial=initial).train(stop_at(5))
    asked = len(initial.weights.asked)
    assert Run.goes_on(tmp_path / "parts")
    Run(tables, tmp_path / "parts", "cpu", resume=True, initial=initial)
    assert len(initial.weights.asked) == asked
    Run(read_toml(tmp_path / "parts" / "config.toml"), tmp_path / "parts", "cpu", resume=True).train()
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_a_run_that_was_interrupted_before_its_first_checkpoint_needs_its_weights_again(tmp_path, tables, initial):
    def die(trainer):
        raise MemoryError

    with pytest.raises(MemoryError):
        Run(tables, tmp_path, "cpu", initial=initial).train(die)
    assert not Run.goes_on(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.init names .*run', but these weights were not given"):
        Run(read_toml(tmp_path / "config.toml"), tmp_path, "cpu", resume=True)
    Run(read_toml(tmp_path / "config.toml"), tmp_path, "cpu", resume=True, initial=initial)


def test_weights_without_a_name_a_name_without_weights_and_weights_that_do_not_fit_are_refused(
    tmp_path,
    cells,  # noqa: F811
    tables,
    source,
    initial,
):
    nameless = merge(tables, {"training": {"init": ""}})
    with pytest.raises(ConfigError, match=r"training\.init is empty: set it to their path"):
        Run(nameless, tmp_path / "r", "cpu", initial=initial)
    with pytest.raises(ConfigError, match=r"training\.init names .*run', but these weights were not given"):
        Run(tables, tmp_path / "r", "cpu")
    with pytest.raises(ConfigError, match=r"training\.init .*run' says what the model is: open these weights"):
        resolve(tables, load_dataset(cells))
    with pytest.raises(ConfigError, match=r"training\.init .*run': these weights do not fit ViT: missing cls_token"):
        Run(tables, tmp_path / "r", "cpu", initial=opened(source, weights=lambda config: {}))
    assert not (tmp_path / "r").exists()


def test_a_run_cannot_go_on_from_other_weights_or_with_others_frozen(tmp_path, tables, source, initial):
    with pytest.raises(Interrupted):
        Run(tables, tmp_path, "cpu", initial=initial).train(stop_at(2))
    written = read_toml(tmp_path / "config.toml")
    for change in ({"init": "another"}, {"layer_decay": 0.8}):
        with pytest.raises(ConfigError, match=rf"was trained with training\.{next(iter(change))} .* and cannot go on"):
            Run(merge(written, {"training": change}), tmp_path, "cpu", resume=True)
    with pytest.raises(ValueError, match="does not fit this config"):
        Run(merge(written, {"training": {"freeze": 1}}), tmp_path, "cpu", resume=True)


# ------------------------------------------------------------------------------------------ configs of older versions


def test_the_config_of_an_older_run_is_whole_and_goes_on(tmp_path, tables, initial, cells):  # noqa: F811
    """It lacks the keys that came later, and its data may be gone; what was not yet there had its default."""
    plain = tables_of(cells)
    with pytest.raises(Interrupted):
        Run(plain, tmp_path, "cpu").train(stop_at(5))
    written = read_toml(tmp_path / "config.toml")
    later = {"model": ["resampling", "pool_norm", "checkpoint"], "training": ["freeze", "init", "layer_decay"]}
    for table, keys in later.items():
        for key in keys:
            del written[table][key]
    newest = latest_checkpoint(tmp_path / "checkpoints")
    arrays, meta = load_checkpoint(newest)
    tv.training.save_checkpoint(newest, arrays, {**meta, "config": written})
    Run(written, tmp_path, "cpu", resume=True).train()
    Run(plain, tmp_path / "whole", "cpu").train()
    assert bits(tmp_path / "model.safetensors")[0] == bits(tmp_path / "whole" / "model.safetensors")[0]

    older = tmp_path / "older.toml"
    del written["data"]
    older.write_text(json_to_toml({**written, "data": {"name": str(tmp_path / "gone.npz")}}))
    assert read_model_config(older) == load_trained(tmp_path).config.model


def json_to_toml(tables):
    lines = []
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """tinyvit(…) -> (exit code, standard output, standard error), where weights are opened by `opened`."""
    paths = []
    monkeypatch.setattr(cli, "_draw_pictures", lambda run, workers: "")
    monkeypatch.setattr(pretrained, "initial", lambda path: paths.append(path) or opened(path), raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    run.paths = paths
    return run


def test_the_command_starts_from_weights_repeats_and_resumes(command, tmp_path, cells, source):  # noqa: F811
    brief = ["--set", "data.batch_size=16", "--epochs", "3", "--device", "cpu"]
    start = ["train", "--data", cells, "--init", source, *brief, "--set", "training.freeze=1"]
    code, printed, _ = command(*start, "--print-config")
    assert code == 0
    assert not list(tmp_path.iterdir())
    code, out, err = command(*start, "--out", "first")
    assert (code, err) == (0, "")
    assert f"starts from {source}\n" in out
    frozen = sum(p.size for n, p in load_trained("first").model.named_parameters() if not is_frozen(n, 1))
    assert f"frozen: all but {frozen:,} parameters\n" in out
    assert (tmp_path / "first" / "config.toml").read_text() == printed
    assert command("train", "--config", "first/config.toml", "--out", "second", "--device", "cpu")[0] == 0
    assert_same_outcome(tmp_path / "first", tmp_path / "second")

    opened_before = len(command.paths)
    code, out, _ = command("train", "--resume", "--out", "first", "--epochs", "4", "--device", "cpu")
    assert code == 0
    assert "starts from" not in out
    assert len(command.paths) == opened_before  # a checkpoint holds all that it takes


def test_a_summary_of_a_config_with_weights_is_that_of_the_model_they_are_for(command, tmp_path, cells, source):  # noqa: F811
    text = f"[data]\nname = {json.dumps(str(cells))}\n[training]\ninit = {json.dumps(str(source))}\n"
    (tmp_path / "mine.toml").write_text(text)
    code, out, _ = command("summary", "mine.toml")
    assert code == 0
    assert out == command("summary", source)[1]


def test_weights_that_cannot_be_opened_are_bad_data_in_one_sentence(command, monkeypatch):
    def refused(path):
        raise pretrained.WeightsError(f"{path} is no file of weights")

    monkeypatch.setattr(pretrained, "initial", refused)
    assert command("train", "--init", "notes.txt") == (3, "", "tinyvit: notes.txt is no file of weights\n")
