"""Checkpoints: arrays and settings in one file, whole or not there at all.

A checkpoint is a safetensors file (https://github.com/huggingface/safetensors#format): a JSON header of
names, dtypes and shapes, then the bytes of the arrays. It holds no code and is read without pickle.
Ours has two entries in the header's `__metadata__`:

- "tinyvit": the JSON text `{"format": 1, "meta": {...}}`;
- "crc32": eight hexadecimal digits, the CRC-32 of that text and of all arrays, so that a changed bit is an
  error and not a slightly different model.

A file is written beside its final place, forced to the disk and then renamed. So whatever happens (a full
disk, Ctrl-C, a power cut), the name leads to the old file or to the new one, and to no part of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

FORMAT = 1
"""The version of the "tinyvit" metadata that this code writes, and the newest that it reads."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read: it is missing, damaged, of another kind, or from a newer tinyvit."""


def save_checkpoint(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write arrays and settings to one file, atomically; the folder is made if need be.

    On any failure, an interrupt included, what was at `path` before is still there, and nothing else.

    Args:
        path: the file, by custom `*.safetensors`. An older one is replaced.
        arrays: name → NumPy array or scalar of any shape and strides, of bool, integers or float16/32/64.
        meta: anything that `json` takes, under string keys. As always with JSON, tuples come back as lists.

    Raises:
        TypeError: an array has another dtype or lies on a GPU, or JSON cannot hold the meta.
        ValueError: a name is reserved by the format ("__metadata__").
        OSError: the file cannot be written (a full disk, no permission).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = checkpoint_path(folder, step=7)
    ...     save_checkpoint(path, {"head.weight": np.eye(2, dtype=np.float32)}, {"step": 7})
    ...     arrays, meta = load_checkpoint(path)
    >>> arrays, meta
    ({'head.weight': array([[1., 0.], [0., 1.]], dtype=float32)}, {'step': 7})
    """
    ready = {name: _plain(name, array) for name, array in arrays.items()}
    text = json.dumps({"format": FORMAT, "meta": meta})
    write_atomically(Path(path), safetensors_pieces(ready, {"tinyvit": text, "crc32": _crc32(text, ready)}))


save_model = save_checkpoint
"""Write `model.safetensors`: a model's `state_dict()` and its config, in the same form as any checkpoint."""


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_checkpoint` wrote: (arrays, meta), the arrays to the last bit and writable.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, not a safetensors file, not written by
            tinyvit, or written by a newer one. One sentence says which, and what to do.
    """
    path = Path(path)
    with _opened(path) as (file, text):
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if file.metadata().get("crc32") != _crc32(text, arrays):
            raise CheckpointError(_damaged(path, "its checksum does not match"))
        return arrays, json.loads(text)["meta"]


def checkpoint_path(folder: str | os.PathLike[str], step: int) -> Path:
    """Name the checkpoint of a step: `folder/step-00000123.safetensors`."""
    if step < 0:
        raise ValueError(f"step is {step!r}; it must be at least 0")
    return Path(folder) / f"step-{step:08d}.safetensors"


def latest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Find the complete checkpoint of the highest step in a folder, or None, also if there is no folder.

    Complete means that the header is sound and all announced bytes are there, which costs next to nothing
    to find out; the checksum is left to `load_checkpoint`.
    """
    return next((path for path in newest_first(folder) if _is_complete(path)), None)


def prune(folder: str | os.PathLike[str], keep: int) -> None:
    """Delete the old checkpoints of a folder: all but the newest `keep` complete ones.

    Only files older than those are deleted, so an unreadable newer file stays for its owner to look at, and
    with fewer than `keep` complete ones nothing is lost. What a killed writer left goes too: call it from
    the process that writes the checkpoints.

    Raises:
        ValueError: `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep!r}; it must be at least 1")
    kept = 0
    for path in newest_first(folder):
        if kept == keep:
            path.unlink(missing_ok=True)
        elif _is_complete(path):
            kept += 1
    for leftover in Path(folder).glob(".step-*.tmp"):
        leftover.unlink(missing_ok=True)


