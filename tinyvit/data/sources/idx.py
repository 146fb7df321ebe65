"""The IDX files of MNIST and its family: big-endian headers, then plain bytes."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from tinyvit.data.datasets import DataError, Dataset, Reading, Split, with_validation

UNSIGNED_BYTE = 0x08  # the only type that images and labels come in
TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
CHUNK = 1 << 24
FILES = {
    (prefix, kind): f"{prefix}-{kind}-idx{ndim}-ubyte"
    for prefix in ("train", "t10k")
    for kind, ndim in (("images", 3), ("labels", 1))
}


def find_idx(folder: Path) -> dict[tuple[str, str], Path]:
    """Return those of the four files that `folder` holds: ``train`` or ``t10k``, ``images`` or ``labels``."""
    found = {}
    for key, name in FILES.items():
        dotted = name.replace("-idx", ".idx")
        candidates = (folder / f"{stem}{end}" for stem in (name, dotted) for end in ("", ".gz"))
        if path := next((path for path in candidates if path.is_file()), None):
            found[key] = path
    return found


def load_idx(folder: str | Path, reading: Reading = Reading(), classes: tuple[str, ...] = ()) -> Dataset:
    """Read a folder with the four files of MNIST's layout, as they are or gzipped.

    ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``; ``train-images.idx3-ubyte`` and so on will do too. Validation images are drawn
    from the training images (`Reading.validation`).

    Args:
        folder: where the files are; its name is the dataset's.
        reading: the share of validation images and the seed of their draw.
        classes: names of the classes; "0", "1", … up to the largest label if left out.

    Raises:
        DataError: where a file is missing, damaged or in another layout.

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database, "File formats", http://yann.lecun.com/exdb/mnist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part, n in (("train", 8), ("t10k", 2)):
    ...         images = bytes([0, 0, 8, 3, *(0, 0, 0, n), *(0, 0, 0, 2), *(0, 0, 0, 2)]) + bytes(4 * n)
    ...         _ = Path(folder, f"{part}-images-idx3-ubyte").write_bytes(images)
    ...         _ = Path(folder, f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, *(0, 0, 0, n)]) + bytes(n))
    ...     data = load_idx(folder, Reading(validation=0.25))
    >>> len(data.train), len(data.validation), len(data.test)
    (6, 2, 2)
    """
    folder = Path(folder)
    files = find_idx(folder)
    if missing := [name for key, name in FILES.items() if key not in files]:
        raise DataError(f"{folder} lacks {', '.join(missing)} (or the same with .gz): MNIST's layout has four files")
    arrays = {key: read_idx(path, ndim=3 if key[1] == "images" else 1) for key, path in files.items()}
    labels = {prefix: arrays[prefix, "labels"].astype(np.int64) for prefix in ("train", "t10k")}
    for prefix, part in labels.items():
        if len(part) != (n := len(arrays[prefix, "images"])):
            images, names = files[prefix, "images"], files[prefix, "labels"].name
            raise DataError(f"{images} has {n:,} images, but {names} {len(part):,} labels; there must be one an image")
    highest = max(int(part.max(initial=0)) for part in labels.values())
    classes = classes or tuple(str(k) for k in range(highest + 1))
    try:
        whole = Split(arrays["train", "images"][:, None], labels["train"])
        test = Split(arrays["t10k", "images"][:, None], labels["t10k"])
        return with_validation(folder.name, whole, test, classes, "not stated in the files", reading)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or not, as uint8 of `ndim` dimensions.

    Raises:
        DataError: where the magic number, the type, the dimensions or the length are other ones.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _parse(path, file, ndim)
    except (OSError, EOFError, zlib.error) as error:
        kind = "gzip file" if path.suffix == ".gz" else "file"
        raise DataError(f"{path} is a damaged {kind}, or cannot be opened: {error}; fetch it again") from error


def _parse(path: Path, file: io.BufferedIOBase, ndim: int) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        start = f"starts with the bytes {head.hex(' ')}" if head else "is empty"
        raise DataError(f"{path} {start}; an IDX file starts with 00 00")
    if head[2] != UNSIGNED_BYTE:
        kind = TYPES.get(head[2], "no known type")
        raise DataError(f"{path} has the type byte {head[2]:#04x} ({kind}); images and labels have 0x08 (uint8)")
    if head[3] != ndim:
        raise DataError(f"{path} has {head[3]} dimensions; {'images have 3' if ndim == 3 else 'labels have 1'}")
    raw = file.read(4 * ndim)
    if len(raw) < 4 * ndim:
        raise DataError(f"{path} ends within its header")
    shape = tuple(int(side) for side in np.frombuffer(raw, ">u4"))
    size = math.prod(shape)
    data = _read(file, size + 1)  # one more than there should be: to the end, where gzip keeps its checksum
    if len(data) != size:
        found = f"{len(data):,}" if len(data) < size else "more"
        raise DataError(f"{path} says {' × '.join(map(str, shape))} = {size:,} bytes, but {found} follow")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read(file: io.BufferedIOBase, most: int) -> bytes:
    """Read at most so many bytes, without believing that they are there."""
    chunks = []
    while most and (chunk := file.read(min(most, CHUNK))):
        chunks.append(chunk)
        most -= len(chunk)
    return b"".join(chunks)
