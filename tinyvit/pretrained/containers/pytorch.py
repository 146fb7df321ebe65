"""Files of `torch.save` (``.pth``, ``.pt``, ``.bin``), without PyTorch and without running what they name.

Such a file is a zip file of one folder: ``data.pkl``, a pickle in which each tensor is a call of
`torch._utils._rebuild_tensor_v2` with a storage, an offset, a size and strides, and ``data/<key>``, the bytes of each
storage. `torch.load` ran whatever the pickle named, up to PyTorch 2.6 even when told not to (CVE-2025-32434).

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html and PyTorch's torch/serialization.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Never

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tinyvit.data.pickles import ForbiddenNameError, Global, PickleError, read_pickle
from tinyvit.pretrained.containers.archive import Archive
from tinyvit.pretrained.containers.weights import (
    STORED,
    Entry,
    WeightsError,
    check_growth,
    checked_name,
    checked_numbers,
    checked_shape,
    decoded,
    quoted,
    size_in_bytes,
    stored,
)

MAX_PICKLE = 2**23  # bytes; that of a large ViT with its optimizer is below one million
MAX_PARTS, MAX_DEPTH = 200_000, 32
DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
ADVICE = (
    "in an environment where you trust the file, save the weights alone: "
    "torch.save(torch.load(path, weights_only=False)['model'], 'weights.pth'), or as safetensors"
)


@dataclass(frozen=True)
class _Storage:
    dtype: str
    member: str
    size: int  # in numbers


@dataclass(frozen=True, eq=False)
class _Tensor:
    storage: Any
    offset: Any
    shape: Any
    strides: Any


def is_pytorch(archive: Archive) -> bool:
    """Tell whether a zip file is one of `torch.save` or of TorchScript."""
    return any(_is_pickle(name) for name in archive)


def read_pytorch(archive: Archive) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return the tensors of a file of `torch.save`, unread, and what else it holds: text, numbers, and None.

    A dict within a dict, or a list, adds its key to the name: ``{"model": {"norm.weight": …}, "epoch": 3}`` becomes the
    array "model/norm.weight" and the metadata "epoch".

    Raises:
        WeightsError: the file names anything but tensors and dicts, is TorchScript, or is damaged; a tensor reaches
            past its storage, or repeats it.
    """
    root, data = _root(archive)
    big_endian = _is_big_endian(archive, root)
    storages = partial(_storage, archive, root)
    known: dict[str, Callable[..., Any]] = {
        **dict.fromkeys(DTYPES, _not_called),
        "collections.OrderedDict": _empty_dict,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
    }
    try:
        content = read_pickle(data, known, storages)
    except ForbiddenNameError as error:
        raise WeightsError(f"{error}, be it harmless or not; {ADVICE}") from error
    except PickleError as error:
        raise WeightsError(f"its data.pkl holds no weights: {error}") from error
    entries: dict[str, Entry] = {}
    metadata: dict[str, Any] = {}
    for name, value in _flat(content):
        if name in entries or name in metadata:
            raise WeightsError(f"it holds {quoted(name)} twice")
        if isinstance(value, _Tensor):
            entries[name] = _entry(archive, name, value, big_endian)
        else:
            metadata[name] = value
    check_growth(sum(size_in_bytes(entry.shape, entry.dtype) for entry in entries.values()), archive.file_size)
    return entries, metadata


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def _root(archive: Archive) -> tuple[str, bytes]:
    """The folder in the archive, and its pickle."""
    name, *others = (name for name in archive if _is_pickle(name))
    root = name.removesuffix("data.pkl")
    if others:
        raise WeightsError(f"it has {1 + len(others)} files data.pkl, where torch.save writes one")
    if any(member.startswith((f"{root}code/", f"{root}constants.pkl")) for member in archive):
        raise WeightsError(
            "it is a TorchScript program, as OpenAI's files of CLIP are; take the weights as safetensors from "
            "Hugging Face, or save model.state_dict() in PyTorch"
        )
    if archive.size(name) > MAX_PICKLE:
        raise WeightsError(f"its data.pkl has {archive.size(name):,} bytes; more than {MAX_PICKLE:,} are not read")
    return root, bytes(archive.read(name))


