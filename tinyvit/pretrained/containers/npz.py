"""NumPy's ``.npz``: a zip file of ``.npy`` files. Pickled objects are refused.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import io
import warnings
from functools import partial
from typing import Any

import numpy as np

from tinyvit.pretrained.containers.archive import Archive
from tinyvit.pretrained.containers.weights import (
    STORED,
    Entry,
    WeightsError,
    checked_name,
    checked_shape,
    decoded,
    quoted,
    size_in_bytes,
    stored,
)

MAX_HEADER = 2**14  # bytes of a .npy file's header: NumPy itself takes 10,000
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(archive: Archive) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return the arrays of an ``.npz`` file, unread, by their names without ".npy".

    Raises:
        WeightsError: a member is no array of numbers, or its size is another than its header says.
    """
    return {checked_name(member.removesuffix(".npy")): _entry(archive, member) for member in archive}, {}


def _entry(archive: Archive, member: str) -> Entry:
    if not member.endswith(".npy"):
        raise WeightsError(f"its member {quoted(member)} is no array")
    try:
        shape, fortran, kind, begin = _header(archive.head(member, MAX_HEADER))
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # NumPy's parser raises a dozen types
        reason = quoted(str(error).partition("\n")[0])[1:-1]
        raise WeightsError(f"the header of {quoted(member)} cannot be read: {reason}") from error
    dtype = "bfloat16" if kind.str == "|V2" and kind.names is None and kind.subdtype is None else kind.name
    if dtype not in STORED:
        raise WeightsError(f"{quoted(member)} holds {quoted(dtype)[1:-1]}, where numbers are expected")
    if begin + size_in_bytes(checked_shape(shape, member), dtype) != archive.size(member):
        raise WeightsError(f"{quoted(member)} is {quoted(dtype)[1:-1]} {quoted(shape)} by its header, not by its size")
    return Entry(shape, dtype, partial(_read, archive, member, begin, shape, fortran, dtype, kind.byteorder == ">"))


def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version not in READERS:
        raise WeightsError(f"version {version[0]}.{version[1]} of the format .npy holds no plain numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 2's numbers, and of odd escapes in a damaged header
        shape, fortran, kind = READERS[version](file)
    return shape, fortran, kind, file.tell()


def _read(
    archive: Archive, member: str, begin: int, shape: tuple[int, ...], fortran: bool, dtype: str, big_endian: bool
) -> np.ndarray:
    numbers = stored(memoryview(archive.read(member))[begin:], dtype, big_endian)
    return decoded(numbers.reshape(shape, order="F" if fortran else "C"), dtype)
