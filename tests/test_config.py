"""The config: where its values come from, what it refuses and in which words, and its way through a TOML file."""

import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvit.data import Dataset, Reading, Split, digits
from tinyvit.training import Config, ConfigError, DataConfig, TrainingConfig
from tinyvit.training import config as config_module
from tinyvit.training.config import for_epochs, merge, parse_assignments, read_toml, reading, resolve
from tinyvit.vit import ViTConfig

TABLES = {"model": ViTConfig, "data": DataConfig, "training": TrainingConfig}
DEFAULTS = {(t, f.name): f.default for t, cls in TABLES.items() for f in dataclasses.fields(cls)}
DIGITS = digits()


def ids(value):
    return repr(value)


def dataset(channels=3, height=8, width=12, classes=4):
    split = Split(np.zeros((5, channels, height, width), np.uint8), np.zeros(5, np.int64))
    return Dataset("made", split, split, split, tuple("abcdefgh"[:classes]), "none")


def resolved(tables, data=DIGITS):
    return resolve(merge(tables), data)


def as_tables(key, value):
    table, _, name = key.partition(".")
    return {table: {name: value}}


# -------------------------------------------------------------------------------------- where values come from


def test_an_empty_config_is_a_small_model_for_the_digits_with_every_default():
    mean, std = DIGITS.statistics()
    model = ViTConfig(8, 4, channels=1, num_classes=10, dim=64, depth=3, num_heads=4, mlp_ratio=2.0)
    assert resolved({}) == Config(model, DataConfig(mean=mean, std=std), TrainingConfig())


@pytest.mark.parametrize(("height", "width", "size"), [(8, 12, (8, 12)), (12, 12, 12)])
def test_the_data_fill_in_image_size_channels_classes_and_normalisation(height, width, size):
    data = dataset(3, height, width, 4)
    config = resolved({}, data)
    assert (config.model.image_size, config.model.channels, config.model.num_classes) == (size, 3, 4)
    assert (config.data.mean, config.data.std) == data.statistics()


def test_what_is_given_wins_over_the_data_and_the_defaults():
    data = {"mean": [0.5], "std": [1]}
    config = resolved({"model": {"dim": 32, "num_classes": 12}, "data": data, "training": {"lr": 1}})
    assert (config.model.dim, config.model.num_classes, config.model.depth) == (32, 12, 3)
    assert (config.data.mean, config.data.std, config.training.lr) == ((0.5,), (1.0,), 1.0)
    assert all(type(value) is float for value in (*config.data.std, config.training.lr))


def test_a_later_source_wins_key_by_key():
    merged = merge({"training": {"lr": 1.0, "seed": 1}}, {"training": {"seed": 2}, "model": {"dim": 8}}, {"data": {}})
    assert merged == {"model": {"dim": 8}, "data": {}, "training": {"lr": 1.0, "seed": 2}}


def test_merging_changes_none_of_its_sources():
    first, second = {"data": {"mean": [1]}}, {"data": {"batch_size": 3}}
    merge(first, second)
    assert (first, second) == ({"data": {"mean": [1]}}, {"data": {"batch_size": 3}})


# --------------------------------------------------------------------------------------------------- assignments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        (" 2 ", 2),
        ("true", True),
        ("[8, 12]", [8, 12]),
        ('"mean"', "mean"),
        ("mean", "mean"),
        ("  mean ", "mean"),
        ("a=b", "a=b"),
        ("cells/small.npz", "cells/small.npz"),
        (r"C:\cells.npz", r"C:\cells.npz"),
        ("", ""),
    ],
    ids=ids,
)
def test_an_assigned_value_is_toml_or_else_a_bare_word(text, value):
    parsed = parse_assignments([f"data.name={text}"])
    assert parsed == {"data": {"name": value}}
    assert type(parsed["data"]["name"]) is type(value)


def test_assignments_gather_by_table_and_the_last_one_wins():
    given = ["training.lr=1", "model.dim=8", " training.seed = 3", "training.lr=2"]
    assert parse_assignments(given) == {"training": {"lr": 2, "seed": 3}, "model": {"dim": 8}}


@pytest.mark.parametrize("text", ["", "training", "training.lr", "=1", "training.=1", "lr=1", "training.lr:1"])
def test_an_assignment_of_another_form_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"--set .* is not of the form table\.key=value, for instance"):
        parse_assignments([text])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_no_assigned_text_is_anything_but_a_value_or_a_config_error(text):
    try:
        tables = merge(parse_assignments([f"data.name={text}"]))
    except ConfigError:
        return
    assert isinstance(tables["data"]["name"], str)


# --------------------------------------------------------------------------------------------- what does not exist


