"""Pictures in files, decoded when they are asked for, by threads, into uint8 arrays of one size."""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tinyvit.data.datasets import DataError, Reading

# Only plain pictures: Pillow knows formats, too, that are programs (EPS) or documents.
EXTENSIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **{f".{format.lower()}": format for format in ("PNG", "BMP", "GIF", "WEBP")},
}
FORMATS = tuple(dict.fromkeys(EXTENSIONS.values()))
SAME_FORMAT = {"MPO": "JPEG"}  # a JPEG file that brings along more pictures: what many phones write
BAD_SHARE = 0.01  # of a dataset; if more of it cannot be read, something else is wrong
SHOWN = 10  # bad files that a message names
DRAFT = 2.0  # a picture is decoded smaller where it is still this many times as large as wanted
DRAFTED = ("JPEG", "MPO")

ORIENTATION = 0x0112  # of EXIF: 1 is upright, and these are the turns that make it so
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS, X_REVERSED, Y_REVERSED = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)

Box = Callable[[int, int], tuple[float, float, float, float]]
Decoded = tuple[np.ndarray, np.ndarray]  # images, and which of them could be read
T = TypeVar("T")
R = TypeVar("R")


class BadImage(Exception):  # noqa: N818 - it never leaves the room
    """A picture that cannot be used; the message says why, as what would follow the file's name."""


class ImageFiles:
    """Images in files: what stands in for an array uint8 ``(n, C, H, W)``, and decodes what is asked of it.

    ``images[rows]`` gives what evaluation sees: the upright picture (EXIF's orientation is obeyed), in grey or
    RGB, of which the largest centred part with the proportions of ``(H, W)``, shortened to `crop_ratio` of it,
    is resized, all in one resampling. A large JPEG is decoded at a half, a quarter or an eighth of its size
    where that is still twice as large as wanted; on two photographs that moved pixels by
    0.4 of 255 grey levels on average, and by 10 at most.

    Args:
        paths: the files; the format of each is told by its extension (see `EXTENSIONS`).
        reading: the size, the channels, the crop, the filter, and what is done about bad images. An image is
            bad if it is missing, empty, truncated, damaged, mislabelled (the extension of one format, the
            contents of another) or a decompression bomb (Pillow's ``MAX_IMAGE_PIXELS``, told by its header).

    Attributes:
        workers: threads that decode, one a core unless it is set; the result does not depend on it.
        bad: why each file was skipped; the splits of a folder share it.
        among: images of which at most 1 % may be bad: these, or those of all splits of a folder; infinite where any
            number may be.

    Raises:
        DataError: where Pillow is missing; later, where an image is bad.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (40, 30), (255, 0, 0)).save(f"{folder}/red.png")
    ...     images = ImageFiles([f"{folder}/red.png"], Reading(image_size=2))
    ...     images.shape, images[0].tolist()
    ((1, 3, 2, 2), [[[255, 255], [255, 255]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, paths: Iterable[str | Path], reading: Reading = Reading()) -> None:
        _pillow()
        if reading.channels not in (1, 3):
            raise DataError(f"channels is {reading.channels}; pictures are read as 1 (grey) or 3 (RGB)")
        self.paths = [os.fspath(path) for path in paths]
        self.reading = reading
        self.workers = _cores()
        self.bad: dict[Path, str] = {}
        self.among: float = len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(n, C, H, W)``."""
        return len(self.paths), self.reading.channels, *self.reading.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        images, readable = self.read(np.atleast_1d(rows))
        if not readable.all():
            path = Path(self.paths[int(np.atleast_1d(rows)[~readable][0])])
            raise self._refused(path, self.bad[path])
        return images if rows.ndim else images[0]

    def read(self, rows: Sequence[int] | np.ndarray, boxes: Sequence[Box] | None = None) -> Decoded:
        """Decode some of the images.

        Args:
            rows: which ones, m of them.
            boxes: for each of them what is to be cut out and resized, instead of the centre: a function
                ``box(width, height) -> (left, top, right, bottom)``, in pixels of the upright picture.

        Returns:
            ``(images, readable)``: uint8 ``(m, C, H, W)``, and bool ``(m,)``; images that are not readable are
            black.

        Raises:
            DataError: where an image is bad, or, with ``on_bad_image="skip"``, where more than 1 % of all are.
        """
        rows = [int(row) for row in rows]
        images = np.zeros((len(rows), *self.shape[1:]), np.uint8)
        readable = np.zeros(len(rows), bool)
        cuts: Sequence[Box | None] = boxes if boxes is not None else [None] * len(rows)

        def decode(place: int) -> BadImage | None:
            try:
                images[place] = fit_picture(open_picture(self.paths[rows[place]]), self.reading, cuts[place])
            except BadImage as bad:
                return bad
            readable[place] = True
            return None

        for row, bad in zip(rows, in_parallel(decode, range(len(rows)), self.workers), strict=True):
            if bad:
                path = Path(self.paths[row])
                if self.reading.on_bad_image == "raise":
                    raise self._refused(path, str(bad))
                self.bad[path] = str(bad)
        if len(self.bad) > BAD_SHARE * self.among:
            raise self._too_many()
        return images, readable

    def _too_many(self) -> DataError:
        named = [f"{path} {reason}" for path, reason in self.bad.items()]
        more = [f"… and {len(named) - SHOWN} more"] if len(named) > SHOWN else []
        few = f"at least {len(named)} of {self.among} images cannot be used, which is more than {BAD_SHARE:.0%}"
        return DataError(f"{few}: {'; '.join(named[:SHOWN] + more)}; `tinyvit data scan --list` names them all")

    def _refused(self, path: Path, reason: str) -> DataError:
        may_skip = self.reading.on_bad_image == "raise" and BAD_SHARE * self.among >= 1
        skip = f", or train with --on-bad-image skip, good for up to {BAD_SHARE:.0%} of all" if may_skip else ""
        return DataError(
            f"{path} {reason}; mend it or move it out of the dataset{skip}: `tinyvit data scan` lists all such files"
        )


