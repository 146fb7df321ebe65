"""What a file of weights is to the rest of the house: a mapping of names to arrays, read when they are asked for."""

from __future__ import annotations

import json
import math
import mmap
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STORED = {  # a dtype's name, and NumPy's code for its bytes in a file
    "bool": "u1",
    **{f"{kind}{8 * size}": f"{code}{size}" for kind, code in (("uint", "u"), ("int", "i")) for size in (1, 2, 4, 8)},
    "bfloat16": "u2",  # unknown to NumPy: the upper half of a float32
    "float16": "f2",
    "float32": "f4",
    "float64": "f8",
}
MAX_AXES, MAX_NUMBERS, MAX_NAME = 32, 2**48, 512

_shorten = reprlib.Repr()
_shorten.maxstring, _shorten.maxlevel = 100, 2


def quoted(value: object) -> str:
    """Show something out of a file: short, printable, and at no cost, whatever it is."""
    try:
        return _shorten.repr(value)
    except ValueError:  # a number of thousands of digits
        return f"a huge {type(value).__name__}"


class WeightsError(ValueError):
    """A file of weights that cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Entry:
    """An array in a file: its shape, its dtype in the file, and what reads it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Weights(Mapping[str, np.ndarray]):
    """The arrays of a file or a folder by name, each read when it is asked for.

    An array that it returns is the caller's own: writable, contiguous, of native byte order, and with the dtype that it
    has in the file. bfloat16, which NumPy lacks, becomes float32, without a loss. NaN and infinities are read as they
    are; `nonfinite` finds them. The file stays mapped into memory, and must not be changed, as long as this lives.

    Attributes:
        path: the file or folder.
        container: "safetensors", "npz" or "pytorch".
        metadata: what a file holds beside arrays: text, numbers, and None, by name.
        settings: the JSON files beside the weights of a folder, parsed, by file name: ``settings["config.json"]``.

    Raises:
        WeightsError: an array is damaged in a way that only shows when it is read (a checksum, a bad compression).
        KeyError: there is no array of a name.
    """

    def __init__(
        self,
        path: Path,
        container: str,
        entries: Mapping[str, Entry],
        metadata: Mapping[str, Any] | None = None,
        settings: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.path, self.container = path, container
        self.metadata, self.settings = dict(metadata or {}), dict(settings or {})
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        try:
            return entry.read()
        except WeightsError as error:
            raise WeightsError(f"{self.path}: {quoted(name)} cannot be read: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # a Mapping's own would read the array

    def __repr__(self) -> str:
        return f"<Weights of {self.path}: {self.container}, {len(self):,} arrays>"

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape without reading it."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return the name of an array's dtype in the file, such as "float32" or "bfloat16", without reading it."""
        return self._entries[name].dtype

    def with_settings(self, path: Path, settings: Mapping[str, dict[str, Any]]) -> Weights:
        """Return the same arrays as those of a folder, with its settings."""
        return Weights(path, self.container, self._entries, self.metadata, settings)

    def entries(self) -> Mapping[str, Entry]:
        """Return the arrays as they lie in the file, unread."""
        return self._entries


def nonfinite(weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count the numbers that are NaN or infinite in each array that has any; read one array at a time.

    >>> nonfinite({"norm.weight": np.ones(2), "head.bias": np.array([0.5, np.nan, np.inf])})
    {'head.bias': 2}
    """
    counts = ((name, int(array.size - np.isfinite(array).sum())) for name, array in weights.items())
    return {name: count for name, count in counts if count}


# ----------------------------------------------------------------------------------- what the containers have in common


def mapped(path: Path) -> memoryview:
    """Map a file into memory: read-only, and read from the disk where it is looked at."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise WeightsError("it is empty; fetch it again")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def checked_name(name: Any) -> str:
    """Return a name of usual length, or refuse it: names are joined and shown."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
        raise WeightsError(f"the name {quoted(name)} is not printable text of at most {MAX_NAME} letters")
    return name


def checked_numbers(numbers: Any, what: str) -> tuple[int, ...]:
    """Return whole numbers from 0, one an axis or so, or refuse them."""
    listed = isinstance(numbers, list | tuple) and len(numbers) <= MAX_AXES
    if not listed or not all(type(n) is int and 0 <= n <= MAX_NUMBERS for n in numbers):
        raise WeightsError(f"{what} must be whole numbers from 0, at most {MAX_AXES}, but is {quoted(numbers)}")
    return tuple(numbers)


def checked_shape(shape: Any, name: str) -> tuple[int, ...]:
    """Return a shape that an array in memory can have, or refuse it."""
    sizes = checked_numbers(shape, f"the shape of {quoted(name)}")
    if math.prod(n or 1 for n in sizes) > MAX_NUMBERS:
        raise WeightsError(f"the shape of {quoted(name)}, {quoted(sizes)}, is none that an array can have")
    return sizes


def size_in_bytes(shape: Sequence[int], dtype: str) -> int:
    """Return how many bytes an array takes in a file."""
    return math.prod(shape) * np.dtype(STORED[dtype]).itemsize


def check_growth(size: int, of: int) -> None:
    """Refuse contents that are many times larger than their file of `of` bytes, as only zip bombs are.

    Trained weights hardly shrink; 256 MiB and sixteenfold are allowed for what is new and still zero.
    """
    if size > 2**28 + 16 * of:
        raise WeightsError(f"its {of:,} bytes would grow to {size:,}, as a zip bomb does; get it from another source")


def stored(raw: bytes | memoryview, dtype: str, big_endian: bool = False) -> np.ndarray:
    """Look at bytes as numbers (n,) in the dtype in which they are stored."""
    return np.frombuffer(raw, np.dtype(STORED[dtype]).newbyteorder(">" if big_endian else "<"))


def decoded(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Copy stored numbers, of any strides and byte order, into an array of what they mean."""
    if dtype == "bfloat16":
        upper = np.array(numbers, np.uint32, order="C")
        upper <<= 16
        return upper.view(np.float32)
    return np.array(numbers, np.dtype(dtype), order="C")


def parse_json(text: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no key twice, no NaN."""
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"it is no sound JSON: {quoted(str(error))[1:-1]}") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"its JSON is a {type(parsed).__name__}, where an object is expected")
    return parsed


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{quoted(next(name for name in found if names.count(name) > 1))} occurs twice")
    return found


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
