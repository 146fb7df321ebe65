"""Files of weights: sound ones against other libraries, hostile ones against one sentence."""

import argparse
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    Torch,
    arrays,
    evil,
    safetensors_bytes,
    safetensors_parts,
    save_all,
    save_torch,
    upper_halves,
)

from tinyvit.pretrained import Weights, WeightsError, nonfinite, open_weights, read_settings

KINDS = {"safetensors": "safetensors", "npz": "npz", "packed.npz": "npz", "pth": "pytorch"}


def check(weights, expected):
    assert set(weights) == set(expected)
    for name, array in expected.items():
        ours = weights[name]
        assert (weights.shape(name), weights.dtype(name)) == (array.shape, array.dtype.name)
        assert ours.dtype == array.dtype
        assert np.array_equal(ours, array, equal_nan=array.dtype.kind == "f")
        assert ours.flags.writeable
        assert ours.flags.c_contiguous
        assert ours.flags.aligned
        assert ours.flags.owndata or ours.base.flags.owndata


def refused(path, reason, read=False):
    """The one sentence with which a file is refused, when it is opened or when it is read."""
    with pytest.raises(WeightsError, match=reason) as caught:
        dict(open_weights(path)) if read else open_weights(path)
    message = str(caught.value)
    assert str(path.name) in message
    assert "\n" not in message
    assert len(message) < 700 + len(str(path))


def written(path, content):
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------------------- sound files


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(tmp_path, kind):
    weights = open_weights(str(save_all(tmp_path)[kind]))
    assert isinstance(weights, Weights)
    assert weights.container == KINDS[kind]
    check(weights, arrays())
    check(weights, arrays())  # and again
    with pytest.raises(KeyError):
        weights["nothing"]
    assert "nothing" not in weights
    assert f"{len(weights)} arrays" in repr(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_known_by_its_contents(tmp_path, kind):
    check(open_weights(save_all(tmp_path)[kind].rename(tmp_path / "weights.bin")), arrays())


def test_safetensors_as_its_library_writes_it(tmp_path):
    file = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(arrays(), file, {"format": "pt"})
    weights = open_weights(file)
    check(weights, arrays())
    assert weights.metadata == {"format": "pt"}


def test_bfloat16_becomes_float32_to_the_last_bit(tmp_path):
    every = np.arange(2**16, dtype=np.uint16)  # infinities and NaN too
    exact = (every.astype(np.uint32) << 16).view(np.float32).reshape(256, 256)
    header = {"w": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 2**17]}}
    np.savez(tmp_path / "w.npz", w=every.reshape(256, 256).view("V2"))
    torch = Torch()
    torch.save(
        tmp_path / "w.pth",
        torch.dict({"w": torch.tensor(torch.storage("bfloat16", every.tobytes()), 0, (256, 256), (256, 1))}),
    )
    written(tmp_path / "w.safetensors", safetensors_bytes(header, every.tobytes()))
    for suffix in ("npz", "pth", "safetensors"):
        weights = open_weights(tmp_path / f"w.{suffix}")
        assert weights.dtype("w") == "bfloat16"
        assert weights["w"].dtype == np.float32
        assert np.array_equal(weights["w"].view(np.uint32), exact.view(np.uint32))
        assert nonfinite(weights) == {"w": int(2**16 - np.isfinite(exact).sum())}
    assert np.array_equal(upper_halves(exact), every.reshape(256, 256))


def test_npz_in_any_order_of_bytes_and_axes(tmp_path):
    w = np.random.default_rng(0).standard_normal((3, 4, 5))
    np.savez(tmp_path / "w.npz", **{"a/big": w.astype(">f4"), "b/fortran": np.asfortranarray(w), "c": w[::2, ::-1]})
    weights = open_weights(tmp_path / "w.npz")
    check(weights, {"a/big": w.astype(np.float32), "b/fortran": w, "c": w[::2, ::-1]})


