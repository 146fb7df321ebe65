"""Pictures in folders, one a class: with train, val and test above them, or without."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinyvit.data.datasets import PARTS, DataError, Dataset, Reading, Split, held_out
from tinyvit.data.images import EXTENSIONS, ImageFiles

SPLIT_FOLDERS = {"train": "training", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Tree:
    """What a folder of pictures holds.

    Args:
        splits: "training", "validation" or "test" (or "all", where the classes stand in the folder itself), to
            the classes in it, to their pictures, all of them sorted.
        passed_over: files and folders that are hidden, or no pictures, or not within a class.
    """

    splits: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


def find_pictures(path: str | Path) -> Tree:
    """Look through a folder, without opening a picture. The order does not depend on the file system.

    Raises:
        DataError: where there are no classes, a class is empty, or there is a val or test without train.
    """
    path, tree = Path(path), Tree()
    folders = _subfolders(path, tree)
    parts = {folder.name for folder in folders} & SPLIT_FOLDERS.keys()
    if parts and "train" not in parts:
        raise DataError(f"{path} has {', '.join(sorted(parts))}, but no train")
    if {"val", "validation"} <= parts:
        raise DataError(f"{path} has both val and validation; only one can hold the validation images")
    if not parts:
        tree.splits["all"] = _classes(path, folders, tree)
        return tree
    for folder in folders:
        if folder.name in parts:
            tree.splits[SPLIT_FOLDERS[folder.name]] = _classes(folder, _subfolders(folder, tree), tree)
        else:
            tree.passed_over.append(str(folder))
    return tree


def _subfolders(path: Path, tree: Tree) -> list[Path]:
    """Those that are not hidden; all else is passed over."""
    found = sorted(path.iterdir(), key=lambda entry: entry.name)
    folders = [entry for entry in found if entry.is_dir() and not entry.name.startswith(".")]
    chosen = set(folders)
    tree.passed_over.extend(str(entry) for entry in found if entry not in chosen)
    return folders


def _classes(path: Path, folders: list[Path], tree: Tree) -> dict[str, list[str]]:
    if not folders:
        raise DataError(f"{path} holds no folders: pictures lie in one folder a class")
    classes = {folder.name: _pictures(folder, tree) for folder in folders}
    if empty := [name for name, files in classes.items() if not files]:
        raise DataError(f"{path / empty[0]} holds no pictures ({', '.join(EXTENSIONS)}); fill the folder or remove it")
    return classes


def _pictures(folder: Path, tree: Tree) -> list[str]:
    found: list[str] = []
    for where, folders, files in os.walk(folder):
        hidden = {name for name in folders if name.startswith(".")}
        tree.passed_over.extend(os.path.join(where, name) for name in sorted(hidden))
        folders[:] = sorted(hidden.symmetric_difference(folders))
        for name in sorted(files):
            usable = not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
            (found if usable else tree.passed_over).append(os.path.join(where, name))
    return sorted(found)


def load_folder(path: str | Path, reading: Reading = Reading()) -> Dataset:
    """Return the dataset of a folder of pictures, which are decoded only when they are asked for.

    Either ``train/CLASS/…``, ``val/CLASS/…`` (or ``validation``) and ``test/CLASS/…``; of these, val and test
    may be missing, and are then drawn from the training images. Or ``CLASS/…``, of which all three splits are
    drawn. Draws are stratified by class (`Reading.validation`, `Reading.test`, `Reading.split_seed`). Pictures
    may lie in folders within a class. Hidden files, and files with other extensions than those of
    `tinyvit.data.images.EXTENSIONS`, are passed over; ``tinyvit data scan`` tells which.

    Raises:
        DataError: no classes, an empty one, or one that the training images lack.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat/1.png", "cat/2.png", "dog/young/3.png", "dog/old/4.png"):
    ...         Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    ...         Image.new("RGB", (64, 48)).save(Path(folder, name))
    ...     data = load_folder(folder, Reading(image_size=32, validation=0.5, test=0))
    >>> data.classes, data.train.images.shape, data.validation.labels.tolist()
    (('cat', 'dog'), (2, 3, 32, 32), [0, 1])
    """
    path = Path(path)
    splits = find_pictures(path).splits
    whole = splits.get("training") or splits["all"]
    classes = tuple(whole)
    drawn = [part for part in PARTS[1:] if part not in splits]
    shares = tuple(getattr(reading, part) if part in drawn else 0.0 for part in PARTS[1:])
    files, labels = _flat(whole, classes)
    made = {}
    for part, rows in zip(PARTS, held_out(labels, (shares[0], shares[1]), reading.split_seed), strict=True):
        made[part] = Split(ImageFiles([files[row] for row in rows], reading), labels[rows])
    for part in set(splits).difference(("training", "all")):
        if strange := [name for name in splits[part] if name not in classes]:
            raise DataError(f"{path}: the {part} images have a class {strange[0]!r}, which the training images lack")
        files, labels = _flat(splits[part], classes)
        made[part] = Split(ImageFiles(files, reading), labels)
    name = path.resolve().name
    train, validation, test = (made[part] for part in PARTS)
    for split in (validation, test):
        split.images.bad = train.images.bad
    for split in made.values():
        split.images.among = sum(map(len, made.values()))
    return Dataset(name, train, validation, test, classes, "not stated in the files")


def _flat(pictures: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    counts = [len(pictures.get(name, ())) for name in classes]
    return [file for name in classes for file in pictures.get(name, ())], np.repeat(np.arange(len(classes)), counts)
