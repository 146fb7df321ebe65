"""CIFAR-10 and CIFAR-100, in the binary and in the Python layout, in a folder or in the archive itself."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data.datasets import DataError, Dataset, Reading, Split, with_validation
from tinyvit.data.pickles import PickleError, noted, read_pickle

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # of a file in an archive; the largest that there is has 155 MB
ARCHIVES = (".tar.gz", ".tgz", ".tar")

Batch = Callable[[str, bytes], tuple[np.ndarray, np.ndarray]]  # a file's name and contents to images and labels


@dataclass(frozen=True)
class Layout:
    """One of the four ways in which CIFAR is published."""

    title: str
    folder: str  # that its archive holds
    train: tuple[str, ...]
    test: str
    names: str  # the file that names the classes
    read: Batch
    read_names: Callable[[str, bytes], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.train, self.test, self.names)


def find_cifar(path: Path) -> tuple[Layout, Path] | None:
    """Return the layout that a folder or an archive is in, and where its files are; None if in none of them."""
    if path.is_file():
        return _find_archived(path) if path.name.endswith(ARCHIVES) else None
    for layout in LAYOUTS:
        for folder in (path, path / layout.folder):
            if any((folder / name).is_file() for name in layout.train) and (folder / layout.test).is_file():
                return layout, folder
    archives = (path / f"{stem}-{kind}{end}" for stem in STEMS for kind in ("binary", "python") for end in ARCHIVES)
    return next((found for archive in archives if archive.is_file() and (found := _find_archived(archive))), None)


def _find_archived(path: Path) -> tuple[Layout, Path] | None:
    """The first members tell: whatever comes before the first batch is small."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                for layout in LAYOUTS:
                    if name in (*layout.train, layout.test) and folder.rpartition("/")[2] == layout.folder:
                        return layout, path
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise _damaged(path, error) from error
    return None


def load_cifar(path: str | Path, reading: Reading = Reading()) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 (its 100 fine classes) from a folder or from the ``.tar.gz`` as it is published.

    Both layouts will do, binary and Python. The files of the Python layout are pickles; they are read without
    running anything that they name. Validation images are drawn from the training images
    (`Reading.validation`). Nothing is ever unpacked to disk.

    Raises:
        DataError: where a file is missing, damaged or in another layout.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the layouts are those of
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    path = Path(path)
    found = find_cifar(path)
    if not found:
        raise DataError(f"{path} is in none of the layouts of CIFAR: {', '.join(layout.title for layout in LAYOUTS)}")
    layout, place = found
    files = _read_archive(place, layout) if place.is_file() else _read_folder(place, layout)
    if missing := [name for name in layout.files if name not in files]:
        raise DataError(f"{place} lacks {', '.join(missing)}, which are part of {layout.title}")
    try:
        batches = [layout.read(name, files.pop(name)) for name in layout.train]
        test = Split(*layout.read(layout.test, files.pop(layout.test)))
        whole = Split(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
        # True of what is published, and what tells that a file was cut off between two images.
        sizes = {len(images) for images, _ in batches}
        if len(whole) != 5 * len(test) or len(sizes) != 1:
            counts = f"{len(whole):,} training images in files of {', '.join(map(str, sorted(sizes)))}"
            raise DataError(f"{counts} do not go with {len(test):,} test images: CIFAR has five times as many")
        classes = layout.read_names(layout.names, files[layout.names])
        name = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
        return with_validation(name, whole, test, classes, "not stated in the files", reading)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _read_folder(folder: Path, layout: Layout) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in layout.files if (folder / name).is_file()}


def _read_archive(path: Path, layout: Layout) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in layout.files or not member.isreg():
                    continue
                if member.size > MAX_BYTES:
                    raise DataError(f"{path}: {member.name} has {member.size:,} bytes, too many for a file of CIFAR")
                content = archive.extractfile(member)
                files[name] = content.read() if content else b""
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, error) from error
    return files


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{path} is a damaged archive, or none: {reason}; fetch it again")


# ------------------------------------------------------------------------------------------------- the binary layout