def test_pytorch_views_parameters_and_what_lies_around_tensors(tmp_path):
    w = np.arange(24, dtype=np.float32).reshape(4, 6)
    torch = Torch()
    whole = torch.storage("float32", w.tobytes())
    torch.storages.pop()
    view = torch.tensor(torch.storage("float32", w.tobytes()), 7, (2, 3), (1, 6))  # w[1:, 1:][:3, :2].T
    parameter = (
        b"ctorch._utils\n_rebuild_parameter\n("
        + torch.tensor(whole, 0, (4, 6), (6, 1))
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    content = {
        "model": torch.dict({"view": view, "parameter": parameter}),
        "epoch": b"K\x03",
        "optimizer": b"}(" + torch.text("groups") + b"](K\x05Neu",
    }
    torch.save(tmp_path / "w.pth", torch.dict(content))
    weights = open_weights(tmp_path / "w.pth")
    check(weights, {"model/view": w[1:, 1:][:3, :2].T, "model/parameter": w})
    assert weights.metadata == {"epoch": 3, "optimizer/groups/0": 5, "optimizer/groups/1": None}


def test_pytorch_of_a_big_endian_machine_and_packed_anew(tmp_path):
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    torch = Torch()
    tensor = torch.tensor(torch.storage("float32", w.astype(">f4").tobytes()), 0, (2, 3), (3, 1))
    torch.save(tmp_path / "w.pth", torch.dict({"w": tensor}), order=b"big", pack=zipfile.ZIP_DEFLATED, root="other")
    check(open_weights(tmp_path / "w.pth"), {"w": w})


def test_pytorch_as_it_writes_itself(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "plain": base,
        "transposed": base.T,
        "view": base[1:3, ::2],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "bool": base > 3,
        "byte": torch.arange(5, dtype=torch.uint8),
    }
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    everything = {"state": state, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    try:
        for crc in (True, False):
            torch.serialization.set_crc32_options(crc)
            torch.save(everything, tmp_path / "w.pth")
            weights = open_weights(tmp_path / "w.pth")
            for name, tensor in {**state, **model.state_dict()}.items():
                place = f"{'state' if name in state else 'model'}/{name}"
                assert weights.dtype(place) == str(tensor.dtype).removeprefix("torch.")
                exact = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
                assert np.array_equal(weights[place], exact.numpy())
            assert weights["optimizer/state/0/exp_avg"].shape == (4, 3)
            assert (weights.metadata["epoch"], weights.metadata["optimizer/param_groups/0/lr"]) == (3, 1e-3)
    finally:
        torch.serialization.set_crc32_options(True)


def test_the_files_of_these_tests_are_pytorchs_too(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = torch.load(save_torch(tmp_path / "w.pth", arrays()), weights_only=True)
    assert theirs.keys() == arrays().keys()
    assert all(np.array_equal(theirs[name].numpy(), array) for name, array in arrays().items())


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """A damaged array in a packed file is found when it is read; the others come."""
    np.savez_compressed(tmp_path / "w.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "w.npz") as archive:
        at = archive.getinfo("blocks.0.attn.qkv.weight.npy").header_offset
    content = bytearray((tmp_path / "w.npz").read_bytes())
    content[at + 500] ^= 1
    weights = open_weights(written(tmp_path / "w.npz", content))
    assert np.array_equal(weights["double"], arrays()["double"])
    with pytest.raises(WeightsError, match=r"w\.npz: 'blocks\.0\.attn\.qkv\.weight' cannot be read: .* damaged"):
        weights["blocks.0.attn.qkv.weight"]


@pytest.mark.parametrize("kind", ["npz", "pth"])
def test_a_flipped_bit_of_a_number_is_found(tmp_path, kind):
    file = save_all(tmp_path)[kind]
    content = bytearray(file.read_bytes())
    content[bytes(content).index(arrays()["double"].tobytes()) + 3] ^= 8
    refused(written(file, content), "checksum of .* does not match", read=True)


# ------------------------------------------------------------------------------------------------- folders and shards


def save_shards(folder, weight_map=None):
    parts = {}
    for k, names in enumerate(
        (["cls_token", "steps"], [name for name in arrays() if name not in ("cls_token", "steps")])
    ):
        file = f"model-{k + 1:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: arrays()[name] for name in names}, folder / file)
        parts |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": parts if weight_map is None else weight_map(parts)})
    )
    return index


def test_shards_by_index_and_by_folder(tmp_path):
    index = save_shards(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 224}')
    for weights in (open_weights(index), open_weights(tmp_path)):
        check(weights, arrays())
        assert weights.metadata == {"total_size": 1}
        assert weights.container == "safetensors"
    assert weights.settings == {"config.json": {"model_type": "vit", "image_size": 224}}
    assert weights.path == tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "a\\b.safetensors",
        "C:x.safetensors",
        "x.bin",
    ]
    + ["\0.safetensors", ".hidden.safetensors", "a\n.safetensors", "~.safetensors", 5, None, ["x"]],
)
def test_an_index_names_plain_files_only(tmp_path, name):
    (tmp_path / "in").mkdir()
    safetensors.numpy.save_file(arrays(), tmp_path / "secret.safetensors")
    refused(
        save_shards(tmp_path / "in", lambda parts: {**parts, "cls_token": name}), "plain name of a safetensors file"
    )


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        (lambda parts: {**parts, "more": parts["steps"]}, "disagree about which arrays"),
        (lambda parts: {k: v for k, v in parts.items() if k != "steps"}, "disagree about which arrays"),
        (lambda parts: [], "must hold a weight_map"),
        (lambda parts: dict.fromkeys(parts, "gone.safetensors"), "gone.safetensors .*does not exist"),
        (lambda parts: {str(k): f"{k}.safetensors" for k in range(1001)}, "names 1,001 files"),
    ],
)
def test_an_index_and_its_shards_agree(tmp_path, weight_map, reason):
    index = save_shards(tmp_path, weight_map)
    with pytest.raises(WeightsError, match=reason):
        open_weights(index)