def read_image(
    path: str | Path, channels: int, size: tuple[int, int], crop_ratio: float = 1.0, interpolation: str = "bilinear"
) -> np.ndarray:
    """Read one image as uint8 (C, H, W), exactly as `ImageFiles` does.

    Args:
        path: a picture in one of the formats in `EXTENSIONS`, told by its contents, whatever its name; or an
            .npy file of uint8 (H, W), (H, W, C) or (C, H, W), already of that size.
        channels: 1 for grey, 3 for RGB.
        size: (H, W) in pixels.
        crop_ratio, interpolation: as in `Reading`.

    Raises:
        DataError: the file is missing or no image, or Pillow is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "one.npy"
    ...     np.save(file, np.zeros((8, 8), np.uint8))
    ...     read_image(file, channels=1, size=(8, 8)).shape
    (1, 8, 8)
    """
    path = _image_file(path)
    if path.suffix == ".npy":
        return _from_npy(path, channels, size)
    if channels not in (1, 3):
        raise DataError(f"an image file gives 1 or 3 channels, but the model takes {channels}: give an .npy file")
    reading = Reading(image_size=size, channels=channels, crop_ratio=crop_ratio, interpolation=interpolation)
    return _made_of(path, lambda picture: fit_picture(picture, reading))


def read_picture(source: Any, channels: int) -> Any:
    """Read one image at its full size: a Pillow image in grey (1) or RGB (3), turned as its EXIF orientation says.

    Args:
        source: a file, told by its contents, whatever its name; or a Pillow image; or uint8 (H, W) or (H, W, C) with C
            1, 3 or 4. What is transparent is shown as the colour that lies there.
        channels: 1 for grey, 3 for RGB.

    Raises:
        DataError: the file is missing or no image (see `ImageFiles`), the array is no picture, or Pillow is not
            installed.
    """
    if isinstance(source, str | os.PathLike):
        return _made_of(_image_file(source), lambda picture: upright(picture, channels))
    _pillow()
    try:
        return upright(_in_memory(source), channels)
    except BadImage as bad:
        raise DataError(f"the image {bad}") from bad.__cause__