def _binary(label_bytes: int) -> Batch:
    """Records of labels, the last one of which is the class, and 3072 pixels: red, green, blue, row by row."""

    def read(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        record = label_bytes + PIXELS
        if not data or len(data) % record:
            raise DataError(f"{name} has {len(data):,} bytes, which is no whole number of images of {record:,} bytes")
        records = np.frombuffer(data, np.uint8).reshape(-1, record)
        images = records[:, label_bytes:].reshape(-1, *SHAPE)
        return images, records[:, label_bytes - 1].astype(np.int64)

    return read


def _lines(name: str, data: bytes) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in data.decode().splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not a list of class names: {error}") from error


# ------------------------------------------------------------------------------------------------- the Python layout


def _unpickle(name: str, data: bytes) -> dict[str, Any]:
    known: dict[str, Callable[..., Any]] = {
        "numpy.core.multiarray._reconstruct": noted("array"),
        "numpy._core.multiarray._reconstruct": noted("array"),
        "numpy.ndarray": noted("ndarray"),
        "numpy.dtype": noted("dtype"),
        "_codecs.encode": _encoder(limit=len(data)),
    }
    try:
        content = read_pickle(data, known)
    except PickleError as error:
        raise DataError(f"{name} is not a pickle of CIFAR, or a damaged one: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{name} holds {type(content).__name__}, where CIFAR has a dict")
    return {_text(key): value for key, value in content.items() if isinstance(key, (str, bytes))}


def _encoder(limit: int) -> Callable[[str, str], bytes]:
    """Bytes, as Python 3 writes them for Python 2; no more of them than the pickle has itself."""
    left = limit

    def encode(text: str, encoding: str) -> bytes:
        nonlocal left
        left -= len(text)
        if left < 0 or encoding != "latin1":
            raise PickleError("its byte strings are longer than itself, or in another encoding than latin1")
        return text.encode("latin-1")

    return encode


def _pickled(key: str) -> Batch:
    def read(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        content = _unpickle(name, data)
        images, labels = _array(name, content.get("data")), content.get(key)
        if not isinstance(labels, list) or not all(isinstance(k, int) and 0 <= k < 2**16 for k in labels):
            raise DataError(f"{name}: {key} must be a list of whole numbers")
        if len(labels) != len(images):
            raise DataError(f"{name} has {len(images):,} images, but {len(labels):,} labels")
        return images, np.array(labels, np.int64)

    return read


def _array(name: str, call: Any) -> np.ndarray:
    """Build the array uint8 (n, 3, 32, 32) that a pickle describes."""
    try:
        _, (n, width), dtype, fortran, raw = call.state
        if (call.name, dtype.name, width) != ("array", "dtype", PIXELS) or dtype.args[0] not in ("u1", b"u1"):
            raise ValueError("it is another array, or none")
        flat = np.frombuffer(raw, np.uint8).reshape((n, width), order="F" if fortran else "C")
    except Exception as error:
        raise DataError(f"{name}: data must be an array uint8 (n, {PIXELS}), complete") from error
    return np.ascontiguousarray(flat).reshape(-1, *SHAPE)


def _pickled_names(key: str) -> Callable[[str, bytes], tuple[str, ...]]:
    def read(name: str, data: bytes) -> tuple[str, ...]:
        names = _unpickle(name, data).get(key)
        if not isinstance(names, list) or not all(isinstance(text, (str, bytes)) for text in names):
            raise DataError(f"{name}: {key} must be a list of class names")
        return tuple(_text(text) for text in names)

    return read


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
STEMS = ("cifar-10", "cifar-100")
LAYOUTS = (
    Layout(
        "CIFAR-10 binary",
        "cifar-10-batches-bin",
        tuple(f"{batch}.bin" for batch in _FIVE),
        "test_batch.bin",
        "batches.meta.txt",
        _binary(1),
        _lines,
    ),
    Layout(
        "CIFAR-100 binary", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", _binary(2), _lines
    ),
    Layout(
        "CIFAR-10 for Python",
        "cifar-10-batches-py",
        _FIVE,
        "test_batch",
        "batches.meta",
        _pickled("labels"),
        _pickled_names("label_names"),
    ),
    Layout(
        "CIFAR-100 for Python",
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        _pickled("fine_labels"),
        _pickled_names("fine_label_names"),
    ),
)