def _plain(name: str, array: Any) -> np.ndarray:
    """Bring an array to the form in which safetensors keeps it: C order, little-endian."""
    if name == "__metadata__":
        raise ValueError("an array cannot be named '__metadata__': safetensors keeps the settings there")
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"array {name!r} is a {type(array).__name__}; give a NumPy array (cupy: array.get())")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"array {name!r} has dtype {array.dtype}; give bool, integers or float16/32/64")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _crc32(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Checksum the settings and every array's name, dtype, shape and bytes."""
    crc = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = _plain(name, arrays[name])
        crc = zlib.crc32(f"{name}\n{array.dtype.str}{array.shape}".encode(), crc)
        crc = zlib.crc32(array.data, crc)
    return f"{crc:08x}"


def safetensors_pieces(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> Iterator[Any]:
    """Yield a safetensors file piece by piece: the header's length, the header, the arrays' own memory.

    The library's `save` would take twice the arrays' size in memory (1.1 GB for 566 MB), and its `save_file`
    writes an array that is not contiguous as if it were, and leaves its temporary file where it is killed.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    names = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # the widest first, so that all are aligned
    end = 0
    for name in names:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        dtype = "BOOL" if array.dtype == bool else f"{array.dtype.kind.upper()}{8 * array.itemsize}"
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        yield arrays[name].data


def write_atomically(path: Path, pieces: Iterable[Any]) -> None:
    """Write the pieces of bytes to a file that is whole or not there: see `atomic_file`."""
    with atomic_file(path) as file:
        file.writelines(pieces)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is whole or not there: under another name first, forced to the disk, then renamed.

    Raises:
        OSError: the file cannot be written. What was at `path` before is still there, as after any other error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within a file system. Not `tempfile`, whose files
    # nobody but their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name and none of the bytes
        os.replace(temporary, path)
    except BaseException as error:  # KeyboardInterrupt too
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it was
        raise
    # The rename itself reaches the disk with the folder. Where folders cannot be synced (Windows, some
    # network file systems) a power cut may bring the old file back, still whole: no reason to fail.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str]]:
    """Open a checkpoint and check all but its arrays; give the reader and the "tinyvit" text.

    safetensors checks on opening that the header is sound and that the file is as long as it says. What
    goes wrong inside the `with` block is an unreadable array, and so a damaged file, too.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("tinyvit")
            if text is None:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not one of tinyvit's; load other models' weights"
                    " with tinyvit.from_pretrained"
                )
            version = json.loads(text)["format"]
            if version > FORMAT:
                raise CheckpointError(
                    f"{path} was written by a newer tinyvit (its format is {version}, this one reads up to"
                    f" {FORMAT}); upgrade tinyvit"
                )
            yield file, text
    except (CheckpointError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it must be a readable file") from error
    except Exception as error:  # SafetensorError, and what a garbled header makes json and NumPy raise
        if not _begins_like_safetensors(path):
            raise CheckpointError(f"{path} is not a safetensors file; give a tinyvit checkpoint") from error
        raise CheckpointError(_damaged(path, f"{type(error).__name__}: {error}")) from error


def _begins_like_safetensors(path: Path) -> bool:
    """The format says: eight bytes of header length, then the header, whose first byte is `{`."""
    with open(path, "rb") as file:
        return file.read(9)[8:] in (b"", b"{")  # shorter still is a file cut short


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged or cut short ({reason}); use an earlier checkpoint or write it anew"


def newest_first(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints of a folder by falling step, whole or not."""
    found = []
    for path in Path(folder).glob("step-*.safetensors"):
        match = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
        if match and path.is_file():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def _is_complete(path: Path) -> bool:
    try:
        with _opened(path):
            return True
    except CheckpointError:
        return False
