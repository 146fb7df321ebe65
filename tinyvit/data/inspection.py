"""Looking at a dataset before it is trained on: what it holds (`describe`), and what is wrong with it (`scan`)."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from tinyvit.data.datasets import PARTS, Dataset, Reading, Split, spread
from tinyvit.data.images import BadImage, ImageFiles, in_parallel, open_picture, upright, upright_size
from tinyvit.data.sources import DATASETS, find_pictures, layout, load_dataset

SAMPLE = 1024  # files whose size `describe` looks up
TINY = 32  # pixels: a picture with a shorter side has little to show
EXTREME = 5.0  # a picture that is so many times as long as wide loses most of itself to the centre crop
IMBALANCE = 10.0  # the largest class beside the smallest
SHOWN = 5  # of each fault, in text
AT_ONCE = 256  # images between two steps of a progress bar


@dataclass(frozen=True)
class Listed:
    """A named dataset: whether and where it is on this machine, and what it would take to get it.

    Args:
        place: its folder, or None.
        size: bytes to download; 0 for what comes with tinyvit.
    """

    name: str
    place: Path | None
    size: int
    licence: str


def list_datasets() -> list[Listed]:
    """Return the datasets that have a name.

    >>> [listed.name for listed in list_datasets() if not listed.size]
    ['digits']
    """
    return [Listed(named.name, named.find(), named.size, named.licence) for named in DATASETS.values()]


@dataclass(frozen=True)
class Description:
    """What a dataset holds.

    Args:
        name: of the dataset.
        layout: of its files.
        place: where they are.
        disk_bytes: how much they take up.
        counts: for each split, how many images of each class.
        channels, image_size: what a model is given: C, and (H, W) in pixels.
        file_sizes: the (width, height) of the smallest, the median and the largest picture (by area) of at most
            1,024, where images are in files.
        mean, std: of each channel, in units in which 255 is 1.
        licence, source: where known.
    """

    name: str
    layout: str
    place: Path
    disk_bytes: int
    counts: dict[str, dict[str, int]]
    channels: int
    image_size: tuple[int, int]
    file_sizes: tuple[tuple[int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    source: str

    def to_text(self) -> str:
        """Return it as lines to read."""
        height, width = self.image_size
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        sizes = [f"{width} × {height}" for width, height in self.file_sizes]
        totals = ", ".join(f"{sum(counts.values()):,} {part}" for part, counts in self.counts.items())
        lines = {
            "dataset": self.name,
            "layout": f"{self.layout}, {self.disk_bytes / 1e6:,.1f} MB in {self.place}",
            "images": f"{totals}, of {height}×{width}×{self.channels}",
            "files": f"{sizes[0]} to {sizes[2]} pixels, median {sizes[1]}" if sizes else "",
            "mean": f"{mean}, std {std}",
            "licence": self.licence,
            "source": self.source,
        }
        table = [f"{key:<8} {value}" for key, value in lines.items() if value]
        wide = max(len("class"), *map(len, self.counts["training"]))
        table.append(f"{'class':<{wide}}" + "".join(f"{part:>12}" for part in self.counts))
        for name in self.counts["training"]:
            table.append(f"{name:<{wide}}" + "".join(f"{counts[name]:>12,}" for counts in self.counts.values()))
        return "\n".join(table)

    def to_json(self) -> str:
        """Return it as one JSON object."""
        return json.dumps(asdict(self), default=str, ensure_ascii=False)


def describe(name_or_path: str | Path, reading: Reading = Reading()) -> Description:
    """Return what a dataset holds.

    Raises:
        DataError: as `load_dataset` does.

    >>> description = describe("digits")
    >>> description.layout, description.image_size, sum(description.counts["training"].values())
    ('npz', (8, 8), 1259)
    """
    data = load_dataset(name_or_path, reading)
    known = DATASETS.get(str(name_or_path))
    place = (known.find() if known else None) or Path(name_or_path)
    mean, std = data.statistics()
    return Description(
        name=data.name,
        layout=layout(name_or_path),
        place=place,
        disk_bytes=_disk_bytes(place),
        counts={part: _counts(split, data.classes) for part, split in _splits(data)},
        channels=data.channels,
        image_size=data.image_size,
        file_sizes=_file_sizes(data.train.images) if isinstance(data.train.images, ImageFiles) else (),
        mean=mean,
        std=std,
        licence=data.licence,
        source=known.source if known else "not known",
    )


def _splits(data: Dataset) -> list[tuple[str, Split]]:
    return list(zip(PARTS, (data.train, data.validation, data.test), strict=True))


def _counts(split: Split, classes: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(classes, np.bincount(split.labels, minlength=len(classes)).tolist(), strict=True))


def _disk_bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())


def _file_sizes(images: ImageFiles) -> tuple[tuple[int, int], ...]:
    def size(row: int) -> tuple[int, int] | None:
        try:
            return upright_size(open_picture(images.paths[row]))
        except BadImage:
            return None

    sizes = in_parallel(size, spread(len(images), SAMPLE).tolist(), images.workers)
    ordered = sorted(filter(None, sizes), key=np.prod)
    return tuple(ordered[i] for i in (0, len(ordered) // 2, -1)) if ordered else ()


# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What a look at every image of a dataset has shown. An image is named by its file, or as ``training[7]``.

    Args:
        name: of the dataset.
        images: how many were looked at.
        unreadable: why each image that cannot be used cannot be.
        duplicates: groups of images of one split that are the same, pixel by pixel.
        leaks: groups of the same images that are in more than one split: a test on them is no test.
        contradictions: groups of the same images that have different labels.
        constant: images of one colour.
        tiny: files whose shorter side has fewer than 32 pixels.
        extreme: files more than 5 times as long as wide, or as wide as long.
        sizes: how many files there are of each (width, height), the most frequent first.
        counts: for each split, how many images of each class.
        passed_over: what lies in the folder and was not read as an image.
    """

    name: str
    images: int
    unreadable: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    contradictions: list[list[str]] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)
    extreme: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    @property
    def imbalance(self) -> float:
        """How many times as many training images the largest class has as the smallest; infinite if that has none."""
        counts = self.counts["training"].values()
        return max(counts) / min(counts) if min(counts) else math.inf

    def to_text(self) -> str:
        """Return it as lines to read: how many of each fault, and the first few of them."""
        lines = [f"{self.name}: {self.images:,} images looked at, {len(self.unreadable):,} of them cannot be used"]
        lines += _few([f"{name} {reason}" for name, reason in self.unreadable.items()])
        for title, groups in (
            ("in several splits", self.leaks),
            ("twice in a split", self.duplicates),
            ("under two labels", self.contradictions),
        ):
            lines.append(f"the same image {title}: {len(groups):,}")
            lines += _few([" = ".join(group) for group in groups])
        for title, names in (
            ("of one colour", self.constant),
            (f"with a side under {TINY} pixels", self.tiny),
            (f"more than {EXTREME:g} times as long as wide", self.extreme),
        ):
            lines.append(f"{title}: {len(names):,}")
            lines += _few(names)
        common = list(self.sizes.items())[:SHOWN]
        lines.append(f"{len(self.sizes):,} sizes: " + ", ".join(f"{count:,} of {size}" for size, count in common))
        counts = self.counts["training"]
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        warning = "; the classes are far from balanced" if self.imbalance > IMBALANCE else ""
        lines.append(f"training images a class: {counts[least]:,} ({least}) to {counts[most]:,} ({most}){warning}")
        lines.append(f"passed over: {len(self.passed_over):,}")
        return "\n".join(lines + _few(self.passed_over))

    def to_json(self) -> str:
        """Return it as one JSON object, with every name."""
        imbalance = self.imbalance if math.isfinite(self.imbalance) else None
        return json.dumps({**asdict(self), "imbalance": imbalance}, ensure_ascii=False)