def test_what_a_folder_gives_first(tmp_path):
    def one(name):
        return {"w": np.array([len(name)], np.float32)}

    for name in ("other.npz", "pytorch_model.bin", "open_clip_model.safetensors", "model.safetensors"):
        if name.endswith("npz"):
            np.savez(tmp_path / name, **one(name))
        elif name.endswith("bin"):
            save_torch(tmp_path / name, one(name))
        else:
            safetensors.numpy.save_file(one(name), tmp_path / name)
        assert open_weights(tmp_path)["w"] == len(name)
    for name in ("pytorch_model.bin", "open_clip_model.safetensors", "model.safetensors"):
        (tmp_path / name).unlink()
    np.savez(tmp_path / "second.npz", **one("second.npz"))
    refused(tmp_path, "holds 'other.npz', 'second.npz'; name one of them")


def test_settings_are_parsed_and_nothing_else(tmp_path):
    for name in ("config.json", "preprocessor_config.json", "open_clip_config.json", "tokenizer.json"):
        (tmp_path / name).write_text(json.dumps({"from": name, "é": [1, 2.5, None]}))
    settings = read_settings(tmp_path)
    assert sorted(settings) == ["config.json", "open_clip_config.json", "preprocessor_config.json"]
    assert settings["config.json"] == {"from": "config.json", "é": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[1]", "JSON is a list"),
        (b'{"a": ' + b"[" * 10**6, "no sound JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no sound JSON"),
        (b'{"a": "\xff"}', "no sound JSON"),
        (b" " * (2**24 + 1), "more than 16,777,216 bytes"),
        (b"", "no sound JSON"),
    ],
)
def test_settings_that_are_unsound(tmp_path, text, reason):
    written(tmp_path / "config.json", text)
    with pytest.raises(WeightsError, match=f"config.json cannot be read: .*{reason}"):
        read_settings(tmp_path)