@pytest.mark.parametrize("misspell", [lambda k: k + k[-1], lambda k: k[:-1], lambda k: k.upper()[0] + k[1:]])
@pytest.mark.parametrize(("table", "key"), [(t, k) for t, k in DEFAULTS if len(k) > 3])
def test_a_misspelt_key_is_refused_and_the_nearest_right_one_named(table, key, misspell):
    with pytest.raises(ConfigError, match=rf"unknown key in \[{table}\] '{misspell(key)}': did you mean '{key}'\?"):
        merge({table: {misspell(key): DEFAULTS[table, key]}})


@pytest.mark.parametrize("table", TABLES)
def test_a_misspelt_table_is_refused_and_the_nearest_right_one_named(table):
    with pytest.raises(ConfigError, match=rf"unknown config table '{table}s': did you mean '{table}'\?"):
        merge({f"{table}s": {}})


def test_a_name_like_no_other_gets_the_list_of_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown config table 'zzz'; the known names are data, model, training"):
        merge({"zzz": {}})
    with pytest.raises(ConfigError, match=r"unknown key in \[data\] 'zzz'; the known names are augment, batch_size, "):
        merge({"data": {"zzz": 1}})


WRONG = {
    int: ["8", 8.5, 8.0, True, [8]],
    float: ["x", True, [0.1], {}],
    str: [5, True, 1.5, ["x"]],
    bool: [1, 0.0, "yes"],
    tuple: ["x", 0.5, ["x"], [[0.5]], [True]],
}
WRONG_VALUES = [(t, k, v) for (t, k), default in DEFAULTS.items() for v in WRONG[type(default)]]
RIGHT_TYPE = [("model", "image_size", [8]), ("data", "augment", "x"), ("data", "augment", ["x"])]  # refused later
WRONG_VALUES = [w for w in WRONG_VALUES if w not in RIGHT_TYPE]
WRONG_VALUES += [("model", "image_size", value) for value in (["8", 8], [8.5, 8], [True, 8], {})]


@pytest.mark.parametrize(("table", "key", "value"), WRONG_VALUES, ids=ids)
def test_a_value_of_another_type_is_refused_by_name(table, key, value):
    with pytest.raises(ConfigError, match=rf"{table}\.{key} must be .*not "):
        merge({table: {key: value}})


@pytest.mark.parametrize("key", ["training.lr", "training.epochs", "data.mean"])
def test_a_whole_number_of_any_size_is_a_value_or_a_config_error(key):
    with contextlib.suppress(ConfigError):
        merge(as_tables(key, [10**400] if key == "data.mean" else 10**400))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("value", [5, "text", [1], None])
def test_a_value_in_the_place_of_a_table_is_refused(table, value):
    with pytest.raises(ConfigError, match=f"config '{table}' must be a table of keys"):
        merge({table: value})


# ------------------------------------------------------------------------------------------------- out of range

BELOW = st.floats(max_value=0, exclude_max=True, allow_infinity=False)
NOT_A_SHARE = BELOW | st.floats(min_value=1, allow_infinity=False)
NO_WORD = st.text("abc", max_size=3)
OUT_OF_RANGE = {
    **dict.fromkeys(("training.epochs", "training.checkpoint_epochs", "data.batch_size"), st.integers(max_value=0)),
    **dict.fromkeys(("training.seed", "training.warmup_epochs", "training.shards"), st.integers(max_value=-1)),
    **dict.fromkeys(("training.lr", "training.weight_decay", "training.momentum", "training.clip_norm"), BELOW),
    **dict.fromkeys(("training.label_smoothing", "training.ema"), NOT_A_SHARE),
    "training.layer_decay": st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True),
    "training.freeze": st.integers(max_value=-2) | st.integers(min_value=4),
    **dict.fromkeys(("model.dropout", "model.attention_dropout", "model.drop_path"), NOT_A_SHARE),
    **dict.fromkeys(("training.optimizer", "training.schedule", "data.augment"), NO_WORD),
    **dict.fromkeys(("model.activation", "model.pool", "model.position"), NO_WORD),
    **dict.fromkeys(("model.patch_size", "model.channels"), st.integers(max_value=0)),
    "model.num_classes": st.integers(max_value=-1),
    **dict.fromkeys(("model.dim", "model.num_heads", "model.image_size"), st.integers(max_value=0)),
    **dict.fromkeys(("model.depth", "model.register_tokens"), st.integers(max_value=-1)),
    "model.mlp_ratio": st.floats(max_value=1 / 128, allow_infinity=False),
    "model.eps": st.floats(max_value=0, allow_infinity=False),
}


