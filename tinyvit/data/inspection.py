"""Looking at a dataset before it is trained on: what it holds (`describe`), and what is wrong with it (`scan`)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from tinyvit.data.datasets import PARTS, DataError, Dataset, Reading, Split, spread
from tinyvit.data.download import in_bytes
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
        files: the names of what is downloaded.
        licence: the terms, and whom to credit.
        source: the publication to cite.
    """

    name: str
    place: Path | None
    size: int
    files: tuple[str, ...]
    licence: str
    source: str

    def to_text(self) -> str:
        """Return what is known of it without its files, as lines to read."""
        lines = {
            "dataset": self.name,
            "place": str(self.place or f"not on this machine; `tinyvit data get {self.name}` fetches it"),
            "download": f"{in_bytes(self.size)}: {', '.join(self.files)}" if self.files else "none",
            "licence": self.licence,
            "source": self.source,
        }
        return _lines(lines)

    def to_json(self) -> str:
        """Return it as one JSON object."""
        return json.dumps(asdict(self), default=str, ensure_ascii=False)


def list_datasets() -> list[Listed]:
    """Return the datasets that have a name.

    >>> [listed.name for listed in list_datasets() if not listed.size]
    ['digits']
    """
    return [
        Listed(n.name, n.find(), n.size, tuple(file.name for file in n.files), n.licence, n.source)
        for n in DATASETS.values()
    ]


def to_table(listed: Sequence[Listed]) -> str:
    """Return a line a dataset, under headings; of the licences only their short names."""
    rows = [("name", "download", "licence", "place")]
    for one in listed:
        place = str(one.place or "not here") if one.files else "comes with tinyvit"
        rows.append((one.name, in_bytes(one.size) if one.files else "none", re.split("[:;]", one.licence)[0], place))
    return "\n".join(f"{name:<14} {size:>9}  {licence:<18}  {place}" for name, size, licence, place in rows)


def not_here(name_or_path: str | Path) -> Listed | None:
    """Return the named dataset that is not on this machine, or None where there is no such, or it is.

    >>> not_here("digits") is None
    True
    """
    return next((one for one in list_datasets() if one.name == str(name_or_path) and not one.place), None)


def _load(name_or_path: str | Path, reading: Reading) -> Dataset:
    if missing := not_here(name_or_path):
        fetch = f"`tinyvit data get {missing.name}` fetches it ({in_bytes(missing.size)})"
        raise DataError(f"{missing.name} is not on this machine; {fetch}")
    return load_dataset(name_or_path, reading)


