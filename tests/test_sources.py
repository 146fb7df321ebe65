"""Where datasets come from: the shipped digits, .npz, IDX, CIFAR, folders of pictures, and names."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tinyvit.data
from tinyvit.data import (
    DATASETS,
    DataError,
    ImageFiles,
    Reading,
    digits,
    load_cifar,
    load_dataset,
    load_folder,
    load_idx,
    load_npz,
)
from tinyvit.data.datasets import held_out
from tinyvit.data.sources import find_pictures, layout, named
from tinyvit.data.sources.cifar import LAYOUTS, find_cifar
from tinyvit.data.sources.idx import FILES, read_idx

PARTS = ("train", "validation", "test")
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("TINYVIT_OFFLINE", "1")


def medmnist_arrays(shape=(6, 7, 5, 3)):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(shape[0], dtype=np.uint8)[:, None] % 3
    return arrays


def saved(path, **changes):
    arrays = {**medmnist_arrays(), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


# The shipped digits


def test_digits_are_those_of_the_source():
    from sklearn.datasets import load_digits

    source, data = load_digits(), digits()
    rows = np.concatenate([np.flatnonzero(stored_split() == s) for s in range(3)])
    images = np.concatenate([getattr(data, part).images for part in PARTS])
    labels = np.concatenate([getattr(data, part).labels for part in PARTS])
    # 0 to 16 becomes 0 to 255 one to one, so dividing again must give the source's levels exactly.
    assert np.array_equal(np.rint(images[:, 0] / (255 / 16)), source.images[rows])
    assert np.array_equal(labels, source.target[rows])
    assert np.unique(images).tolist() == [round(level * 255 / 16) for level in range(17)]


def stored_split():
    with np.load(Path(tinyvit.data.__file__).parent / "digits" / "digits.npz") as file:
        assert [file[k].dtype for k in file] == [np.uint8] * 3
        return file["split"]


def test_digits_split_is_fixed_stratified_and_complete():
    split = stored_split()
    digest = "e8116cd2501ee6c8da8fbdf8ffe34b584da9175d7963b08782c62ff849332b14"
    assert hashlib.sha256(split.tobytes()).hexdigest() == digest
    data = digits()
    assert [len(getattr(data, part)) for part in PARTS] == [1259, 179, 359]
    counts = np.array([np.bincount(getattr(data, part).labels, minlength=10) for part in PARTS])
    assert np.all(np.abs(counts - counts.sum(axis=0) * [[0.7], [0.1], [0.2]]) <= 1)


def test_no_digit_is_in_two_splits():
    images = np.concatenate([getattr(digits(), part).images for part in PARTS])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797


# Files of others


def test_npz_in_colour(tmp_path):
    data = load_dataset(saved(tmp_path / "cells.npz", classes=np.array(["x", "y", "z"])))
    assert (data.name, data.channels, data.image_size) == ("cells", 3, (7, 5))
    assert data.classes == ("x", "y", "z")
    source = medmnist_arrays()
    for part, prefix in zip(PARTS, ("train", "val", "test"), strict=True):
        split = getattr(data, part)
        assert np.array_equal(split.images.transpose(0, 2, 3, 1), source[f"{prefix}_images"])
        assert np.array_equal(split.labels, source[f"{prefix}_labels"][:, 0])


def test_npz_in_grey_with_flat_labels(tmp_path):
    arrays = medmnist_arrays((4, 28, 28))
    arrays["test_labels"] = np.array([0, 1, 2, 11], ">i2")
    np.savez_compressed(tmp_path / "grey.NPZ.npz", **arrays)
    data = load_dataset(str(tmp_path / "grey.NPZ.npz"))
    assert data.train.images.shape == (4, 1, 28, 28)
    assert data.test.labels.tolist() == [0, 1, 2, 11]
    assert data.classes == tuple(str(k) for k in range(12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None, "test_images": None}, "lacks val_labels, test_images"),
        ({"train_images": np.zeros((6, 7, 5, 3))}, "training images must be uint8 .* float64"),
        ({"train_images": np.zeros((6, 3, 7, 5), np.uint8)}, "with C from 1 to 4, but are .*6, 3, 7, 5"),
        ({"val_images": np.zeros((6, 7), np.uint8)}, "validation images must be"),
        ({"val_images": np.zeros((6, 7, 7, 3), np.uint8)}, r"validation images are .*\(3, 7, 7\)"),
        (
            {"test_labels": np.zeros((6, 14), np.uint8)},
            r"test labels are several an image \(6, 14\), which is not supported",
        ),
        ({"test_labels": np.zeros((5, 1), np.uint8)}, r"of shape \(6,\) or \(6, 1\).*of shape \(5, 1\)"),
        ({"test_labels": np.zeros(6)}, "test labels must be whole numbers .* float64"),
        ({"test_labels": np.full(6, -1)}, "test labels reach from -1"),
        ({"test_labels": np.full(6, 2**63, np.uint64)}, "test labels reach from -"),
        ({"test_labels": np.full(6, 10**9)}, "label 1000000000 is too large"),
        ({"classes": np.array(["x", "y"])}, "labels reach from 0 to 2, but with 2 classes"),
        ({"classes": np.arange(3)}, "classes must be text"),
        ({"classes": np.array("xyz")}, "classes must be text"),
        (
            {"train_labels": np.array([{}] * 6, dtype=object)},
            "cannot be read .*: train_labels holds Python objects, which are never",
        ),
        ({"train_images": np.zeros((0, 7, 5, 3), np.uint8), "train_labels": np.zeros(0, int)}, "no images"),
    ],
)
def test_npz_refuses_other_layouts_and_names_the_file(tmp_path, changes, message):
    path = saved(tmp_path / "cells.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_refuses_a_member_that_is_no_array(tmp_path):
    path = saved(tmp_path / "cells.npz", test_labels=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test_labels", b"not an array")
    with pytest.raises(DataError, match="test labels must be"):
        load_npz(path)


def test_damaged_npz_is_a_data_error_or_still_good(tmp_path):
    path = tmp_path / "cells.npz"
    np.savez_compressed(path, **medmnist_arrays())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
            load_npz(path)
    for _ in range(300):  # one flipped bit anywhere: in data, in an array's header, in the zip's directory
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # and nothing else may come out
            load_npz(path)


@pytest.mark.parametrize("header", ["{'shape': (((", "{'descr': ',', 'fortran_order': False, 'shape': (6,)}", ""])
def test_npz_with_a_forged_header(tmp_path, header):
    path = saved(tmp_path / "cells.npz", test_labels=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test_labels.npy", b"\x93NUMPY\1\0" + bytes([len(header), 0]) + header.encode() + b"012345")
    with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
        load_npz(path)


def test_npz_that_is_something_else(tmp_path):
    array, folder = tmp_path / "array.npz", tmp_path / "folder.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    array.write_bytes(buffer.getvalue())
    folder.mkdir()
    for path in (array, folder):
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
            load_npz(path)


# Reading, and what is held out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation": -0.1}, "validation is -0.1; it is a share"),
        ({"test": 1}, "test is 1; it is a share"),
        ({"test": float("nan")}, "test is nan"),
        ({"validation": 0.5, "test": 0.5}, "leave no training images"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"split_seed": 1.0}, "split_seed is 1.0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": (224,)}, r"image_size is \(224,\)"),
        ({"image_size": (224, 2.5)}, "must be whole pixels"),
        ({"crop_ratio": 0}, "crop_ratio is 0"),
        ({"crop_ratio": 1.01}, "crop_ratio is 1.01"),
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik': did you mean 'bicubic'"),
        ({"on_bad_image": "ignore"}, "unknown on_bad_image 'ignore'"),
    ],
)
def test_reading_checks_its_values(values, message):
    with pytest.raises(DataError, match=message):
        Reading(**values)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0, 0.5), st.floats(0, 0.49), st.integers(0, 99))
def test_held_out_is_stratified_complete_and_leaves_some_of_each_class(counts, validation, test, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = held_out(labels, (validation, test), seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert all(np.all(np.diff(rows) > 0) for rows in parts)
    for share, rows in zip((validation, test), parts[1:], strict=True):
        drawn = np.bincount(labels[rows], minlength=len(counts))
        assert np.all(np.abs(drawn - np.array(counts) * share) <= 1)
    assert np.all(np.bincount(labels[parts[0]], minlength=len(counts)) >= 1)
    again = held_out(labels, (validation, test), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_another_class_and_another_seed():
    labels = np.repeat(np.arange(3), 50)
    _, few, _ = held_out(labels[:100], (0.2, 0.2), 0)
    _, more, _ = held_out(labels, (0.2, 0.2), 0)
    assert np.array_equal(few, more[more < 100])  # a new class moves no image of the others
    assert not np.array_equal(more, held_out(labels, (0.2, 0.2), 1)[1])


# IDX


def idx_bytes(array, type=8):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, type, array.ndim, *array.shape) + array.tobytes()


def save_idx(folder, n=20, classes=4, dotted=False, zipped=True):
    folder.mkdir(exist_ok=True)
    rng, arrays = np.random.default_rng(0), {}
    for (prefix, kind), name in FILES.items():
        count = n if prefix == "train" else n // 5
        labels = np.arange(count, dtype=np.uint8) % classes
        arrays[prefix, kind] = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8) if kind == "images" else labels
        name = name.replace("-idx", ".idx") if dotted else name
        data = idx_bytes(arrays[prefix, kind])
        (folder / f"{name}{'.gz' * zipped}").write_bytes(gzip.compress(data) if zipped else data)
    return arrays


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_as_written(tmp_path, dotted, zipped):
    arrays = save_idx(tmp_path / "letters", dotted=dotted, zipped=zipped)
    data = load_dataset(tmp_path / "letters", Reading(validation=0.2))
    assert layout(tmp_path / "letters") == "IDX"
    assert (data.name, data.classes, data.image_size, data.channels) == ("letters", ("0", "1", "2", "3"), (5, 4), 1)
    assert [len(getattr(data, part)) for part in PARTS] == [16, 4, 4]
    assert np.array_equal(data.test.images[:, 0], arrays["t10k", "images"])
    assert np.array_equal(data.test.labels, arrays["t10k", "labels"])
    train, validation, _ = held_out(arrays["train", "labels"].astype(np.int64), (0.2, 0), 0)
    assert np.array_equal(data.train.images[:, 0], arrays["train", "images"][train])
    assert np.array_equal(data.validation.images[:, 0], arrays["train", "images"][validation])
    assert np.array_equal(data.validation.labels, arrays["train", "labels"][validation])


def test_idx_in_a_folder_with_a_known_name(tmp_path):
    save_idx(tmp_path / "fashion-mnist")
    assert load_dataset(tmp_path / "fashion-mnist").classes[0] == "T-shirt/top"
    save_idx(tmp_path / "mnist", n=60, classes=12)
    with pytest.raises(DataError, match="mnist: the training labels reach from 0 to 11, but with 10 classes"):
        load_dataset(tmp_path / "mnist")


def test_idx_names_what_is_missing(tmp_path):
    save_idx(tmp_path / "a")
    (tmp_path / "a" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"a lacks t10k-labels-idx1-ubyte \(or the same with \.gz\)"):
        load_dataset(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images", b"", "is empty; an IDX file starts with 00 00"),
        ("train-images", b"\x89PNG", "starts with the bytes 89 50 4e 47; an IDX"),
        ("train-images", b"\0\0\x0d\3" + bytes(12), r"type byte 0x0d \(float32\); .* 0x08"),
        ("train-images", b"\0\0\x07\3" + bytes(12), "no known type"),
        ("train-images", idx_bytes(np.zeros(20, np.uint8)), "has 1 dimensions; images have 3"),
        ("train-labels", idx_bytes(np.zeros((20, 1, 1), np.uint8)), "has 3 dimensions; labels have 1"),
        ("train-labels", b"\0\0\x08\1\0\0", "ends within its header"),
        ("train-labels", idx_bytes(np.zeros(20, np.uint8))[:-1], "says 20 = 20 bytes, but 19 follow"),
        ("train-labels", idx_bytes(np.zeros(20, np.uint8)) + b"\0", "says 20 = 20 bytes, but more follow"),
        ("train-labels", idx_bytes(np.zeros(19, np.uint8)), "has 20 images, but .* 19 labels"),
        ("train-images", b"\0\0\x08\3" + b"\xff" * 12, "bytes, but 0 follow"),
        ("train-images", idx_bytes(np.zeros((20, 0, 4), np.uint8)), "images must be uint8"),
    ],
)
def test_idx_says_what_it_found_and_what_it_expected(tmp_path, name, data, message):
    save_idx(tmp_path / "x", zipped=False)
    kind = "idx3" if name.endswith("images") else "idx1"
    (tmp_path / "x" / f"{name}-{kind}-ubyte").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        load_idx(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_gz_is_never_read_as_good(tmp_path, data):
    array = np.arange(60, dtype=np.uint8).reshape(3, 5, 4)
    whole = bytearray(gzip.compress(idx_bytes(array), mtime=0))
    flipped = data.draw(st.booleans())
    if not flipped:
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:  # behind the header, whose spare fields may hold anything
        whole[data.draw(st.integers(10, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "x.gz"
    path.write_bytes(whole)
    try:
        found = read_idx(path, ndim=3)
    except DataError as error:
        assert "x.gz" in str(error)  # noqa: PT017 - or else no error at all
    else:  # a bit that nothing depends on: what fills up the last byte
        assert flipped
        assert np.array_equal(found, array)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_packages_it(monkeypatch):
    data = load_dataset("fashion-mnist")
    assert [len(getattr(data, part)) for part in PARTS] == [54000, 6000, 10000]
    assert (data.name, data.image_size, data.num_classes) == ("fashion-mnist", (28, 28), 10)
    assert data.licence.startswith("MIT")
    counts = np.bincount(data.validation.labels)
    assert counts.tolist() == [600] * 10
    mean, std = load_dataset(FASHION, Reading(validation=0)).statistics()
    assert (round(mean[0], 4), round(std[0], 4)) == (0.2860, 0.3530)  # as published for its 60,000 training images


# CIFAR


def cifar_arrays(n=2, classes=10):
    """Images (6, n, 3072) and labels (6, n) of five training batches and a test batch."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, n, 3072), dtype=np.uint8), np.arange(6 * n).reshape(6, n) % classes


