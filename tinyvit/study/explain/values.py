"""Numbers as a page can show them: all of a small array, the range and a histogram of a large one, pictures."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import numpy as np

from tinyvit.engine.backend import to_device

SMALL = 64  # so many numbers are shown one by one
BINS = 32


def described(value: Any) -> dict[str, Any]:
    """What there is to say of a value, as JSON has it: non-finite numbers are the words "nan", "inf" and "-inf".

    Args:
        value: an array of any shape, dtype and device, or anything else.

    Returns:
        For an array: `size`, `nonfinite`, `nans`; `numbers`, nested lists, where there are no more than 64; and for
        more than one number `min`, `max`, `mean`, `std`, `norm` and `zeros` (a share) of the finite ones, with a
        `histogram` of 32 counts between the `edges`. For anything else its `text`.

    >>> described(np.array([1.0, 0.5], np.float32))["numbers"], described("tanh")
    ([1.0, 0.5], {'text': "'tanh'"})
    """
    if not hasattr(value, "dtype"):
        return {"text": text(value)}
    array = np.asarray(to_device(value, "cpu"))
    if array.dtype.kind not in "fiubV":  # V is bfloat16's kind
        return {"text": text(array)}
    wide = np.asarray(array, dtype=np.float64).reshape(-1)
    finite = wide[np.isfinite(wide)]
    shown: dict[str, Any] = {"size": wide.size, "nonfinite": wide.size - finite.size}
    shown["nans"] = int(np.isnan(wide).sum()) if shown["nonfinite"] else 0
    if wide.size <= SMALL:
        shown["numbers"] = _nested(array)
    if wide.size > 1:
        shown |= _statistics(finite)
    return shown


def _statistics(finite: np.ndarray) -> dict[str, Any]:
    if not finite.size:
        return {**dict.fromkeys(("min", "max", "mean", "std", "norm"), "nan"), "zeros": 0.0}
    low, high = float(finite.min()), float(finite.max())
    with np.errstate(over="ignore"):  # the square of a number near the end of float64
        facts = {"min": low, "max": high, "mean": finite.mean(), "std": finite.std(), "norm": _norm(finite)}
        shown: dict[str, Any] = {name: number(x) for name, x in facts.items()}
        shown["zeros"] = number(1 - np.count_nonzero(finite) / finite.size)
        share = (finite - low) / (high - low) if math.isfinite(high - low) and high > low else np.zeros(finite.size)
    places = np.minimum((share * BINS).astype(np.intp), BINS - 1)
    return shown | {"histogram": np.bincount(places, minlength=BINS).tolist(), "edges": [number(low), number(high)]}


def _norm(x: np.ndarray) -> float:
    return math.sqrt(float(x @ x))


def number(x: Any) -> float | str:
    """Six significant digits, or the word for what is no number.

    >>> number(1 / 3), number(float("-inf"))
    (0.333333, '-inf')
    """
    return float(f"{x:.6g}") if math.isfinite(x) else str(float(x))


def in_short(value: dict[str, Any] | None) -> str:
    """What was described, in a few characters: up to four numbers, or from where to where they go.

    >>> in_short(described(np.arange(4.0))), in_short(described(np.linspace(-1, 1, 9))), in_short(None)
    ('0 1 2 3', '-1 … 1', '')
    """
    if not value or "size" not in value:
        return ""
    if value["size"] <= 4:
        return " ".join(f"{float(x):.4g}" for x in np.ravel(np.array(value["numbers"], dtype=float)))
    return f"{float(value['min']):.4g} … {float(value['max']):.4g}"


def _nested(array: np.ndarray) -> Any:
    """Nested lists of the shortest numbers that are these in the array's own dtype."""
    if array.ndim:
        return [_nested(part) for part in array]
    if array.dtype.kind in "iub":
        return int(array)
    x = float(str(array[()]))
    return x if math.isfinite(x) else str(x)


def text(value: Any) -> str:
    """A constant as it is written: an index as between brackets, long things cut off.

    >>> text((slice(None), slice(1, None), 0, Ellipsis)), text(-1)
    ('[:, 1:, 0, ...]', '-1')
    """
    if isinstance(value, tuple) and any(isinstance(part, slice) or part is Ellipsis for part in value):
        words = f"[{', '.join(_part(part) for part in value)}]"
    else:
        words = repr(value)
    return words if len(words) <= 80 else words[:79] + "…"


def _part(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop, part.step)]
        return ":".join(ends if ends[2] else ends[:2])
    return "..." if part is Ellipsis else " ".join(str(part).split())


def flags(value: dict[str, Any] | None, what: str) -> list[str]:
    """What is wrong with a value or a gradient, in words."""
    if not value or "size" not in value or not value["size"]:
        return []
    found = [f"nan in {what}"] if value["nans"] else []
    found += [f"inf in {what}"] if value["nonfinite"] > value["nans"] else []
    zero = value["zeros"] == 1 if "zeros" in value else not any(np.ravel(value["numbers"]).tolist())
    return found or ([f"zero {what}"] if zero else [])


# ------------------------------------------------------------------------------------------------------------ pictures


def png(pixels: np.ndarray) -> str:
    """Encode a picture as a PNG, in a data URI: uint8 (H, W), (H, W, 3) or (H, W, 4).

    Source: the PNG specification, 3rd edition (W3C 2025). Ten lines instead of Pillow, so that the page can be made
    with nothing but tinyvit.

    >>> png(np.zeros((2, 2), np.uint8))[:36]
    'data:image/png;base64,iVBORw0KGgoAAA'
    """
    height, width = pixels.shape[:2]
    colours = {1: 0, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]  # grey, RGB, RGB with alpha
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: not filtered
    header = struct.pack(">2I5B", width, height, 8, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def picture(image: np.ndarray) -> str:
    """A PNG of an image (C, H, W): uint8 as it stands, other numbers from their least to their largest."""
    if image.dtype != np.uint8:
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        scaled = (np.asarray(image, np.float64) - low) / (high - low or 1)
        image = np.rint(255 * np.nan_to_num(scaled)).astype(np.uint8)
    if len(image) in (3, 4):
        return png(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return png(image[0] if len(image) == 1 else np.rint(image.mean(axis=0)).astype(np.uint8))


def rows_as_bytes(rows: np.ndarray) -> tuple[str, list[float]]:
    """Rows of non-negative numbers as bytes in base64, each a share of its row's largest; and these largest.

    >>> rows_as_bytes(np.array([[0.0, 0.5], [1.0, 0.25]]))
    ('AP//QA==', [0.5, 1.0])
    """
    flat = rows.reshape(-1, rows.shape[-1])
    largest = flat.max(axis=-1)
    shares = flat / np.where(largest > 0, largest, 1)[:, None]
    data = base64.b64encode(np.rint(255 * shares).astype(np.uint8).tobytes()).decode()
    return data, [float(f"{x:.4g}") for x in largest]
