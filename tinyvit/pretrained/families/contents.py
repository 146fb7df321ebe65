"""What a file of weights holds, under the names of tinyvit: a family's table of names, laid over a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyvit.pretrained.containers import Weights, WeightsError
from tinyvit.pretrained.preprocessing import Preprocessing

Read = Callable[[], np.ndarray]


class Table:
    """A family's names beside tinyvit's, a line each: ``ours  theirs``.

    ``{i}`` is the number of an encoder layer; ``*`` stands for weight and bias; ``{a,b,c}`` for several arrays of
    theirs, whose rows one of ours has one after the other. A name of ours may have several lines: a file has one
    of them.

    Args:
        text: the lines.
        weight: what they call a weight; the file has one of these.

    >>> table = Table("blocks.{i}.attn.qkv.*  layer.{i}.{q,k,v}.*")
    >>> next(table.names(depth=1))
    ('blocks.0.attn.qkv.weight', ('layer.0.q.weight', 'layer.0.k.weight', 'layer.0.v.weight'))
    """

    def __init__(self, text: str, weight: Sequence[str] = ("weight",)) -> None:
        self._lines = [tuple(line.split()) for line in text.strip().splitlines()]
        self._weight = tuple(weight)

    def names(self, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield (ours, theirs), theirs being one name or several, for a model of so many encoder layers."""
        for ours, theirs in self._lines:
            for i in range(depth if "{i}" in ours else 1):
                yield from self._leaves(ours.replace("{i}", str(i)), theirs.replace("{i}", str(i)))

    def _leaves(self, ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        if not ours.endswith("*"):
            yield ours, _spread(theirs)
            return
        for weight in self._weight:
            yield f"{ours[:-1]}weight", _spread(f"{theirs[:-1]}{weight}")
        yield f"{ours[:-1]}bias", _spread(f"{theirs[:-1]}bias")


def _spread(name: str) -> tuple[str, ...]:
    """'a.{q,k}.b' → ('a.q.b', 'a.k.b')."""
    before, brace, rest = name.partition("{")
    inside, _, after = rest.partition("}")
    return tuple(f"{before}{part}{after}" for part in inside.split(",")) if brace else (name,)


@dataclass(frozen=True)
class Contents:
    """The arrays of a file as a family names them: without the dicts and prefixes that they are wrapped in.

    Attributes:
        weights: the file or folder.
        arrays: name → what reads it.
        origin: name → its name in the file.
        passed_over: names in the file that are not looked at → why.
    """

    weights: Weights
    arrays: Mapping[str, Read]
    origin: Mapping[str, str]
    passed_over: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``config.json`` says; empty where there is none."""
        return self.weights.settings.get("config.json", {})

    @property
    def preprocessor(self) -> dict[str, Any]:
        """What ``preprocessor_config.json`` says; empty where there is none."""
        return self.weights.settings.get("preprocessor_config.json", {})

    def has(self, pattern: str) -> bool:
        """Whether a name matches a regular expression from its beginning."""
        return any(re.match(pattern, name) for name in self.arrays)


@dataclass(frozen=True)
class Description:
    """What a family knows of a model beyond the shapes of its arrays.

    Attributes:
        config: fields of `ViTConfig`.
        preprocessing: what its images go through.
        classes: names of the classes, or ().
        guessed: field → why it was taken, where the file does not say it.
        positions: (grid, D) → the table (1, N, D) that the family makes anew, where it keeps none.
    """

    config: Mapping[str, Any]
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    guessed: Mapping[str, str] = field(default_factory=dict)
    positions: Callable[[tuple[int, int], int], np.ndarray] | None = None


def rows_together(ours: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array, or several one after the other."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@dataclass(frozen=True)
class Family:
    """A way to keep the weights of a ViT.

    Attributes:
        name: for `from_pretrained(family=…)`, and reports.
        title: in words.
        table: their names.
        recognises: whether a file looks like it.
        describe: what the names and shapes do not show.
        convert: theirs → ours, of one array of ours and its parts.
        ignored: regular expressions of names that are no part of the model → why.
    """

    name: str
    title: str
    table: Table
    recognises: Callable[[Contents], bool]
    describe: Callable[[Contents, Anatomy], Description]
    convert: Callable[[str, Sequence[np.ndarray]], np.ndarray] = rows_together
    ignored: Mapping[str, str] = field(default_factory=dict)


class Named(Mapping[str, np.ndarray]):
    """A file's arrays under tinyvit's names, read when they are asked for.

    Attributes:
        sources: our name → their names.
        ignored: their name → why it is no part of the model.
        unexpected: their names that nobody knows.
    """

    def __init__(self, contents: Contents, family: Family) -> None:
        self._contents, self._convert = contents, family.convert
        self.sources: dict[str, tuple[str, ...]] = {}
        for ours, theirs in family.table.names(_depth(contents)):
            if all(name in contents.arrays for name in theirs):
                self.sources[ours] = theirs
        used = {name for theirs in self.sources.values() for name in theirs}
        rest = [name for name in contents.arrays if name not in used]
        reasons = {name: _reason(name, family.ignored) for name in rest}
        self.ignored = {name: reason for name, reason in reasons.items() if reason} | dict(contents.passed_over)
        self.unexpected = [name for name, reason in reasons.items() if not reason]

    def __getitem__(self, ours: str) -> np.ndarray:
        arrays = [self._contents.arrays[name]() for name in self.sources[ours]]
        try:
            return self._convert(ours, arrays)
        except (IndexError, TypeError, ValueError) as error:
            shapes = ", ".join(str(array.shape) for array in arrays)
            where = f"{self._contents.weights.path}: {', '.join(self.sources[ours])}"
            raise WeightsError(f"{where} of shape {shapes} make no {ours}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __contains__(self, name: object) -> bool:
        return name in self.sources


def _depth(contents: Contents) -> int:
    numbers = re.findall(r"(?:blocks\.|layer\.|encoderblock_)(\d{1,9})[./]", "\n".join(contents.arrays))
    depth = 1 + max(map(int, numbers), default=-1)
    if depth > len(contents.arrays):  # and a loop over so many layers would not end
        raise WeightsError(
            f"{contents.weights.path} names a layer {depth - 1:,}, but holds {len(contents.arrays):,} arrays"
        )
    return depth


def _reason(name: str, ignored: Mapping[str, str]) -> str:
    return next((reason for pattern, reason in ignored.items() if re.match(pattern, name)), "")


# ----------------------------------------------------------------------------------------------------------------------

HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # So400m, H, g, G; else 64 numbers a head
GIANTS = {True: 24, False: 16}  # 1536 wide: DINOv2's giant, with SwiGLU, and g-opt


@dataclass(frozen=True)
class Anatomy:
    """What the shapes of a ViT's arrays show.

    Attributes:
        config: fields of `ViTConfig`, all but those that no shape shows.
        positions: rows of the position table.
    """

    config: dict[str, Any]
    positions: int

    @property
    def usual_heads(self) -> int | None:
        """How many heads models of this width have in the literature; None where there are none."""
        dim = self.config["dim"]
        if dim == 1536:
            return GIANTS[self.config.get("activation") == "swiglu"]
        return HEADS.get(dim, dim // 64 if dim % 64 == 0 else None)

    def grid_of(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Patches down and across in an image of this size."""
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        return sides[0] // self.config["patch_size"], sides[1] // self.config["patch_size"]


def anatomy(path: Any, named: Mapping[str, np.ndarray]) -> Anatomy:
    """Read off the arrays what model they are of.

    Raises:
        WeightsError: an array without which there is no ViT is missing, or has another number of axes.
    """
    kernel = _array(path, named, "patch_embed.proj.weight", 4)
    fc1, fc2 = (_array(path, named, f"blocks.0.mlp.{name}.weight", 2) for name in ("fc1", "fc2"))
    (dim, channels, patch, other), hidden = kernel.shape, fc2.shape[1]
    if patch != other:
        raise WeightsError(f"{path}: patches of {patch}×{other} pixels are no squares, and a ViT here has square ones")
    depth = 1 + max(int(match[1]) for name in named for match in [re.match(r"blocks\.(\d+)\.", name)] if match)
    config: dict[str, Any] = {
        "dim": dim,
        "channels": channels,
        "patch_size": patch,
        "depth": depth,
        "mlp_ratio": ratio_for(dim, hidden),
        "class_token": "cls_token" in named,
        "distillation_token": "dist_token" in named,
        "register_tokens": named["reg_token"].shape[1] if "reg_token" in named else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in named,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in named else 0.0,
        "pool_norm": "fc_norm.weight" in named,
        "pre_logits": named["pre_logits.weight"].shape[0] if "pre_logits.weight" in named else 0,
        "num_classes": named["head.weight"].shape[0] if "head.weight" in named else 0,
    }
    if len(fc1) == 2 * hidden:
        config["activation"] = "swiglu"
    positions = named["pos_embed"].shape[1] if "pos_embed" in named else 0
    return Anatomy(config, positions)


def _array(path: Any, named: Mapping[str, np.ndarray], name: str, axes: int) -> np.ndarray:
    if name not in named:
        raise WeightsError(f"{path} has nothing that could be {name}: it is no whole ViT")
    if named[name].ndim != axes:
        raise WeightsError(f"{path}: {name} has the shape {named[name].shape}, where {axes} axes are expected")
    return named[name]


def ratio_for(dim: int, hidden: int) -> float:
    """Return the `mlp_ratio` that gives this hidden width: rounding may take it one below.

    >>> int(1152 * ratio_for(1152, 4304))
    4304
    """
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else float(np.nextafter(ratio, np.inf))