@given(st.sampled_from(sorted(OUT_OF_RANGE)).flatmap(lambda key: st.tuples(st.just(key), OUT_OF_RANGE[key])))
def test_a_value_out_of_range_is_refused_by_name(pair):
    key, value = pair
    with pytest.raises(ConfigError, match=key.partition(".")[2]):
        resolved(as_tables(key, value))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=ids)
@pytest.mark.parametrize("key", [f"{t}.{k}" for (t, k), default in DEFAULTS.items() if type(default) is float])
def test_a_number_that_is_not_finite_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key.partition(".")[2]):
        resolved(as_tables(key, value))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"patch_size": 3}}, "image_size 8×8 is not a multiple of patch_size 3"),
        ({"model": {"num_heads": 5}}, "num_heads 5 does not divide dim 64"),
        ({"model": {"image_size": [8]}}, "image_size"),
        ({"model": {"image_size": [8, 8, 8]}}, "image_size"),
        ({"model": {"dim": 6, "num_heads": 2, "position": "sincos"}}, "multiple of 4"),
        ({"model": {"class_token": False}}, "pool 'cls' needs class_token"),
        ({"training": {"epochs": 5, "warmup_epochs": 5}}, "warmup_epochs 5 leaves nothing of training.epochs 5"),
        ({"training": {"optimizer": "adamww"}}, "unknown optimizer 'adamww': did you mean 'adamw'"),
        ({"training": {"schedule": "cosin"}}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"data": {"augment": "afine"}}, "data.augment: unknown augmentation 'afine': did you mean 'affine'"),
        ({"data": {"augment": "crop(40)"}}, "data.augment: a crop of images of 8 × 8 needs a padding below 8, not 40"),
    ],
    ids=ids,
)
def test_values_that_do_not_go_together_are_refused(tables, message):
    with pytest.raises(ConfigError, match=message):
        resolved(tables)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ({"channels": 3}, "3×8×12 .* in 4 classes"),
        ({"image_size": 8}, "2×8×8 .* in 4 classes"),
        ({"image_size": [12, 8]}, "2×12×8 .* in 4 classes"),
        ({"num_classes": 3}, "2×8×12 .* in 3 classes"),
    ],
    ids=ids,
)
def test_a_model_that_contradicts_the_data_is_refused_with_both_shapes(model, given):
    message = rf"the model is for images of {given}, but the data 'digits' has 2×8×12 in 4: name yours with --data"
    with pytest.raises(ConfigError, match=message):
        resolved({"model": model}, dataset(2))


# ------------------------------------------------------------------------------------------------------ the file

SHARES = st.floats(0, 1, exclude_max=True)
SIZES = st.floats(0, 10)


@st.composite
def tables(draw):
    heads = draw(st.integers(1, 4))
    class_token = draw(st.booleans())
    epochs = draw(st.integers(2, 200))

    def some(**strategies):
        return {k: draw(s) for k, s in strategies.items() if draw(st.booleans())}

    return {
        "model": {
            "num_heads": heads,
            "dim": 4 * heads * draw(st.integers(1, 4)),
            "class_token": class_token,
            "pool": draw(st.sampled_from(["cls", "mean"])) if class_token else "mean",
            **some(
                image_size=st.sampled_from([8, [8, 8]]),
                patch_size=st.sampled_from([1, 2, 4, 8]),
                num_classes=st.integers(10, 99),
                depth=st.integers(0, 3),
                mlp_ratio=st.floats(1, 8),
                position=st.sampled_from(["learned", "sincos"]),
                qkv_bias=st.booleans(),
                dropout=SHARES,
                layer_scale=SIZES,
                eps=st.floats(1e-12, 1),
            ),
        },
        "data": some(
            batch_size=st.integers(1, 999),
            augment=st.sampled_from(["none", "affine", "crop(2), flip", ["erasing(0.1)", "mixup(p=0.5)"], []]),
            mean=st.lists(st.floats(-1, 2), min_size=1, max_size=1),
            std=st.lists(st.integers(1, 3), min_size=1, max_size=1),
        ),
        "training": {
            "epochs": epochs,
            "warmup_epochs": draw(st.integers(0, epochs // 2)),
            **some(lr=SIZES, weight_decay=SIZES, ema=SHARES, label_smoothing=SHARES, seed=st.integers(0, 2**63 - 1)),
            **some(layer_decay=st.floats(0, 1, exclude_min=True)),
        },
    }


@given(tables())
def test_a_config_comes_back_from_its_toml_and_from_json_the_same(tmp_path_factory, tables):
    config = resolved(tables)
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert resolve(merge(read_toml(path)), DIGITS) == config
    assert resolve(merge(json.loads(json.dumps(config.to_dict()))), DIGITS) == config


def test_a_resolved_config_leaves_nothing_for_other_data_to_fill_in():
    config = resolved({}, dataset())
    assert resolve(merge(config.to_dict()), dataset()).to_toml() == config.to_toml()
    with pytest.raises(ConfigError, match="the model is for images of 3×8×12"):
        resolve(merge(config.to_dict()), DIGITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read the config .*c\.toml: No such file"),
        (b"lr: 0.1", r"c\.toml is not a TOML file: .*line 1"),
        (b"[training]\nlr = 1\nlr = 2", r"c\.toml is not a TOML file"),
        (b"\xff\xfe", r"c\.toml is not a TOML file"),
    ],
    ids=["missing", "yaml", "a key twice", "not text"],
)
def test_a_file_that_is_missing_or_no_toml_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_toml(path)


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the config"):
        read_toml(tmp_path)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (5, 0), (30, 3), (100, 10), (1000, 10)])