def python2_pickle(content):
    """As Python 2 wrote it: text as byte strings, arrays by numpy.core.multiarray._reconstruct."""
    assert content.__class__ is dict
    out = [b"\x80\x02}("]

    def put(value):
        if isinstance(value, (str, bytes)):
            raw = value.encode() if isinstance(value, str) else value
            out.append(b"T" + struct.pack("<i", len(raw)) + raw)
        elif isinstance(value, (int, np.integer)):
            out.append(b"J" + struct.pack("<i", int(value)))
        elif isinstance(value, list):
            out.append(b"](")
            for one in value:
                put(one)
            out.append(b"e")
        else:
            out.append(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01")
            put(value.shape[0])
            put(value.shape[1])
            out.append(b"\x86cnumpy\ndtype\nU\x02u1K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89")
            put(value.tobytes())
            out.append(b"tb")

    for key, value in content.items():
        put(key)
        put(value)
    return b"".join([*out, b"u."])


def python3_pickle(content, protocol=2):
    return pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=protocol)


def cifar_files(kind, images, labels, dump=python2_pickle):
    """The files of one of the four layouts, by name."""
    names = [f"class {k}" for k in range(labels.max() + 1)]
    if kind == "CIFAR-10 binary":
        batches = [np.hstack([k[:, None].astype(np.uint8), x]).tobytes() for k, x in zip(labels, images, strict=True)]
        return {
            **{f"data_batch_{i + 1}.bin": batches[i] for i in range(5)},
            "test_batch.bin": batches[5],
            "batches.meta.txt": "\n".join([*names, "", ""]).encode(),
        }
    if kind == "CIFAR-10 for Python":
        batches = [dump({"data": x, "labels": k.tolist()}) for k, x in zip(labels, images, strict=True)]
        return {
            **{f"data_batch_{i + 1}": batches[i] for i in range(5)},
            "test_batch": batches[5],
            "batches.meta": dump({"label_names": names}),
        }
    parts = {"train": (images[:5].reshape(-1, 3072), labels[:5].ravel()), "test": (images[5], labels[5])}
    if kind == "CIFAR-100 binary":
        coarse = {part: np.full((len(x), 1), 7, np.uint8) for part, (x, _) in parts.items()}
        fine = {part: k[:, None].astype(np.uint8) for part, (_, k) in parts.items()}
        return {
            **{f"{part}.bin": np.hstack([coarse[part], fine[part], x]).tobytes() for part, (x, _) in parts.items()},
            "fine_label_names.txt": "\n".join(names).encode(),
            "coarse_label_names.txt": b"one\n",
        }
    return {
        **{
            part: dump({"data": x, "fine_labels": k.tolist(), "coarse_labels": [0] * len(k)})
            for part, (x, k) in parts.items()
        },
        "meta": dump({"fine_label_names": names, "coarse_label_names": ["one"]}),
    }