def test_folders_of_nothing(tmp_path):
    refused(tmp_path, "holds no weights; expected is one of model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "holds no weights")


# --------------------------------------------------------------------------------------------------- hostile: any file


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 100, "neither safetensors nor .npz"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "an HDF5 file"),
        (pickle.dumps({"a": 1}), "a bare pickle"),
        (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2),
            "before 1.6, as several pickles; .*torch.load",
        ),
        (b"PK\3\4", "incomplete zip file"),
        (b"PK\5\6" + b"\0" * 18, "neither"),
    ],
)
def test_other_files(tmp_path, content, reason):
    refused(written(tmp_path / "w.bin", content), reason)


def test_no_file_and_special_files(tmp_path):
    refused(tmp_path / "gone.npz", "does not exist")
    refused(tmp_path / "gone" / "model.safetensors.index.json", "cannot be read")
    with tarfile.open(tmp_path / "old.pth", "w") as tar:
        tar.add(written(tmp_path / "storages", b"x"), "storages")
    refused(tmp_path / "old.pth", "a tar archive")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        refused(tmp_path / "pipe.npz", "it is no file")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, kind):
    whole = save_all(tmp_path)[kind].read_bytes()
    cut = tmp_path / f"cut.{kind}"
    for size in [*range(0, 64, 7), *range(64, len(whole), 61), len(whole) - 1]:
        refused(written(cut, whole[:size]), "cut", read=True)


# ------------------------------------------------------------------------------------------------ hostile: safetensors


def place(dtype="F32", shape=(2,), begin=0, end=8, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({"a": place(), "b": place(begin=4, end=12)}, 12, "'b' begins at byte 4, .* ends at 8: they overlap"),
        ({"a": place(), "b": place()}, 8, "they overlap"),
        ({"a": place(), "b": place(begin=12, end=20)}, 20, "there is a hole"),
        ({"a": place(begin=4, end=12)}, 12, "there is a hole"),
        ({"a": place()}, 12, "end at byte 8 of 12"),
        ({"a": place()}, 7, "end at byte 8 of 7: it is cut short"),
        ({"a": place(end=12)}, 12, "'a' needs 8 bytes .* given 12"),
        ({"a": place(begin=8, end=0)}, 8, "is given -8"),
        ({"a": place(begin=-8, end=0)}, 8, "data_offsets of 'a' must be whole numbers from 0"),
        ({"a": place(begin=0.0)}, 8, "must be whole numbers"),
        ({"a": place(begin=False)}, 8, "must be whole numbers"),
        ({"a": {**place(), "data_offsets": [0, 4, 8]}}, 8, "must be a begin and an end"),
        ({"a": place(shape=(-2,))}, 8, "the shape of 'a' must be whole numbers from 0"),
        ({"a": place(shape=(2.0,))}, 8, "the shape of 'a' must be"),
        ({"a": {**place(), "shape": 2}}, 8, "the shape of 'a' must be"),
        ({"a": place(shape=(1,) * 33)}, 4, "at most 32"),
        ({"a": place(shape=(2**40, 2**40))}, 8, "is none that an array can have"),
        ({"a": place(shape=(2**40, 2**40, 0), end=0)}, 0, "is none that an array can have"),
        ({"a": place(shape=(10**4000,))}, 8, "the shape of 'a' must be"),
        ({"a": place(dtype="F8_E4M3", end=2)}, 2, "'a' has the dtype 'F8_E4M3'; convert it"),
        ({"a": place(dtype=["F32"])}, 8, "has the dtype"),
        ({"a": place(more=1)}, 8, "dtype, shape and data_offsets for 'a', and nothing else"),
        ({"a": 5}, 8, "dtype, shape and data_offsets"),
        ({"a": place(), "__metadata__": {"x": 1}}, 8, "metadata must be text"),
        ({"a": place(), "__metadata__": []}, 8, "metadata must be text"),
        ({"a\nb": place()}, 8, r"the name 'a\\nb' is not printable"),
        ({"\ud800": place()}, 8, "not printable"),
        ({"a" * 513: place()}, 8, "not printable text of at most 512"),
        ({}, 0, "holds no arrays"),
        (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 8, "'dtype' occurs twice"),
        (
            b'{"a": ' + json.dumps(place()).encode() + b', "a": ' + json.dumps(place()).encode() + b"}",
            8,
            "'a' occurs twice",
        ),
        (b"{" * 10**5, 0, "no sound JSON"),
        (b'{"a": ' * 10**5, 0, "no sound JSON"),
        (b"{}]", 0, "no sound JSON"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path, header, size, reason):
    refused(written(tmp_path / "w.safetensors", safetensors_bytes(header, bytes(size))), reason)


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (2**32, "header is said to have 4,294,967,296 bytes; more than 16,777,216 are not read"),
        (2**64 - 1, "more than 16,777,216"),
        (1000, "its header of 1,000 bytes ends after 50"),
        (0, "no sound JSON"),
    ],
)
def test_safetensors_headers_of_any_length(tmp_path, length, reason):
    refused(written(tmp_path / "w.safetensors", struct.pack("<Q", length) + b"{" + bytes(49)), reason)


