"""Checkpoints: to the last bit, whole or not there, and one clear error for everything else."""

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from tinyvit.training.checkpoint import (
    FORMAT,
    CheckpointError,
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
    save_model,
)

DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
ARRAYS = {"blocks.0.attn.qkv.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.array(7)}
META = {"epoch": 3, "config": {"lr": 1e-3, "name": "vit_tiny ✓"}, "rng": 2**127 + 1, "best": None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "step-00000007.safetensors"


@pytest.fixture
def content(path):
    """The bytes of a good checkpoint at `path`."""
    save_checkpoint(path, ARRAYS, META)
    return path.read_bytes()


def assert_identical(left, right):
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.shape == right[name].shape
        assert array.tobytes() == right[name].tobytes()  # NaNs and signed zeros too


# ------------------------------------------------------------------------------------------------ round trips


@settings(max_examples=60)
@given(data=st.data())
def test_every_array_comes_back_to_the_last_bit(tmp_path_factory, data):
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    array = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(np.dtype(d), shapes))
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    arrays = data.draw(st.dictionaries(names, array, max_size=4))
    path = tmp_path_factory.getbasetemp() / "hypothesis.safetensors"
    save_checkpoint(path, arrays, {})
    loaded, meta = load_checkpoint(path)
    assert_identical(loaded, arrays)
    assert meta == {}


BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "array",
    [
        BASE.T,
        BASE[::2, ::-3],
        BASE[:, 1],
        np.broadcast_to(BASE[0], (3, 6)),
        np.asfortranarray(BASE),
        BASE.astype(">f4"),
        BASE.astype(">f4").T,
    ],
    ids=["transposed", "strided", "column", "broadcast", "fortran", "big-endian", "big-endian transposed"],
)
def test_arrays_of_any_layout_keep_their_values(path, array):
    save_checkpoint(path, {"a": array}, {})
    loaded = load_checkpoint(path)[0]["a"]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == np.float32


def test_scalars_settings_and_overwriting(path, content):
    arrays, meta = load_checkpoint(path)
    assert_identical(arrays, ARRAYS)
    assert meta == META
    arrays["step"] += 1  # writable
    save_checkpoint(str(path), {"step": np.float64(2.5)}, {"pair": (1, 2)})
    arrays, meta = load_checkpoint(str(path))
    assert arrays["step"].shape == ()
    assert arrays["step"] == 2.5
    assert meta == {"pair": [1, 2]}
    assert os.listdir(path.parent) == [path.name]


def test_others_can_read_the_file(path, content):
    assert_identical(load_file(path), ARRAYS)


def test_a_model_is_saved_in_the_same_form_and_its_folder_is_made(tmp_path):
    path = tmp_path / "runs" / "one" / "model.safetensors"
    save_model(path, ARRAYS, META)
    assert load_checkpoint(path)[1] == META


