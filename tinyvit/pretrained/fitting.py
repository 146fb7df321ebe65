"""The arrays of a file brought to the shapes of a model: other sizes of image and patch, channels and classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.engine import Tensor
from tinyvit.layers import RESAMPLINGS
from tinyvit.pretrained.containers import WeightsError, nonfinite
from tinyvit.pretrained.families.contents import Anatomy, Description, Named
from tinyvit.pretrained.resizing import adapt_channels, resize_patches, resize_positions
from tinyvit.vit import ViTConfig

USUAL_SIZE = 224  # pixels, where neither positions nor settings tell
SHOWN = 5


class Fitting:
    """A file's arrays, and the model that they are brought to.

    Args:
        path: of the file, for errors.
        named: its arrays under tinyvit's names.
        anatomy: what their shapes show.
        description: what the family knows.
        asked: fields of the config that the caller set.

    Attributes:
        native: the config of the model as the file has it.
        config: that of the model to be made.
        guessed, asked, changed, ignored, missing: as in `Report`.
        used: array of the model → the arrays of the file, by their family's names, that it is made of.

    Raises:
        WeightsError: the arrays make no ViT.
        ValueError: what is asked for makes none.
    """

    def __init__(
        self, path: Path, named: Named, anatomy: Anatomy, description: Description, asked: Mapping[str, Any]
    ) -> None:
        self.path, self.named, self.description = path, named, description
        self.guessed = dict(description.guessed)
        self.changed: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.ignored: dict[str, str] = {}
        self.used: dict[str, tuple[str, ...]] = {}
        # our name → what makes the array, unless it is the file's
        self._edits: dict[str, Callable[[], np.ndarray]] = {}
        facts = {**anatomy.config, **description.config}
        self._heads(anatomy, facts, asked)
        self._tokens(anatomy, facts, asked)
        self.native = self._as_config(facts)
        self.config = self._wanted(asked)
        before = {name: getattr(self.native, name) for name in asked}
        self.asked = {name: f"the file has {old}" for name, old in before.items() if old != asked[name]}

    # ------------------------------------------------------------------------------------------ the model of the file

    def _heads(self, anatomy: Anatomy, facts: dict[str, Any], asked: Mapping[str, Any]) -> None:
        if "num_heads" in asked:
            facts["num_heads"] = asked["num_heads"]
        if "num_heads" in facts:
            return
        if anatomy.usual_heads is None:
            raise WeightsError(f"{self.path} does not say how many heads it has, nor does its width: give num_heads")
        facts["num_heads"] = anatomy.usual_heads
        self.guessed["num_heads"] = f"models of width {facts['dim']} have as many"

    def _tokens(self, anatomy: Anatomy, facts: dict[str, Any], asked: Mapping[str, Any]) -> None:
        """Find out which tokens have a position, and what grid the patches had."""
        if facts.get("position") == "sincos":  # of a model of tinyvit, whose config is whole
            return
        n, registers = int(facts["class_token"]) + int(facts["distillation_token"]), facts["register_tokens"]
        if not anatomy.positions:
            grid = self._made_positions(anatomy, facts, asked)
            facts["image_size"] = _pixels(grid, facts["patch_size"])
            return
        may_have = {n, 0, n + registers} if facts.pop("class_position", True) else {0}
        stated = anatomy.grid_of(facts["image_size"]) if "image_size" in facts else None
        grids = {k: _grid(anatomy.positions - k, stated) for k in sorted(may_have, reverse=True)}
        fits = [(k, grid) for k, grid in grids.items() if grid]
        if not fits:
            raise WeightsError(
                f"{self.path} has {anatomy.positions} positions, which do not go with "
                + (f"images of {facts['image_size']} pixels" if stated else "a square of patches: its size is unknown")
            )
        placed, grid = next((fit for fit in fits if fit[0] == n), fits[0])
        facts |= {"image_size": _pixels(grid, facts["patch_size"]), "class_position": placed > 0 or not n}
        if placed > n:
            self._fold_positions(n, registers)
        if facts["distillation_token"] and facts["num_classes"] and "head_dist.weight" not in self.named:
            self._fold_distillation(facts, placed > 0)

    def _made_positions(self, anatomy: Anatomy, facts: dict[str, Any], asked: Mapping[str, Any]) -> tuple[int, int]:
        if self.description.positions is None:
            raise WeightsError(f"{self.path} has no positions (pos_embed): it is no whole ViT")
        size = facts.get("image_size", asked.get("image_size", USUAL_SIZE))
        grid, make, dim = anatomy.grid_of(size), self.description.positions, facts["dim"]
        self._edits["pos_embed"] = lambda: make(grid, dim)
        self.changed["pos_embed"] = "none is in the file: made anew, as sines and cosines of row and column"
        if "image_size" not in asked:
            self.guessed["image_size"] = "the usual size"
        facts["class_position"] = False
        return grid

    def _fold_positions(self, n: int, registers: int) -> None:
        """Registers that have a position: their sum is what the model sees."""
        table, tokens = self.named["pos_embed"], self.named["reg_token"]
        self._edits["reg_token"] = lambda: tokens + table[:, n : n + registers]
        self._edits["pos_embed"] = lambda: np.delete(table, range(n, n + registers), axis=1)
        self.changed["reg_token"] = "the registers' positions are added to them"
        self.changed["pos_embed"] = "without those of the registers"

    def _fold_distillation(self, facts: dict[str, Any], placed: bool) -> None:
        """A distillation token that no head reads is a register."""
        table, token = self.named["pos_embed"], self.named["dist_token"]
        self._edits["reg_token"] = lambda: token + table[:, 1:2] if placed else token
        if placed:
            self._edits["pos_embed"] = lambda: np.delete(table, 1, axis=1)
            self.changed["pos_embed"] = "without that of the distillation token"
        facts |= {"distillation_token": False, "register_tokens": 1}
        self.changed["reg_token"] = "the distillation token, which no head reads, with its position"

    def _as_config(self, facts: Mapping[str, Any]) -> ViTConfig:
        known = {f.name for f in fields(ViTConfig)}
        facts = {name: value for name, value in facts.items() if name in known}
        if facts["pool"] == "cls_mean" and not facts["num_classes"]:
            facts["pool"] = "cls"
        try:
            return ViTConfig(**facts)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{self.path} describes no ViT: {error}") from error

    def _wanted(self, asked: Mapping[str, Any]) -> ViTConfig:
        """The config with what the caller asked for; a new head stands on the tokens, and not on pre-logits."""
        changes = dict(asked)
        if changes.get("num_classes", self.native.num_classes) != self.native.num_classes:
            changes["pre_logits"] = 0
        return replace(self.native, **changes)

    def check_size(self, numbers: int) -> None:
        """Refuse a file of so many numbers that lets a model look larger, before memory is taken for it."""
        c = self.config
        if c.depth * c.dim * (4 * c.dim + 2 * c.mlp_hidden) > numbers:
            raise WeightsError(
                f"{self.path} has {numbers:,} numbers, too few for {c.depth} layers of width {c.dim} and {c.mlp_hidden}"
            )

    # ----------------------------------------------------------------------------------------------------- the arrays

    def arrays(self, wanted: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return all arrays of the model, whose parameters are `wanted`.

        Raises:
            WeightsError: the file lacks one, has one that nobody knows, or one has NaN or infinities.
        """
        made = {}
        for name, p in wanted.items():
            if self._is_new_head(name):
                made[name] = np.zeros(p.shape, np.float32)
                self.missing[name] = f"a new head of {self.config.num_classes} classes, zero at first"
            elif name in self.named or name in self._edits:
                made[name] = self._fitted(name)
        self._check_all_there(wanted, made)
        if bad := nonfinite(made):
            name, count = next(iter(bad.items()))
            raise WeightsError(f"{self.path}: {name} has {count:,} numbers that are NaN or infinite")
        return made

    def _is_new_head(self, name: str) -> bool:
        return name.startswith("head") and self.config.num_classes != self.native.num_classes

    def _fitted(self, name: str) -> np.ndarray:
        array = self._edits.get(name, lambda: self.named[name])()
        how = RESAMPLINGS[self.config.resampling]
        if name == "pos_embed" and self.native.grid != self.config.grid:
            prefix = self.native.num_class_tokens if self.native.class_position else 0
            (h, w), (new_h, new_w) = self.native.grid, self.config.grid
            told = f"resampled from {h}×{w} to {new_h}×{new_w} patches ({self.config.resampling})"
            self.changed[name] = "; ".join(filter(None, (self.changed.get(name), told)))
            return resize_positions(array, self.native.grid, self.config.grid, how, prefix)
        if name == "patch_embed.proj.weight":
            return self._fitted_patches(array)
        return array

    def _fitted_patches(self, kernel: np.ndarray) -> np.ndarray:
        P, C = self.config.patch_size, self.config.channels
        told = []
        if kernel.shape[1] != C:
            told.append(f"from {kernel.shape[1]} to {C} channels")
        if kernel.shape[2] != P:
            told.append(f"from {kernel.shape[2]} to {P} pixels a side, products kept")
        if told:
            self.changed["patch_embed.proj.weight"] = ", ".join(told)
        how = replace(RESAMPLINGS[self.config.resampling], offset=0.0)  # which is for grids of patches
        return resize_patches(adapt_channels(kernel, C), (P, P), how)

    def _check_all_there(self, wanted: Mapping[str, Tensor], made: Mapping[str, np.ndarray]) -> None:
        head = "the head that was asked for is another" if self.config.num_classes else "no head was asked for"
        for ours, theirs in self.named.sources.items():
            if ours.startswith(("head", "pre_logits")) and self.config.num_classes != self.native.num_classes:
                self.ignored |= dict.fromkeys(theirs, head)
        folded = {"dist_token"} if "dist_token" not in wanted and "reg_token" in self._edits else set()
        left = [
            name
            for ours, theirs in self.named.sources.items()
            if ours not in made and ours not in folded and theirs[0] not in self.ignored
            for name in theirs
        ]
        self.used = {
            n: theirs
            for n, theirs in self.named.sources.items()
            if (n in made and n not in self.missing) or n in folded
        }
        lacking = [name for name in wanted if name not in made]
        for names, what in (
            (lacking, "lacks"),
            ([*left, *self.named.unexpected], "has arrays that no ViT here takes:"),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                raise WeightsError(f"{self.path} {what} {', '.join(names[:SHOWN])}{more}")
        wrong = [n for n, array in made.items() if array.shape != wanted[n].shape]
        if wrong:
            name = wrong[0]
            raise WeightsError(f"{self.path}: {name} is {made[name].shape}, where {wanted[name].shape} is expected")


def _grid(patches: int, stated: tuple[int, int] | None) -> tuple[int, int] | None:
    """The grid of so many patches: the stated one, or a square, where it fits."""
    if stated:
        return stated if patches == stated[0] * stated[1] else None
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None


def _pixels(grid: tuple[int, int], patch: int) -> int | tuple[int, int]:
    h, w = (side * patch for side in grid)
    return h if h == w else (h, w)