def test_nan_is_read_and_reported(tmp_path):
    broken = {**arrays(), "cls_token": np.full((1, 1, 8), np.nan, np.float32)}
    broken["double"][1] = np.inf
    written(tmp_path / "w.safetensors", safetensors_bytes(*safetensors_parts(broken)))
    weights = open_weights(tmp_path / "w.safetensors")
    check(weights, broken)
    assert nonfinite(weights) == {"cls_token": 8, "double": 1}


# ---------------------------------------------------------------------------------------------------- hostile: archives


def npy(text, body=b"", version=b"\1\0"):
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def header(descr="'<f4'", fortran=False, shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        ("w.npy", npy(header(), bytes(7)), r"is float32 \(2,\) by its header, not by its size"),
        ("w.npy", npy(header(), bytes(9)), "not by its size"),
        ("w.npy", npy(header("'|O'"), bytes(8)), "holds object, where numbers are expected"),
        ("w.npy", npy(header("'<U2'"), bytes(8)), "holds str"),
        ("w.npy", npy(header("'<c8'"), bytes(16)), "holds complex64"),
        ("w.npy", npy(header("[('a', '<f4')]"), bytes(8)), "where numbers are expected"),
        ("w.npy", npy(header("'|V2'", shape="(2, 2)"), bytes(7)), "is bfloat16"),
        ("w.npy", npy(header(shape="(2**62, 4)")), "header of 'w.npy' cannot be read"),
        ("w.npy", npy(header(shape=f"({2**62}, 4)")), "the shape of 'w.npy' must be"),
        ("w.npy", npy(header(shape="(-2,)")), "the shape of 'w.npy' must be"),
        ("w.npy", npy(header(shape="(True, 2)"), bytes(8)), "the shape of 'w.npy' must be"),
        ("w.npy", npy(header(shape="(" * 5000)), "header of 'w.npy' cannot be read"),
        ("w.npy", npy(b"__import__('os').system('true')"), "header of 'w.npy' cannot be read"),
        ("w.npy", npy(header(), version=b"\3\0"), "version 3.0"),
        ("w.npy", b"\x93NUMPY", "cannot be read"),
        ("w.npy", pickle.dumps(print), "header of 'w.npy' cannot be read"),
        ("notes.txt", b"hello", "'notes.txt' is no array"),
        ("../../etc/x.npy", b"hello", "header of '../../etc/x.npy'"),  # never unpacked, so only a name
    ],
)
def test_npz_members_that_lie(tmp_path, member, content, reason):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr(member, content)
    refused(tmp_path / "w.npz", reason)