def _few(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return [f"  {line}" for line in lines[:SHOWN]] + more


@dataclass(frozen=True, slots=True)
class _Look:
    """One image: which one, its label, and what its pixels are like."""

    name: str
    part: str
    label: int
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    constant: bool = False
    bad: str = ""


def scan(
    name_or_path: str | Path, reading: Reading = Reading(), on_images: Callable[[int, int], object] = lambda done, of: 0
) -> Scan:
    """Read every image of a dataset, in full, and return what is wrong or suspicious.

    Args:
        name_or_path: as for `load_dataset`.
        reading: the splits; its size and crop do not matter.
        on_images: called now and then with how many images were read since the last time, of how many.

    Raises:
        DataError: where there is no dataset at all.

    >>> found = scan("digits")
    >>> found.images, found.unreadable, found.leaks, round(found.imbalance, 2)
    (1797, {}, [], 1.05)
    """
    data = load_dataset(name_or_path, reading)
    in_files = isinstance(data.train.images, ImageFiles)
    total = sum(len(split) for _, split in _splits(data))
    looks: list[_Look] = []
    for few in _looks(data):
        looks.extend(few)
        on_images(len(few), total)
    good = [look for look in looks if not look.bad]
    groups = _same(good)
    sizes = Counter(f"{look.size[0]} × {look.size[1]}" for look in good)
    return Scan(
        name=data.name,
        images=total,
        unreadable={look.name: look.bad for look in looks if look.bad},
        duplicates=[_names(group) for part in PARTS for group in _same([x for x in good if x.part == part])],
        leaks=[_names(group) for group in groups if len({look.part for look in group}) > 1],
        contradictions=[_names(group) for group in groups if len({look.label for look in group}) > 1],
        constant=_names([look for look in good if look.constant]),
        tiny=_names([look for look in good if in_files and min(look.size) < TINY]),
        extreme=_names([look for look in good if in_files and max(look.size) > EXTREME * min(look.size)]),
        sizes=dict(sizes.most_common()),
        counts={part: _counts(split, data.classes) for part, split in _splits(data)},
        passed_over=find_pictures(name_or_path).passed_over if in_files else [],
    )


def _names(looks: list[_Look]) -> list[str]:
    return [look.name for look in looks]


def _same(looks: list[_Look]) -> list[list[_Look]]:
    groups = defaultdict(list)
    for look in looks:
        groups[look.digest].append(look)
    return [group for group in groups.values() if len(group) > 1]


def _looks(data: Dataset) -> Iterator[list[_Look]]:
    for part, split in _splits(data):
        images, labels = split.images, split.labels.tolist()
        if isinstance(images, np.ndarray):
            look_at, workers = partial(_look_at_array, images, part, labels), 1
        else:
            look_at, workers = partial(_look_at_file, images, part, labels), images.workers
        for start in range(0, len(split), AT_ONCE):
            yield in_parallel(look_at, range(start, min(start + AT_ONCE, len(split))), workers)


def _look_at_array(images: np.ndarray, part: str, labels: list[int], row: int) -> _Look:
    _, height, width = images[row].shape
    return _Look(f"{part}[{row}]", part, labels[row], (width, height), *_facts(images[row]))


def _look_at_file(images: ImageFiles, part: str, labels: list[int], row: int) -> _Look:
    path, label = images.paths[row], labels[row]
    try:
        pixels = np.asarray(upright(open_picture(path), channels=3))
    except BadImage as bad:
        return _Look(path, part, label, bad=str(bad))
    height, width, _ = pixels.shape
    return _Look(path, part, label, (width, height), *_facts(pixels.transpose(2, 0, 1)))


def _facts(image: np.ndarray) -> tuple[bytes, bool]:
    """The digest of an image (C, H, W), and whether it is of one colour."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest(), bool((image == image[:, :1, :1]).all())