def test_a_run_of_any_length_warms_up_for_a_tenth_of_it_at_most(epochs, warmup):
    assert resolved({"training": {"epochs": epochs}}).training.warmup_epochs == warmup
    assert resolved({"training": {"epochs": epochs, "warmup_epochs": 0}}).training.warmup_epochs == 0


def test_a_file_is_named_by_its_whole_path_and_a_dataset_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved({"data": {"name": "some/cells.npz"}}).data.name == str(tmp_path / "some" / "cells.npz")
    assert resolved({"data": {"name": "digits"}}).data.name == "digits"


def test_an_empty_mean_is_that_of_the_training_images():
    assert resolved({"data": {"mean": [], "std": []}}) == resolved({})


# ------------------------------------------------------------------------------------------------- how data are read


def test_the_tables_say_how_their_data_are_read(tmp_path):
    given = {"validation": 0.25, "test": 0.0, "split_seed": 3, "crop_ratio": 0.9, "interpolation": "bicubic"}
    tables = merge({"model": {"image_size": [20, 30], "channels": 1}, "data": {**given, "on_bad_image": "skip"}})
    wanted = reading(tables, offline=True)
    assert (wanted.size, wanted.channels, wanted.on_bad_image, wanted.offline) == ((20, 30), 1, "skip", True)
    assert {name: getattr(wanted, name) for name in given} == given
    assert reading(merge()) == Reading()
    assert reading(merge({"model": {"channels": 4}})).channels == 4  # of an .npz: no pictures, and no reason to refuse


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": 0.5, "test": 0.5}, "leave no training images"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"crop_ratio": 0.0}, "crop_ratio is 0"),
        ({"interpolation": "bilinar"}, "did you mean 'bilinear'"),
        ({"on_bad_image": "ignore"}, "unknown on_bad_image 'ignore'"),
    ],
)
def test_a_way_of_reading_that_there_is_not_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        reading(merge({"data": values}))


# ---------------------------------------------------------------------------------------------------- friendly words


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.learning_rate", "training.lr"),
        ("training.batch_size", "data.batch_size"),
        ("model.lr", "training.lr"),
        ("data.width", "model.dim"),
        ("model.heads", "model.num_heads"),
    ],
)
def test_a_key_by_another_word_or_in_another_table_is_told_where_it_is(key, meant):
    table, _, name = key.partition(".")
    with pytest.raises(ConfigError, match=rf"unknown key in \[{table}\] '{name}': did you mean {meant}\?"):
        merge({table: {name: 1}})


def test_every_other_word_leads_to_a_key():
    keys = {key for _, key in DEFAULTS}
    assert not set(config_module._ALSO_CALLED).intersection(keys)
    assert set(config_module._ALSO_CALLED.values()) <= keys | {"image_size"}


@pytest.mark.parametrize(("size", "patch"), [(8, 4), (28, 4), (32, 4), (64, 8), (96, 8), (224, 16), (512, 32)])
def test_a_patch_size_that_nobody_names_leaves_few_tokens(size, patch):
    images = Split(np.zeros((1, 3, size, size), np.uint8), np.zeros(1, np.int64))
    resolved_for = resolve(merge(), Dataset("some", images, images, images, ("a",), ""))
    assert resolved_for.model.patch_size == patch
    assert resolved_for.model.num_patches <= 256


@given(epochs=st.integers(1, 50), warmup=st.integers(0, 60))
def test_other_epochs_keep_a_warmup_that_fits_and_shorten_one_that_does_not(epochs, warmup):
    tables = for_epochs(merge({"training": {"epochs": 100, "warmup_epochs": warmup}}), epochs)
    resolved(tables)
    assert tables["training"]["warmup_epochs"] == (warmup if warmup < epochs else epochs // 10)
