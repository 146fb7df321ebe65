"""Files and folders of weights as others publish them, read without pickle and without running anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tinyvit.pretrained.containers.archive import Archive
from tinyvit.pretrained.containers.npz import read_npz
from tinyvit.pretrained.containers.pytorch import ADVICE, is_pytorch, read_pytorch
from tinyvit.pretrained.containers.safetensors import read_safetensors
from tinyvit.pretrained.containers.weights import Entry, Weights, WeightsError, mapped, nonfinite, parse_json, quoted

__all__ = ["PREFERRED", "SETTINGS", "SUFFIXES", "Weights", "WeightsError", "nonfinite", "open_weights", "read_settings"]

INDEX = ".safetensors.index.json"
PREFERRED = (  # in a folder; the first that is there is taken
    "model.safetensors",
    f"model{INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
SETTINGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")
MAX_JSON = 2**24  # bytes
MAX_SHARDS = 1000
OTHERS = {  # what a file of another kind begins with, and what to do
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": f"PyTorch wrote it before 1.6, as several pickles; {ADVICE}",
    b"\x80": f"it is a bare pickle, which can run anything; {ADVICE}",
    b"\x89HDF": "it is an HDF5 file, of Keras or TensorFlow; take the safetensors of the same model",
    b"version https://git-lfs": "it is only Git LFS's note of where the weights are; fetch them with git lfs pull",
    b"<": "it is a web page, maybe that of an error; fetch the file itself",
}


def open_weights(path: str | Path) -> Weights:
    """Open a file or a folder of weights: safetensors, also in shards, ``.npz``, or what `torch.save` wrote.

    What kind of file it is is seen from its contents. No code in a file is run, and no more memory is taken than its
    size allows. Arrays are read when they are asked for.

    Of a folder, the weights are ``model.safetensors``, else its shards with ``model.safetensors.index.json``, else
    ``open_clip_model.safetensors``, ``pytorch_model.bin``, ``open_clip_pytorch_model.bin``, else the only file of
    weights that there is; ``config.json``, ``preprocessor_config.json`` and ``open_clip_config.json`` are parsed
    (`Weights.settings`).

    Raises:
        WeightsError: the file is missing, damaged, hostile, or of another kind; one sentence says which.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "weights.npz"
    ...     np.savez(file, **{"head/kernel": np.eye(2, dtype=np.float32)})
    ...     weights = open_weights(file)
    ...     list(weights), weights.container, weights.shape("head/kernel"), weights.dtype("head/kernel")
    ...     weights["head/kernel"]
    (['head/kernel'], 'npz', (2, 2), 'float32')
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    try:
        return _open(Path(path))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def read_settings(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Parse those of ``config.json``, ``preprocessor_config.json`` and ``open_clip_config.json`` that a folder has.

    Raises:
        WeightsError: one of them is no sound JSON object, or has more than 16 MiB.
    """
    return {name: _read_json(Path(folder) / name) for name in SETTINGS if (Path(folder) / name).is_file()}


def _open(path: Path) -> Weights:
    if path.is_dir():
        return _open_folder(path)
    return _open_shards(path) if path.name.endswith(INDEX) else _open_file(path)


def _open_folder(folder: Path) -> Weights:
    candidates = [folder / name for name in PREFERRED if (folder / name).is_file()]
    candidates = candidates or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not candidates:
        raise WeightsError(f"{folder} holds no weights; expected is one of {', '.join((*PREFERRED, *SUFFIXES))}")
    if len(candidates) > 1 and candidates[0].name not in PREFERRED:
        raise WeightsError(
            f"{folder} holds {', '.join(quoted(file.name) for file in candidates[:9])}; name one of them"
        )
    return _open(candidates[0]).with_settings(folder, read_settings(folder))


def _open_shards(index: Path) -> Weights:
    """Open the files that ``*.safetensors.index.json`` names: {"metadata": …, "weight_map": {array: file}}.

    Source: https://huggingface.co/docs/safetensors/main/en/index, as the library transformers writes it.
    """
    content = _read_json(index)
    places, metadata = content.get("weight_map"), content.get("metadata", {})
    if not isinstance(places, dict) or not isinstance(metadata, dict):
        raise WeightsError(f"{index} must hold a weight_map: the name of a file for each array")
    for file in places.values():
        # Else an index that somebody sends would decide what is read on this machine.
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]{0,199}\.safetensors", file, re.ASCII):
            raise WeightsError(f"{index} names {quoted(file)}, where the plain name of a safetensors file is expected")
    if len(files := dict.fromkeys(places.values())) > MAX_SHARDS:
        raise WeightsError(f"{index} names {len(files):,} files, more than {MAX_SHARDS:,}")
    entries: dict[str, Entry] = {}
    for file in files:
        shard = _open_file(index.parent / file).entries()
        if shard.keys() != {name for name, place in places.items() if place == file}:
            raise WeightsError(f"{index} and {file} disagree about which arrays are there; fetch both again")
        entries |= shard
    return Weights(index, "safetensors", {name: entries[name] for name in places}, metadata)


def _open_file(path: Path) -> Weights:
    try:
        if not path.is_file():
            raise WeightsError("it is no file" if path.exists() else "it does not exist; check the path")
        container, entries, metadata = _read(path, mapped(path))
        if not entries:
            raise WeightsError("it holds no arrays")
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    return Weights(path, container, entries, metadata)


def _read(path: Path, data: memoryview) -> tuple[str, dict[str, Entry], dict[str, Any]]:
    head = bytes(data[:265])
    if head[:4] == b"PK\3\4":
        archive = Archive(path, data)
        if is_pytorch(archive):
            return "pytorch", *read_pytorch(archive)
        return "npz", *read_npz(archive)
    if head[8:9] == b"{":
        return "safetensors", *read_safetensors(data)
    if head[257:262] == b"ustar":
        raise WeightsError(f"it is a tar archive; unpack it, or, where an old PyTorch wrote it, {ADVICE}")
    for begin, advice in OTHERS.items():
        if head.startswith(begin):
            raise WeightsError(advice)
    raise WeightsError("it is neither safetensors nor .npz nor a file of torch.save, or its beginning is damaged")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise WeightsError(f"it has more than {MAX_JSON:,} bytes")
        return parse_json(text)
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