def _in_memory(source: Any) -> Any:
    from PIL import Image

    if isinstance(source, Image.Image):
        if 0 in source.size:
            raise BadImage(f"has {source.width} × {source.height} pixels")
        return source
    if not isinstance(source, np.ndarray):
        raise DataError(f"an image is a path, a Pillow image or a uint8 array, not {type(source).__name__}")
    channels = source.shape[2:] if source.ndim > 1 and source.size else None
    if source.dtype != np.uint8 or channels not in ((), (1,), (3,), (4,)):
        raise DataError(f"the image is {source.dtype} {source.shape}; give uint8 (H, W), or (H, W, C) with C 1, 3 or 4")
    return Image.fromarray(source[:, :, 0] if channels == (1,) else source)


def _image_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the image files in it")
    if not path.is_file():
        raise DataError(f"there is no image file {path}")
    return path


def _made_of(path: Path, make: Callable[[Any], R]) -> R:
    _pillow()
    try:
        return make(open_picture(path, by_name=False))
    except BadImage as bad:
        raise DataError(f"{path} cannot be read as an image: it {bad}") from bad.__cause__


def _from_npy(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy's parser raise many types
        raise DataError(f"{path} cannot be read as an .npy file: {str(error).partition(chr(10))[0]}") from error
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] == channels and array.shape[0] != channels:
        array = array.transpose(2, 0, 1)
    if array.dtype != np.uint8 or array.shape != (channels, *size):
        raise DataError(f"{path} holds {array.dtype} {array.shape}; the model takes uint8 {(channels, *size)}")
    return array


# ----------------------------------------------------------------------------------------------------------------------


def _pillow() -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow: pip install 'tinyvit[vision]'") from error
    Image.init()  # now, and not in many threads at once