def save_cifar(folder, files, archive=None):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if archive:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, arcname=folder.name)
    return folder


KINDS = [layout.title for layout in LAYOUTS]
FOLDERS = {layout.title: layout.folder for layout in LAYOUTS}


def check_cifar(data, images, labels):
    train, validation, _ = held_out(labels[:5].ravel(), (0.2, 0), 0)
    whole = images[:5].reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images, whole[train])
    assert np.array_equal(data.validation.images, whole[validation])
    assert np.array_equal(data.test.images, images[5].reshape(-1, 3, 32, 32))
    assert np.array_equal(data.train.labels, labels[:5].ravel()[train])
    assert np.array_equal(data.test.labels, labels[5])
    assert data.classes == tuple(f"class {k}" for k in range(labels.max() + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_cifar_in_every_layout_from_folder_and_archive(tmp_path, kind):
    images, labels = cifar_arrays(n=4, classes=4)
    archive = tmp_path / "cifar.tar.gz"
    folder = save_cifar(tmp_path / FOLDERS[kind], cifar_files(kind, images, labels), archive)
    for place in (folder, archive):
        assert layout(place) == kind
        check_cifar(load_dataset(place, Reading(validation=0.2)), images, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([FOLDERS[kind], "cifar.tar.gz"])  # no unpacking
    (tmp_path / "above").mkdir()
    folder.rename(tmp_path / "above" / folder.name)
    assert layout(tmp_path / "above") == kind


@pytest.mark.parametrize("protocol", range(2, 5))
def test_cifar_pickled_anew_by_python_3(tmp_path, protocol):
    images, labels = cifar_arrays(n=4, classes=4)
    files = cifar_files("CIFAR-100 for Python", images, labels, lambda content: python3_pickle(content, protocol))
    folder = save_cifar(tmp_path / "c", files)
    check_cifar(load_cifar(folder, Reading(validation=0.2)), images, labels)


def test_cifar_in_fortran_order(tmp_path):
    images, labels = cifar_arrays(n=4, classes=4)

    def dump(content):
        return python3_pickle({k: np.asfortranarray(v) if k == "data" else v for k, v in content.items()})

    folder = save_cifar(tmp_path / "c", cifar_files("CIFAR-10 for Python", images, labels, dump))
    check_cifar(load_cifar(folder, Reading(validation=0.2)), images, labels)


class Evil:
    """Its pickle asks for a call; `ran` is the file that the call would make."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def evil_pickles(ran):
    command = f"touch {ran}"
    yield "posix.system", pickle.dumps({"data": Evil(os.system, command)}, 2)
    yield "builtins.eval", pickle.dumps({"data": Evil(eval, f"__import__('pathlib').Path({str(ran)!r}).touch()")}, 4)
    yield "__builtin__.exec", f"c__builtin__\nexec\n(Vopen({str(ran)!r},'w')\ntR.".encode()
    yield "os.system", f"(S'{command}'\nios\nsystem\n.".encode()  # INST
    yield "os.system", f"(cos\nsystem\nS'{command}'\no.".encode()  # OBJ
    yield "numpy.core.multiarray.fromfile", b"cnumpy.core.multiarray\nfromfile\n."
    yield "numpy._reconstruct.x", b"\x80\x04\x8c\x05numpy\x8c\x0e_reconstruct.x\x93."  # a dotted name
    yield "changes numpy.core", b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\1aK\1sb."  # BUILD on the function
    yield "instruction NEWOBJ", b"\x80\x02cnumpy\nndarray\n)\x81."  # NEWOBJ
    yield "as a key", b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."  # a hash as deep ends the process
    yield "persistent", b"\x80\x02U\1aQ."
    yield "where CIFAR has a dict", b"\x80\x02]."


@pytest.mark.parametrize("which", range(12))
def test_cifar_never_runs_what_a_pickle_names(tmp_path, which):
    ran = tmp_path / "ran"
    message, data = list(evil_pickles(ran))[which]
    files = {**cifar_files("CIFAR-10 for Python", *cifar_arrays()), "data_batch_3": data}
    with pytest.raises(DataError, match=f"data_batch_3 .*({message})"):
        load_cifar(save_cifar(tmp_path / "c", files))
    assert not ran.exists()


def test_the_evil_pickles_are_evil(tmp_path):
    """What plain pickle does with three of them."""
    for which in (0, 1, 3):
        ran = tmp_path / f"ran{which}"
        pickle.loads(list(evil_pickles(ran))[which][1])
        assert ran.exists()


BAD_BATCHES = {
    "float": {"data": np.zeros((2, 3072)), "labels": [0, 1]},
    "narrow": {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
    "flat": {"data": np.zeros(6144, np.uint8), "labels": [0, 1]},
    "no array": {"data": [1, 2], "labels": [0, 1]},
    "no data": {"labels": [0, 1]},
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_cifar_refuses_other_arrays(tmp_path, bad):
    files = cifar_files("CIFAR-10 for Python", *cifar_arrays())
    folder = save_cifar(tmp_path / "c", {**files, "data_batch_2": python3_pickle(BAD_BATCHES[bad])})
    with pytest.raises(DataError, match=r"data_batch_2: data must be an array uint8 \(n, 3072\)"):
        load_cifar(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels must be a list"),
        (["a", "b"], "labels must be a list of whole numbers"),
        ([0, -1], "labels must be"),
        ([0, 10**30], "labels must be"),
        ([0], "has 2 images, but 1 labels"),
        ([0, 99], "training labels reach from 0 to 99, but with 10 classes"),
    ],
)
def test_cifar_refuses_other_labels(tmp_path, labels, message):
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": labels}
    files = {**cifar_files("CIFAR-10 for Python", *cifar_arrays()), "data_batch_2": python3_pickle(batch)}
    with pytest.raises(DataError, match=message):
        load_cifar(save_cifar(tmp_path / "c", files), Reading(validation=0))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_cifar_cut_off_anywhere_is_refused(tmp_path, data):
    kind = data.draw(st.sampled_from(KINDS))
    files = cifar_files(kind, *cifar_arrays())
    names = [name for name in files if not name.endswith(".txt")]  # a list of names may well be shorter
    name = data.draw(st.sampled_from(names))
    cut = data.draw(st.integers(0, len(files[name]) - 1))
    folder = save_cifar(tmp_path / kind.replace(" ", ""), {**files, name: files[name][:cut]})
    with pytest.raises(DataError):
        load_cifar(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(share=st.floats(0, 0.99))
def test_cifar_archive_cut_off_anywhere_is_refused(tmp_path, share):
    archive = tmp_path / "cifar.tar.gz"
    if not (tmp_path / "c").exists():
        save_cifar(tmp_path / FOLDERS[KINDS[0]], cifar_files(KINDS[0], *cifar_arrays()), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="cifar"):
        load_dataset(archive)


def test_cifar_says_what_is_missing_and_what_is_too_large(tmp_path, monkeypatch):
    files = cifar_files("CIFAR-10 binary", *cifar_arrays())
    archive = tmp_path / "a.tar.gz"
    folder = save_cifar(tmp_path / "cifar-10-batches-bin", files, archive)
    monkeypatch.setattr("tinyvit.data.sources.cifar.MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"a\.tar\.gz: cifar-10-batches-bin/.* bytes, too many"):
        load_cifar(archive)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_4\.bin, which are part of CIFAR-10 binary"):
        load_cifar(folder)
    (folder / "data_batch_4.bin").symlink_to("/dev/null")
    with pytest.raises(DataError, match=r"lacks data_batch_4|has 0 bytes"):
        load_cifar(folder)


def test_an_archive_of_something_else(tmp_path):
    (tmp_path / "x.txt").touch()
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.txt", arcname="x.txt")
    assert find_cifar(tmp_path / "x.tar.gz") is None
    with pytest.raises(DataError, match="is an archive, but not one of CIFAR"):
        load_dataset(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match="is in none of the layouts of CIFAR"):
        load_cifar(tmp_path / "x.tar.gz")


# Folders of pictures


def save_pictures(folder, names):
    """One colour each, that of its place in the list."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i, 0, 0)).save(folder / name)
    return folder


SMALL = Reading(image_size=8)


def names_in(split, folder):
    return [Path(path).relative_to(folder).as_posix() for path in split.images.paths]


def test_folders_with_all_three_splits(tmp_path):
    names = ["train/b/2.png", "train/b/1.png", "train/a/x/y/3.PNG", "val/a/4.png", "test/b/5.jpeg", "test/a/6.bmp"]
    save_pictures(tmp_path, names)
    data = load_dataset(tmp_path, SMALL)
    assert layout(tmp_path) == "pictures in folders"
    assert (data.name, data.classes) == (tmp_path.name, ("a", "b"))
    assert names_in(data.train, tmp_path) == ["train/a/x/y/3.PNG", "train/b/1.png", "train/b/2.png"]
    assert names_in(data.validation, tmp_path) == ["val/a/4.png"]
    assert names_in(data.test, tmp_path) == ["test/a/6.bmp", "test/b/5.jpeg"]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert isinstance(data.train.images, ImageFiles)
    assert data.train.images[:, ...].shape == (3, 3, 8, 8)
    assert data.train.images[1:][:, 0, 0, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("there", "counts"),
    [
        ((), [6, 2, 2]),
        (("val",), [8, 1, 2]),
        (("validation",), [8, 1, 2]),
        (("test",), [8, 2, 1]),
        (("validation", "test"), [10, 1, 1]),
    ],
)
def test_what_a_folder_lacks_is_drawn_from_training(tmp_path, there, counts):
    save_pictures(tmp_path, [f"train/{k}/{i}.png" for k in "ab" for i in range(5)])
    save_pictures(tmp_path, [f"{part}/a/x.png" for part in there])
    data = load_folder(tmp_path, Reading(image_size=8, validation=0.2, test=0.2))
    assert [len(getattr(data, part)) for part in PARTS] == counts
    everything = [name for part in PARTS for name in names_in(getattr(data, part), tmp_path)]
    assert len(set(everything)) == 10 + len(there)


def test_one_folder_of_classes_is_split_by_the_seed(tmp_path):
    save_pictures(tmp_path, [f"{k}/{i:02}.png" for k in ("cats", "dogs") for i in range(20)])
    splits = {}
    for seed in (0, 0, 1):
        data = load_folder(tmp_path, Reading(image_size=8, split_seed=seed))
        assert [np.bincount(getattr(data, part).labels).tolist() for part in PARTS] == [[16] * 2, [2] * 2, [2] * 2]
        found = tuple(tuple(names_in(getattr(data, part), tmp_path)) for part in PARTS)
        assert splits.setdefault(seed, found) == found
    assert splits[0] != splits[1]


def test_the_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    names = [f"{k}/{sub}{i}.png" for k in "ba" for sub in ("", "z/", "c/") for i in (2, 0, 1)]
    save_pictures(tmp_path, names)
    expected = find_pictures(tmp_path)
    walk, iterdir = os.walk, Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), reverse=True))

    def shuffled(top):
        for where, folders, files in walk(top):
            folders.reverse()
            yield where, folders, files[::-1]

    monkeypatch.setattr(os, "walk", shuffled)
    assert find_pictures(tmp_path) == expected
    assert list(expected.splits["all"]) == ["a", "b"]