def _lines(values: dict[str, str]) -> str:
    return "\n".join(f"{key:<8} {value}" for key, value in values.items() if value)


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
        mean, std: of each channel, in units in which 255 is 1; of those of at most 1,024 files that can be used.
        licence, source: where known.
        unusable: why each of these files that cannot be used cannot be.
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
    unusable: dict[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return it as lines to read."""
        height, width = self.image_size
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        looked_at = min(SAMPLE, sum(self.counts["training"].values()))
        unusable = f"{len(self.unusable):,} of {looked_at:,} training files looked at"
        totals = ", ".join(f"{sum(counts.values()):,} {part}" for part, counts in self.counts.items())
        lines = {
            "dataset": self.name,
            "layout": f"{self.layout}, {in_bytes(self.disk_bytes)} in {self.place}",
            "images": f"{totals}, of {height}×{width}×{self.channels}",
            "files": _sizes(self.file_sizes),
            "unusable": f"{unusable}; `tinyvit data scan` names all" if self.unusable else "",
            "mean": f"{mean}, std {std}" if mean else "",
            "licence": self.licence,
            "source": self.source,
        }
        table = [_lines(lines)]
        wide = max(len("class"), *map(len, self.counts["training"]))
        table.append(f"{'class':<{wide}}" + "".join(f"{part:>12}" for part in self.counts))
        for name in self.counts["training"]:
            table.append(f"{name:<{wide}}" + "".join(f"{counts[name]:>12,}" for counts in self.counts.values()))
        return "\n".join(table)

    def to_json(self) -> str:
        """Return it as one JSON object."""
        return json.dumps(asdict(self), default=str, ensure_ascii=False)


def describe(name_or_path: str | Path, reading: Reading = Reading()) -> Description:
    """Return what a dataset holds; files that cannot be used are left out of the statistics, however many they are.

    Raises:
        DataError: as `load_dataset` does, and where a named dataset is not on this machine: nothing is downloaded.

    >>> description = describe("digits")
    >>> description.layout, description.image_size, sum(description.counts["training"].values())
    ('npz', (8, 8), 1259)
    """
    data = _load(name_or_path, replace(reading, on_bad_image="skip"))
    images = data.train.images
    if isinstance(images, ImageFiles):
        images.among = math.inf
    known = DATASETS.get(str(name_or_path))
    place = (known.find() if known else None) or Path(name_or_path)
    mean, std = _statistics(data)
    return Description(
        name=data.name,
        layout=layout(name_or_path),
        place=place,
        disk_bytes=_disk_bytes(place),
        counts={part: _counts(split, data.classes) for part, split in _splits(data)},
        channels=data.channels,
        image_size=data.image_size,
        file_sizes=_file_sizes(images) if isinstance(images, ImageFiles) else (),
        mean=mean,
        std=std,
        licence=data.licence,
        source=known.source if known else "not known",
        unusable={str(path): why for path, why in images.bad.items()} if isinstance(images, ImageFiles) else {},
    )


def _statistics(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        return data.statistics()
    except DataError:  # not one picture of the sample can be used
        return (), ()


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
    return _by_area(size for size in sizes if size)


def _by_area(sizes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The smallest, the median and the largest."""
    ordered = sorted(sizes, key=math.prod)
    return tuple(ordered[i] for i in (0, len(ordered) // 2, -1)) if ordered else ()


def _sizes(by_area: tuple[tuple[int, int], ...]) -> str:
    sizes = [f"{width} × {height}" for width, height in by_area]
    if len(set(sizes)) < 2:
        return "".join(f"all of {size} pixels" for size in sizes[:1])
    return f"{sizes[0]} to {sizes[2]} pixels, median {sizes[1]}"


# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What a look at every image of a dataset has shown. An image is named by its file, or as ``training[7]``.

    Args:
        name: of the dataset.
        images: how many were looked at.
        unreadable: why each image that cannot be used cannot be.
        duplicates: groups of images of one split and one class that are the same, pixel by pixel.
        leaks: groups of the same images that are in more than one split: a test on them is no test.
        contradictions: groups of the same images that have different labels.
        constant: images of one colour.
        tiny: files whose shorter side has fewer than 32 pixels.
        extreme: files more than 5 times as long as wide, or as wide as long.
        sizes: how many images there are of each (width, height), the most frequent first.
        size_range: the (width, height) of the smallest, the median and the largest image (by area).
        counts: for each split, how many images of each class.
        passed_over: what lies in the folder and was not read as an image.
        in_files: whether images are in files; if not, nothing is looked for that concerns files: `tiny`, `extreme` and
            `passed_over`.
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
    size_range: tuple[tuple[int, int], ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    in_files: bool = True

    @property
    def imbalance(self) -> float:
        """How many times as many training images the largest class has as the smallest; infinite if that has none."""
        counts = self.counts["training"].values()
        return max(counts) / min(counts) if min(counts) else math.inf

    def to_text(self) -> str:
        """Return it as lines to read: how many of each fault, and the first few of them."""
        lines = [f"{self.name}: {self.images:,} images looked at, {len(self.unreadable):,} of them cannot be used"]
        lines += _few([f"{name} {reason}" for name, reason in self.unreadable.items()])
        both = [group for group in self.contradictions if group in self.leaks]
        for title, groups, above in (
            ("in several splits", self.leaks, []),
            ("twice in a class of a split", self.duplicates, []),
            ("under two labels", self.contradictions, both),
        ):
            lines.append(
                f"the same image {title}: {len(groups):,}" + (f", {len(above):,} of them above" if above else "")
            )
            lines += _few([" = ".join(group) for group in groups if group not in above])
        named = {"of one colour": self.constant}
        if self.in_files:
            named[f"with a side under {TINY} pixels"] = self.tiny
            named[f"more than {EXTREME:g} times as long as wide"] = self.extreme
            named["passed over"] = self.passed_over
        for title, names in named.items():
            lines.append(f"{title}: {len(names):,}")
            lines += _few(names)
        if self.size_range:
            lines.append(f"sizes: {_sizes(self.size_range)}")
        return "\n".join([*lines, f"training images a class: {self._balance()}"])

    def _balance(self) -> str:
        counts = self.counts["training"]
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        if counts[most] == counts[least]:
            return f"{counts[most]:,} each"
        warning = "; the classes are far from balanced" if self.imbalance > IMBALANCE else ""
        return f"{counts[least]:,} ({least}) to {counts[most]:,} ({most}){warning}"

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
        DataError: where there is no dataset at all, or a named one is not on this machine: nothing is downloaded.

    >>> found = scan("digits")
    >>> found.images, found.unreadable, found.leaks, round(found.imbalance, 2)
    (1797, {}, [], 1.05)
    """
    data = _load(name_or_path, reading)
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
        duplicates=[_names(group) for group in _same(good, lambda look: (look.part, look.label, look.digest))],
        leaks=[_names(group) for group in groups if len({look.part for look in group}) > 1],
        contradictions=[_names(group) for group in groups if len({look.label for look in group}) > 1],
        constant=_names([look for look in good if look.constant]),
        tiny=_names([look for look in good if in_files and min(look.size) < TINY]),
        extreme=_names([look for look in good if in_files and max(look.size) > EXTREME * min(look.size)]),
        sizes=dict(sizes.most_common()),
        size_range=_by_area(look.size for look in good),
        counts={part: _counts(split, data.classes) for part, split in _splits(data)},
        passed_over=find_pictures(name_or_path).passed_over if in_files else [],
        in_files=in_files,
    )


def _names(looks: list[_Look]) -> list[str]:
    return [look.name for look in looks]


def _same(looks: list[_Look], key: Callable[[_Look], object] = lambda look: look.digest) -> list[list[_Look]]:
    groups = defaultdict(list)
    for look in looks:
        groups[key(look)].append(look)
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