def test_npz_never_unpickles(tmp_path):
    ran = tmp_path / "ran"
    np.savez(tmp_path / "w.npz", w=np.array([Touch(ran)], object))
    refused(tmp_path / "w.npz", "holds object")
    assert not ran.exists()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_zip_bomb_is_refused_unopened(tmp_path):
    """What would be a thousand times as large is refused; what is new and zero passes."""
    np.savez_compressed(tmp_path / "w.npz", **{f"w{k}": np.zeros(2**22) for k in range(9)})
    refused(tmp_path / "w.npz", "would grow to 301,99.*as a zip bomb")
    np.savez_compressed(tmp_path / "zero.npz", w=np.zeros((2000, 1000)))
    assert not open_weights(tmp_path / "zero.npz")["w"].any()


def patched(file, signature, at, value):
    """A zip file with other bytes in the first of its records that begin with a signature."""
    content = bytearray(file.read_bytes())
    start = content.index(signature) + at
    content[start : start + len(value)] = value
    return written(file, content)


@pytest.mark.parametrize(
    ("signature", "at", "value", "reason"),
    [
        (b"PK\1\2", 24, struct.pack("<I", 900), "not by its size"),
        (b"PK\1\2", 24, struct.pack("<I", 2**32 - 2), "zip bomb"),
        (b"PK\1\2", 20, struct.pack("<I", 2**31), "within another member|past the end"),
        (b"PK\1\2", 42, struct.pack("<I", 2**31), "lies outside"),
        (b"PK\1\2", 42, struct.pack("<I", 3), "is not where"),
        (b"PK\1\2", 8, struct.pack("<H", 1), "is encrypted"),
        (b"PK\1\2", 10, struct.pack("<H", 12), "packed by method 12"),
        (b"PK\1\2", 16, b"abcd", "checksum"),
        (b"PK\5\6", 12, struct.pack("<I", 2**31), "zip"),
    ],
)
def test_zip_directories_that_lie(tmp_path, signature, at, value, reason):
    np.savez(tmp_path / "w.npz", a=np.arange(100), b=np.arange(3))
    refused(patched(tmp_path / "w.npz", signature, at, value), reason, read=True)