def test_what_is_no_picture_is_passed_over_and_counted(tmp_path):
    save_pictures(tmp_path, ["train/a/1.png", "train/b/2.png", "train/a/.hidden.png", "train/.cache/3.png"])
    save_pictures(tmp_path, ["train/a/.thumbs/4.png", "train/loose.png", "extra/a/5.png"])
    for name in ("README.md", "train/a/notes.txt", "train/b/2.svg"):
        (tmp_path / name).touch()
    tree = find_pictures(tmp_path)
    found = {name: [Path(path).name for path in paths] for name, paths in tree.splits["training"].items()}
    assert found == {"a": ["1.png"], "b": ["2.png"]}
    passed = sorted(Path(path).relative_to(tmp_path).as_posix() for path in tree.passed_over)
    assert passed == sorted(
        [
            "README.md",
            "extra",
            "train/.cache",
            "train/a/.hidden.png",
            "train/a/.thumbs",
            "train/a/notes.txt",
            "train/b/2.svg",
            "train/loose.png",
        ]
    )


@pytest.mark.parametrize(
    ("names", "empty", "message"),
    [
        (["train/a/1.png", "val/c/1.png"], None, "the validation images have a class 'c', which the training"),
        (["train/a/1.png"], "train/b", r"train/b holds no pictures \(.*\.jpg"),
        (["train/a/1.png", "test/a/1.png"], "test/b", "test/b holds no pictures"),
        (["val/a/1.png", "test/a/1.png"], None, "has test, val, but no train"),
        (["train/a/1.png", "val/a/1.png", "validation/a/1.png"], None, "has both val and validation"),
        (["train/1.png"], None, "train holds no folders: pictures lie in one folder a class"),
        (["1.png"], None, "holds no folders"),
        ([], None, "holds no folders"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, names, empty, message):
    save_pictures(tmp_path, names)
    if empty:
        (tmp_path / empty).mkdir()
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, SMALL)


# Names


def test_load_dataset_says_what_it_did_not_find(tmp_path):
    assert load_dataset("digits").name == "digits"
    (tmp_path / "digits.csv").touch()
    for name, message in {
        "digit": "unknown dataset 'digit': did you mean 'digits'",
        "imagenet": "unknown dataset 'imagenet'; the known names are cifar10, .*, mnist; or give the path",
        "cells.npz": "cells.npz does not exist",
        tmp_path / "nowhere": "nowhere does not exist; give an .npz file, .*, or one of digits",
        tmp_path / "digits.csv": "digits.csv is not a dataset; datasets are read from an .npz file",
    }.items():
        with pytest.raises(DataError, match=message):
            load_dataset(name)


@pytest.fixture
def no_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(named, "SYSTEM", tmp_path / "system")
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_a_name_is_looked_up_in_the_cache_and_then_among_packages(no_packages, name):
    with pytest.raises(DataError, match=f"{name} is not here, .* put train-images-idx3-.* into .*cache/{name}"):
        load_dataset(name)
    assert layout(name) == "not on this machine"
    (no_packages / "system").mkdir()
    save_idx(no_packages / "system" / name, n=20, classes=10)
    data = load_dataset(name)
    assert (data.name, data.classes, data.licence) == (name, DATASETS[name].classes, DATASETS[name].licence)
    (no_packages / "cache").mkdir()
    save_idx(no_packages / "cache" / name, n=40, classes=10)
    assert len(load_dataset(name).test) == 8
    (no_packages / "cache" / name / "train-images-idx3-ubyte.gz").unlink()  # half a dataset is none
    assert len(load_dataset(name).test) == 4


def test_cifar10_in_the_cache_as_archive_or_folder(no_packages):
    kind = "CIFAR-10 for Python"
    images, labels = cifar_arrays(n=4, classes=4)
    cache = no_packages / "cache" / "cifar10"
    cache.mkdir(parents=True)
    folder = save_cifar(
        no_packages / FOLDERS[kind], cifar_files(kind, images, labels), cache / "cifar-10-python.tar.gz"
    )
    for _ in range(2):
        data = load_dataset("cifar10", Reading(validation=0.2))
        assert (data.name, data.licence) == ("cifar10", DATASETS["cifar10"].licence)
        check_cifar(data, images, labels)
        (cache / "cifar-10-python.tar.gz").unlink(missing_ok=True)
        if folder.exists():
            folder.rename(cache / folder.name)


def test_offline_is_also_a_setting_of_reading(no_packages, monkeypatch):
    monkeypatch.setenv("TINYVIT_OFFLINE", "0")
    monkeypatch.setattr(named, "download", lambda *_: pytest.fail("it downloads"))
    with pytest.raises(DataError, match="tinyvit is offline"):
        load_dataset("cifar100", Reading(offline=True))


def test_the_table_of_names_is_complete():
    for name, entry in DATASETS.items():
        assert entry.name == name
        assert entry.licence
        assert entry.source
        assert all(url.startswith("https://") and url.endswith("/") for url in entry.mirrors)
        assert all(len(bytes.fromhex(file.sha256)) == 32 and file.size > 0 for file in entry.files)
        assert bool(entry.files) == bool(entry.mirrors) == (name != "digits")
    digests = [file.sha256 for entry in DATASETS.values() for file in entry.files]
    assert len(set(digests)) == len(digests) == 14
