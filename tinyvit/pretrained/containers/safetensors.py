"""safetensors: a JSON header of names, dtypes, shapes and places, then the bytes of the arrays.

The library of that name knows no bfloat16 without a framework, and takes a key that occurs twice; so this reader is our
own, and as strict as the format. Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tinyvit.pretrained.containers.weights import (
    Entry,
    WeightsError,
    checked_name,
    checked_numbers,
    checked_shape,
    decoded,
    parse_json,
    quoted,
    size_in_bytes,
    stored,
)

MAX_HEADER = 2**24  # bytes; the format allows 100 MB, the largest ViT has 100 kB
DTYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


def read_safetensors(data: memoryview) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return the arrays of a safetensors file, unread, and its metadata: text by name.

    Raises:
        WeightsError: the header is damaged, too long, or says anything twice; arrays overlap, leave bytes over or reach
            past the end; a dtype is one that NumPy cannot hold.
    """
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise WeightsError(f"its header is said to have {length:,} bytes; more than {MAX_HEADER:,} are not read")
    if length > len(data) - 8:
        raise WeightsError(f"it is cut short: its header of {length:,} bytes ends after {len(data) - 8:,}")
    header, body = parse_json(bytes(data[8 : 8 + length])), data[8 + length :]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError("its metadata must be text by name")
    places = {checked_name(name): _place(name, said) for name, said in header.items()}
    _check_gapless(places, len(body))
    return {name: _entry(said, body[begin:end]) for name, (begin, end, said) in places.items()}, metadata


def _place(name: str, said: Any) -> tuple[int, int, dict[str, Any]]:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"its header must give dtype, shape and data_offsets for {quoted(name)}, and nothing else")
    if not isinstance(said["dtype"], str) or said["dtype"] not in DTYPES:
        known = ", ".join(DTYPES)
        raise WeightsError(f"{quoted(name)} has the dtype {quoted(said['dtype'])}; convert it to one of {known}")
    offsets = checked_numbers(said["data_offsets"], f"data_offsets of {quoted(name)}")
    if len(offsets) != 2:
        raise WeightsError(f"data_offsets of {quoted(name)} must be a begin and an end, but is {offsets}")
    begin, end = offsets
    needed = size_in_bytes(checked_shape(said["shape"], name), DTYPES[said["dtype"]])
    if end - begin != needed:
        raise WeightsError(
            f"{quoted(name)} needs {needed:,} bytes for its shape and dtype, and is given {end - begin:,}"
        )
    return begin, end, said


def _check_gapless(places: dict[str, tuple[int, int, dict[str, Any]]], size: int) -> None:
    """One array after the other, from the first byte to the last: then nothing is shared and nothing hidden."""
    at = 0
    for name, (begin, end, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if begin != at:
            raise WeightsError(
                f"{quoted(name)} begins at byte {begin:,}, but the array before it ends at {at:,}: "
                + ("they overlap" if begin < at else "there is a hole")
            )
        at = end
    if at != size:
        raise WeightsError(f"its arrays end at byte {at:,} of {size:,}: it is cut short, or holds more than it says")


def _entry(said: dict[str, Any], raw: memoryview) -> Entry:
    shape, dtype = tuple(said["shape"]), DTYPES[said["dtype"]]
    return Entry(shape, dtype, partial(_read, raw, shape, dtype))


def _read(raw: memoryview, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return decoded(stored(raw, dtype).reshape(shape), dtype)