def open_picture(path: str | Path, by_name: bool = True) -> Any:
    """Return the file as a Pillow image of which only the header was read.

    Raises:
        BadImage: it is missing, empty, no picture, a decompression bomb or, `by_name`, mislabelled.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = Path(path).read_bytes()  # at once, so that no file stays open
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except FileNotFoundError:
        raise BadImage("does not exist") from None
    except UnidentifiedImageError:
        raise BadImage("is empty" if not data else f"is none of {', '.join(FORMATS)}, or has a damaged head") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"is a decompression bomb: {error}") from error
    except Exception as error:  # Pillow's parsers raise many types
        raise BadImage(f"has a damaged head: {_first_line(error)}") from error
    if Image.MAX_IMAGE_PIXELS and math.prod(picture.size) > Image.MAX_IMAGE_PIXELS:
        limit = f"Pillow's MAX_IMAGE_PIXELS are {Image.MAX_IMAGE_PIXELS:,}"
        raise BadImage(f"is a decompression bomb of {picture.width} × {picture.height} pixels: {limit}")
    format = SAME_FORMAT.get(picture.format or "", picture.format)
    if by_name and EXTENSIONS.get(Path(path).suffix.lower(), format) != format:
        raise BadImage(f"is mislabelled: its contents are {format}")
    return picture


def _load(picture: Any) -> None:
    try:
        picture.load()
    except Exception as error:  # Pillow's decoders raise many types
        raise BadImage(f"is truncated or damaged: {_first_line(error)}") from error


def _orientation(picture: Any) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF that is too damaged to be read is no reason to refuse the picture
        return 1


def upright(picture: Any, channels: int) -> Any:
    """Decode a picture in grey or RGB, turned as its EXIF orientation says.

    Raises:
        BadImage: it is truncated or damaged.
    """
    from PIL import Image

    _load(picture)
    turn = TURNS.get(_orientation(picture))
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    return picture.transpose(Image.Transpose[turn]) if turn else picture


def _eight_bits(picture: Any) -> Any:
    """Scale 16-bit grey levels, which Pillow would clip at 255."""
    from PIL import Image

    levels = np.asarray(picture)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise BadImage(f"has pixels of Pillow's mode {picture.mode}, which are not 8 or 16 bits")
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def upright_size(picture: Any) -> tuple[int, int]:
    """Return (width, height) of a picture as it will be when it is upright."""
    width, height = picture.size
    return (height, width) if _orientation(picture) in SIDEWAYS else (width, height)


def fit_picture(picture: Any, reading: Reading, box: Box | None = None) -> np.ndarray:
    """Cut the centre, or a box, out of a Pillow image and resize it, in one: uint8 (C, H, W), as `ImageFiles` says."""
    from PIL import Image

    if picture.format not in DRAFTED:
        _load(picture)  # some formats keep EXIF behind the pixels
    height, width = reading.size
    full = upright_size(picture)
    left, top, right, bottom = box(*full) if box else _centre(*full, reading)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, full[0]), min(bottom, full[1])
    if not (left < right and top < bottom):
        raise DataError(f"a box has nothing in common with the {full[0]} × {full[1]} pixels that it is to be cut from")
    scale = _draft(picture, min((right - left) / width, (bottom - top) / height) / DRAFT)
    decoded, orientation = upright(picture, reading.channels), _orientation(picture)
    # A drafted picture is rounded up to whole pixels; where it was turned, the surplus comes first.
    x = decoded.width - full[0] / scale if orientation in X_REVERSED else 0.0
    y = decoded.height - full[1] / scale if orientation in Y_REVERSED else 0.0
    corners = (
        left / scale + x,
        top / scale + y,
        min(right / scale + x, decoded.width),
        min(bottom / scale + y, decoded.height),
    )
    resized = decoded.resize((width, height), Image.Resampling[reading.interpolation.upper()], corners)
    return np.asarray(resized, np.uint8).reshape(height, width, reading.channels).transpose(2, 0, 1)


def _centre(width: int, height: int, reading: Reading) -> tuple[float, float, float, float]:
    unit = min(width / reading.size[1], height / reading.size[0]) * reading.crop_ratio
    across, down = unit * reading.size[1] / 2, unit * reading.size[0] / 2
    return width / 2 - across, height / 2 - down, width / 2 + across, height / 2 + down


def _draft(picture: Any, shrink: float) -> float:
    """Let a JPEG's blocks be decoded to 4, 2 or 1 pixels a side instead of 8, for a fraction of the work.

    Returns how many times smaller the picture will be: at most `shrink`.
    """
    size = picture.size
    wanted = tuple(math.ceil(side / shrink) for side in size)
    drafted = picture.draft(None, wanted) if shrink >= 2 else None
    return size[0] / drafted[1][2] if drafted else 1.0


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


# ----------------------------------------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="tinyvit-images")


def in_parallel(function: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> list[R]:
    """Return ``[function(item) for item in items]``, computed by this thread and up to ``workers − 1`` of the pool's.

    Without a number of workers there is one a core.
    This thread does all that no other takes up, so that nothing waits for a busy pool, or for one that was left
    behind in another process by a fork.
    """
    jobs = deque(enumerate(items))
    results: dict[int, R] = {}

    def work() -> None:
        while True:
            try:
                place, item = jobs.popleft()
            except IndexError:
                return
            results[place] = function(item)

    helpers = [_pool().submit(work) for _ in range(min(workers or _cores(), len(jobs)) - 1)]
    try:
        work()
    finally:
        jobs.clear()  # after an error, the others stop too
        started = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in started]
    for error in filter(None, errors):
        raise error
    return [results[place] for place in range(len(results))]
