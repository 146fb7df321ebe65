"""Where datasets come from: a file a family, the table of names, and `load_dataset`, which knows them all."""

from pathlib import Path

from tinyvit.data.datasets import DataError, Dataset, Reading, unknown_name
from tinyvit.data.sources.cifar import ARCHIVES, find_cifar, load_cifar
from tinyvit.data.sources.digits import digits
from tinyvit.data.sources.folders import find_pictures, load_folder
from tinyvit.data.sources.idx import find_idx, load_idx
from tinyvit.data.sources.named import DATASETS, NamedSet
from tinyvit.data.sources.npz import load_npz

__all__ = [
    "DATASETS",
    "NamedSet",
    "digits",
    "find_pictures",
    "layout",
    "load_cifar",
    "load_dataset",
    "load_folder",
    "load_idx",
    "load_npz",
]

KINDS = "an .npz file, an archive of CIFAR, or a folder of pictures or of MNIST's or CIFAR's files"


def load_dataset(name_or_path: str | Path, reading: Reading = Reading()) -> Dataset:
    """Return a dataset by its name, or read it from a file or a folder.

    Args:
        name_or_path: a name in `DATASETS`, which is downloaded if it is nowhere on this machine; or an ``.npz``
            file (`load_npz`), a folder of IDX files (`load_idx`), CIFAR's files or archive (`load_cifar`), or a
            folder of pictures (`load_folder`).
        reading: what the source leaves open.

    Raises:
        DataError: where there is no such name or file, or the file cannot be used.

    >>> load_dataset("digits").name
    'digits'
    >>> load_dataset("digit")
    Traceback (most recent call last):
    tinyvit.data.datasets.DataError: unknown dataset 'digit': did you mean 'digits'? ...
    """
    if (name := str(name_or_path)) in DATASETS:
        return DATASETS[name].load(reading)
    path, kind = Path(name_or_path), layout(name_or_path)
    if kind == "npz":
        return load_npz(path)
    if kind == "IDX":
        known = DATASETS.get(path.resolve().name)
        return load_idx(path, reading, known.classes if known else ())
    return load_folder(path, reading) if kind == "pictures in folders" else load_cifar(path, reading)


def layout(name_or_path: str | Path) -> str:
    """Say what is at a path, or where a name is: npz, IDX, one of CIFAR's layouts, or pictures in folders.

    Raises:
        DataError: nothing that a dataset is read from.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in DATASETS:
        place = DATASETS[name].find()
        return "npz" if name == "digits" else layout(place) if place else "not on this machine"
    if path.suffix.lower() == ".npz":
        return "npz"
    if path.is_dir() and find_idx(path):
        return "IDX"
    if found := find_cifar(path):
        return found[0].title
    if path.is_dir():
        return "pictures in folders"
    if path.exists():
        kind = "is an archive, but not one of CIFAR" if path.name.endswith(ARCHIVES) else "is not a dataset"
        raise DataError(f"{path} {kind}; datasets are read from {KINDS}")
    if path.name != name:
        raise DataError(f"{path} does not exist; give {KINDS}, or one of {', '.join(DATASETS)}")
    raise DataError(f"{unknown_name('dataset', name, DATASETS)}; or give the path of {KINDS}")