def _is_big_endian(archive: Archive, root: str) -> bool:
    order = bytes(archive.read(f"{root}byteorder"))[:8] if f"{root}byteorder" in archive else b"little"
    if order not in (b"little", b"big"):
        raise WeightsError(f"its byteorder is {quoted(order)}; PyTorch knows little and big")
    return order == b"big"


# --------------------------------------------------------------------------------- in place of what the pickle names


def _not_called(*args: Any) -> Never:
    raise PickleError("it calls a storage, which is only named")


def _empty_dict() -> dict[str, Any]:
    return {}  # its items follow one by one


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *hooks: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *hooks: Any) -> Any:
    return tensor


def _storage(archive: Archive, root: str, id: Any) -> _Storage:
    """Find the storage of a persistent id: ("storage", class, key, device, how many numbers)."""
    if not isinstance(id, tuple) or len(id) != 5 or id[0] != "storage" or not isinstance(id[1], Global):
        raise PickleError("it has a persistent id that is no storage's")
    _, kind, key, _, size = id
    member = f"{root}data/{key}" if isinstance(key, str) and len(key) < 100 else ""
    if member not in archive or kind.name not in DTYPES:
        raise PickleError(f"it has a storage {quoted(key)} of {kind.name}, which is not in the file")
    dtype = DTYPES[kind.name]
    if type(size) is not int or size < 0 or size * np.dtype(STORED[dtype]).itemsize != archive.size(member):
        raise PickleError(f"storage {quoted(key)} of {dtype} has {archive.size(member):,} bytes, which is another size")
    return _Storage(dtype, member, size)


# ----------------------------------------------------------------------------------------- from what it holds to arrays


def _flat(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in dicts and lists within one another, by the path to it."""
    if not isinstance(content, dict):
        raise WeightsError(
            f"it holds a {type(content).__name__.strip('_').lower()}, where a dict of tensors is expected"
        )
    parts = itertools.count()

    def walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        if next(parts) > MAX_PARTS or depth > MAX_DEPTH:  # what a pickle mentions often is in it once
            raise WeightsError(f"it has more than {MAX_PARTS:,} parts, or dicts within {MAX_DEPTH} dicts")
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(inner, checked_name(f"{path}/{_key(key)}" if depth else _key(key)), depth + 1)
        elif value is None or isinstance(value, _Tensor | str | bytes | int | float):
            yield path, value
        else:
            raise WeightsError(f"{quoted(path)} is no tensor, text or number")

    return walk(content, "", 0)


def _key(key: str | bytes | int) -> str:
    if isinstance(key, int):
        return quoted(key)
    return checked_name(key.decode("latin-1") if isinstance(key, bytes) else key)


def _entry(archive: Archive, name: str, tensor: _Tensor, big_endian: bool) -> Entry:
    storage = tensor.storage
    if not isinstance(storage, _Storage) or not isinstance(tensor.strides, tuple | list):
        raise WeightsError(f"{quoted(name)} is a tensor without storage or strides")
    shape = checked_shape(tensor.shape, name)
    offset, *strides = checked_numbers((tensor.offset, *tensor.strides), f"offset and strides of {quoted(name)}")
    if len(strides) != len(shape):
        raise WeightsError(f"{quoted(name)} has the shape {shape}, but strides {strides}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    numbers = size_in_bytes(shape, "uint8")
    if numbers and last >= storage.size:
        raise WeightsError(f"{quoted(name)} reaches to number {last:,} of a storage of {storage.size:,}")
    if numbers > storage.size:
        raise WeightsError(f"{quoted(name)} repeats its storage; save it after .contiguous()")
    return Entry(shape, storage.dtype, partial(_read, archive, storage, offset, shape, tuple(strides), big_endian))


def _read(
    archive: Archive, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], big_endian: bool
) -> np.ndarray:
    if not size_in_bytes(shape, "uint8"):
        return np.zeros(shape, "float32" if storage.dtype == "bfloat16" else storage.dtype)
    numbers = stored(archive.read(storage.member), storage.dtype, big_endian)
    steps = [numbers.itemsize * step for step in strides]
    return decoded(as_strided(numbers[offset:], shape, steps, writeable=False), storage.dtype)