@pytest.mark.parametrize(
    ("arrays", "meta", "error", "message"),
    [
        ({"a": [1.0, 2.0]}, {}, TypeError, "'a' is a list"),
        ({"a": np.zeros(2, complex)}, {}, TypeError, "'a' has dtype complex128"),
        ({"a": np.array([None])}, {}, TypeError, "'a' has dtype object"),
        ({"a": np.array(["word"])}, {}, TypeError, "'a' has dtype"),
        ({"__metadata__": np.zeros(2)}, {}, ValueError, "cannot be named"),
        ({}, {"a": np.zeros(2)}, TypeError, "not JSON serializable"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_the_old_file_stays(path, content, arrays, meta, error, message):
    with pytest.raises(error, match=message):
        save_checkpoint(path, arrays, meta)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


# -------------------------------------------------------------------------------------------------- atomicity


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(monkeypatch, path, content, at, error):
    def fail(*arguments):
        assert len(os.listdir(path.parent)) == 2  # the old one and the one being written
        raise error

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"other": np.zeros(1000)}, {})
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(path, content):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as near to a full disk as a test can get
    try:
        with pytest.raises(OSError, match=f"File too large.*{re.escape(str(path))}"):
            save_checkpoint(path, {"other": np.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_the_bytes_reach_the_disk_before_the_name_does(monkeypatch, path):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_checkpoint(path, ARRAYS, META)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_that_cannot_be_synced_is_no_failure(monkeypatch, path):
    fsync, calls = os.fsync, []

    def files_only(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError("Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    save_checkpoint(path, ARRAYS, META)
    assert load_checkpoint(path)[1] == META


def test_a_checkpoint_is_as_readable_as_any_new_file(path, content):
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


# ---------------------------------------------------------------------------------------------- damaged files


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist"):
        load_checkpoint(tmp_path / "nowhere.safetensors")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_a_file_cut_short_anywhere(path, content):
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} is damaged or cut short"):
            load_checkpoint(path)
        assert latest_checkpoint(path.parent) is None


@given(noise=st.binary(max_size=200))
def test_random_bytes(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(noise)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_changed_byte_anywhere(path, content):
    """An error, or, in the blanks that pad the header, no change at all; never another array."""
    rng = np.random.default_rng(0)
    survivors = 0
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            arrays, meta = load_checkpoint(path)
        except CheckpointError:
            continue
        survivors += 1
        assert_identical(arrays, ARRAYS)
        assert meta == META
    assert survivors < 8


@given(position=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=64))
def test_overwritten_stretches(tmp_path_factory, position, noise):
    path = tmp_path_factory.getbasetemp() / "stretch.safetensors"
    save_checkpoint(path, ARRAYS, META)
    content = bytearray(path.read_bytes())
    position %= len(content)
    content[position : position + len(noise)] = noise
    path.write_bytes(content)
    try:
        arrays, meta = load_checkpoint(path)
    except CheckpointError:
        return
    assert_identical(arrays, ARRAYS)
    assert meta == META


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip file, such as torch.save writes", "is not a safetensors file"),
        (header({}), "not one of tinyvit's"),
        (header({"__metadata__": {"tinyvit": "{"}}), "damaged"),
        (header({"__metadata__": {"tinyvit": "[]"}}), "damaged"),
        (header({"__metadata__": {"tinyvit": "{}"}}), "damaged"),
        (header({"__metadata__": {"tinyvit": '{"format": "one"}'}}), "damaged"),
        (header({"__metadata__": {"tinyvit": '{"format": 1}'}}), "damaged"),
        (header({"__metadata__": {"tinyvit": f'{{"format": {FORMAT + 1}}}'}}), "newer tinyvit .* upgrade"),
        (
            header(
                {
                    "__metadata__": {"tinyvit": '{"format": 1, "meta": {}}'},
                    "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
                },
                b"12",
            ),
            "damaged",  # a dtype that NumPy lacks, and so one that we never wrote
        ),
    ],
)
def test_other_files(path, content, message):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s){re.escape(str(path))}.*{message}"):
        load_checkpoint(path)


def test_another_programs_weights(path):
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="from_pretrained"):
        load_checkpoint(path)


# ------------------------------------------------------------------------------------------- latest and prune


def save_steps(folder, *steps):
    for step in steps:
        save_checkpoint(checkpoint_path(folder, step), {"a": np.zeros(3)}, {"step": step})


def test_the_latest_is_the_complete_one_of_the_highest_step(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None
    save_steps(tmp_path, 20, 3, 123_456_789)
    assert latest_checkpoint(tmp_path).name == "step-123456789.safetensors"
    newest = latest_checkpoint(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-1])
    (tmp_path / "step-99999999.safetensors").mkdir()
    (tmp_path / "step-best.safetensors").write_bytes(b"")
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 20)


def test_prune_keeps_the_newest_complete_ones_and_what_is_newer(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, 5)
    checkpoint_path(tmp_path, 2).write_bytes(b"cut")
    checkpoint_path(tmp_path, 5).write_bytes(b"cut")
    (tmp_path / ".step-00000006.safetensors.123.tmp").write_bytes(b"left by a killed writer")
    (tmp_path / "config.toml").write_bytes(b"")
    checkpoint_path(tmp_path, 0).mkdir()
    prune(tmp_path, keep=5)
    assert len(os.listdir(tmp_path)) == 7
    prune(tmp_path, keep=2)
    left = {checkpoint_path(tmp_path, step).name for step in (0, 3, 4, 5)} | {"config.toml"}
    assert set(os.listdir(tmp_path)) == left
    with pytest.raises(ValueError, match="keep"):
        prune(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step"):
        checkpoint_path(tmp_path, -1)