@pytest.mark.parametrize("pack", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_is_longer_than_said(tmp_path, pack):
    said = npy(header(shape="(100,)"), bytes(400))
    with zipfile.ZipFile(tmp_path / "w.npz", "w", pack) as archive:
        archive.writestr("a.npy", said + bytes(4000))
    refused(patched(tmp_path / "w.npz", b"PK\1\2", 24, struct.pack("<I", len(said))), "another size", read=True)


def test_members_of_one_name(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(3), b=np.ones(3))
    content = (tmp_path / "w.npz").read_bytes()
    refused(written(tmp_path / "w.npz", content.replace(b"b.npy", b"a.npy")), "two members of one name")


def test_members_of_the_same_bytes(tmp_path):
    np.savez(tmp_path / "w.npz", aa=np.arange(100), bb=np.arange(100))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = bytes(4)  # where the first begins
    refused(written(tmp_path / "w.npz", content), "within another member, as in a zip bomb")


def test_a_directory_that_would_fill_the_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for k in range(100):
            archive.writestr(f"{k:03}{'n' * 50_000}", b"")
    refused(tmp_path / "w.npz", "directory has more than 4,194,304 bytes")


# ----------------------------------------------------------------------------------------------------- hostile: PyTorch


@pytest.mark.parametrize(
    ("name", "function", "args"),
    [
        ("posix.system|nt.system", os.system, ("true",)),
        ("builtins.eval|__builtin__.eval", eval, ("1",)),
        ("builtins.getattr|__builtin__.getattr", getattr, (1, "real")),
        ("subprocess.run|commands.run", subprocess.run, (["true"],)),
        ("argparse.Namespace", argparse.Namespace, ()),
        ("pathlib.Path.touch|builtins.getattr|__builtin__.getattr", pathlib.Path.touch, ("x",)),
        ("numpy.dtype", np.dtype, ("f4",)),
    ],
)
def test_pytorch_runs_nothing_that_it_names(tmp_path, monkeypatch, name, function, args):
    monkeypatch.chdir(tmp_path)
    torch = Torch()
    content = torch.dict({"w": torch.array(np.ones(2)), "args": evil(function, *args)})
    refused(
        torch.save(tmp_path / "w.pth", content), rf"it names ({name}), which is not run here.*torch.save\(torch.load"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("name", ["code/__torch__.py", "constants.pkl"])
def test_torchscript_is_refused_with_advice(tmp_path, name):
    save_torch(tmp_path / "w.pt", arrays(), extra=[(name, b"")])
    refused(tmp_path / "w.pt", "TorchScript program, as OpenAI's .*safetensors")


def tensor(offset=0, shape=(2, 3), strides=(3, 1), numbers=6, **options):
    torch = Torch()
    raw = np.arange(numbers, dtype=np.float32).tobytes()
    return torch, torch.dict({"w": torch.tensor(torch.storage("float32", raw, **options), offset, shape, strides)})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"offset": 1}, "'w' reaches to number 6 of a storage of 6"),
        ({"offset": -1}, "offset and strides of 'w' must be whole numbers from 0"),
        ({"offset": 10**5000}, "offset and strides of 'w' must be .* huge"),
        ({"strides": (3, -1)}, "offset and strides"),
        ({"strides": (4, 1)}, "reaches to number 6"),
        ({"strides": (2**48, 1)}, "reaches to number"),
        ({"strides": (2**63, 1)}, "offset and strides"),
        ({"strides": (1,)}, r"has the shape \(2, 3\), but strides \[1\]"),
        ({"shape": (10**6, 10**6), "strides": (0, 0)}, "'w' repeats its storage"),
        ({"shape": (2**62, 4), "strides": (0, 0)}, "the shape of 'w' must be"),
        ({"shape": (1,) * 33, "strides": (0,) * 33}, "the shape of 'w'"),
        ({"shape": (7,), "strides": (0,)}, "repeats its storage"),
        ({"count": 7}, "storage '0' of float32 has 24 bytes"),
        ({"count": 5}, "storage '0' of float32 has 24 bytes"),
        ({"count": -1}, "storage '0'"),
        ({"key": "9"}, "storage '9' of torch.FloatStorage, which is not in the file"),
        ({"key": "../version"}, "not in the file"),
    ],
)
def test_pytorch_tensors_that_reach_too_far(tmp_path, options, reason):
    torch, content = tensor(**options)
    refused(torch.save(tmp_path / "w.pth", content), reason)


def test_many_tensors_of_one_storage_are_a_bomb_too(tmp_path):
    torch = Torch()
    one = torch.storage("float32", bytes(2**20))
    shared = {f"w{k}": torch.tensor(one, 0, (2**18,), (1,)) for k in range(400)}
    refused(torch.save(tmp_path / "w.pth", torch.dict(shared)), "would grow to 419,430,400, as a zip bomb")


def nested(depth):
    return b"}" + Torch().text("a") + (nested(depth - 1) if depth else b"N") + b"s"


LAUGHS = b"(](NNNNNNNNNNeq\0" + (b"](" + b"h\0" * 10 + b"eq\0") * 25 + b"t"  # each list ten times in the next


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"]", "holds a list, where a dict of tensors is expected"),
        (tensor()[1][:0] + b"N", "holds a nonetype"),
        (nested(40), "dicts within 32 dicts"),
        (b"}X\1\0\0\0a" + LAUGHS + b"s", "more than 200,000 parts, or dicts within 32"),
        (b"}q\0X\1\0\0\0ah\0s", "dicts within 32 dicts"),  # a dict within itself
        (b"}X\1\0\0\0actorch\nFloatStorage\ns", "'a' is no tensor, text or number"),
        (b"}X\1\0\0\0actorch\nFloatStorage\n)Rs", "calls a storage"),
        (b"}X\1\0\0\0accollections\nOrderedDict\n(]tRs", "no pickle, or a damaged one"),
        (b"}X\1\0\0\0aX\1\0\0\0bQs", "persistent id that is no storage's"),
        (b"}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n(NK\0))tRs", "'a' is a tensor without storage"),
        (b"}X\1\0\0\0a" + Torch().number(2**70) + b"NssX\1\0\0\0a", "fills"),
        (b"}" + Torch().number(10**5000) + b"Ns", "holds no arrays"),
        (b"}(X\1\0\0\0a}X\1\0\0\0bNsX\3\0\0\0a/bNu", "'a/b' twice"),
        (b"}X" + struct.pack("<I", 600) + b"a" * 600 + b"Ns", "not printable text of at most 512"),
        (b"}X\1\0\0\0aNs", "holds no arrays"),
        (b"})" + b"\x85" * 300_000 + b"Ns", "tuple as a key"),
        (b"}r\xff\xff\xff\x7f", "holds no arrays"),
        (b"N" * 1_000_001, "more than 1,000,000 instructions"),
        (b"]" * 2**23, "data.pkl has 8,388,611 bytes; more than 8,388,608 are not read"),
    ],
)
def test_pytorch_pickles_that_are_hostile(tmp_path, content, reason):
    refused(Torch().save(tmp_path / "w.pth", content), reason)


def test_pytorch_of_another_byte_order_or_of_two_pickles(tmp_path):
    save_torch(tmp_path / "w.pth", arrays(), order=b"middle")
    refused(tmp_path / "w.pth", "byteorder is b'middle'")
    save_torch(tmp_path / "v.pth", arrays(), extra=[("more/data.pkl", b"N.")])
    refused(tmp_path / "v.pth", "2 files data.pkl")


# ---------------------------------------------------------------------------------------- what it costs, at the worst


def test_hostile_files_are_refused_in_little_memory(tmp_path):
    """In a process that may take 700 MB beyond what Python and NumPy map themselves."""
    pytest.importorskip("resource")
    torch = Torch()
    storage = torch.storage("float32", bytes(4000))
    files = [
        written(tmp_path / "header.safetensors", struct.pack("<Q", 2**40) + b"{" + bytes(99)),
        written(tmp_path / "json.safetensors", safetensors_bytes(b'{"a": [' + b"[]," * (2**22) + b"[]]}", b"")),
        torch.save(tmp_path / "repeat.pth", torch.dict({"w": torch.tensor(storage, 0, (2**40,), (0,))})),
        Torch().save(tmp_path / "laughs.pth", b"}X\1\0\0\0a" + LAUGHS + b"s"),
        Torch().save(tmp_path / "memo.pth", b"}r\xff\xff\xff\x7f"),
        Torch().save(tmp_path / "lists.pth", b"](" + b"]" * 999_990 + b"e"),
        Torch().save(tmp_path / "text.pth", b"}X\xff\xff\xff\x7fa"),
    ]
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezed = 2**10 * (raw.compress(bytes(2**20)) + raw.flush(zlib.Z_FULL_FLUSH)) + b"\3\0"
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(squeezed), 1000, 5, 0) + b"w.npy"
    entry = (
        struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(squeezed), 1000, 5, 0, 0, 0, 0, 0, 0)
        + b"w.npy"
    )
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local) + len(squeezed), 0)
    files.append(written(tmp_path / "bomb.npz", local + squeezed + entry + end))  # a gigabyte, said to be 1,000 bytes
    program = """
        import resource, sys
        from tinyvit.pretrained import WeightsError, nonfinite, open_weights
        pages = int(open("/proc/self/statm").read().split()[0]) if sys.platform == "linux" else 2**18
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 700 * 2**20,) * 2)
        for path in sys.argv[1:]:
            try:
                nonfinite(open_weights(path))
            except WeightsError:
                print("refused", path.rpartition("/")[2])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, files)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.split()[1::2] == [file.name for file in files]
