"""What was done to make a model of a file of weights, to the last array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tinyvit.pretrained.preprocessing import Preprocessing
from tinyvit.vit import ViTConfig

SHOWN = 4  # names that a line shows


@dataclass(frozen=True)
class Report:
    """What `from_pretrained` did.

    Attributes:
        source: the file or folder.
        family: whose names they are, in words.
        container: "safetensors", "npz" or "pytorch".
        dtypes: those of the arrays in the file; the model's are float32.
        config: of the model, with its numeric variant: the form of GELU, eps, and how positions are resampled.
        preprocessing: of the images in evaluation.
        mapped: array of the model → the names, in the file, of the arrays that it was made of.
        ignored: array in the file → why it is no part of the model.
        missing: array of the model that the file has not → what it is instead.
        changed: array of the model whose numbers are not the file's → what was done to them.
        guessed: field of the config, or "preprocessing" or "family", that the file does not give → what speaks for the
            value that was taken.
        asked: field that the caller set → what the file has for it, where that is something else.
    """

    source: str
    family: str
    container: str
    dtypes: tuple[str, ...]
    config: ViTConfig
    preprocessing: Preprocessing
    mapped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    guessed: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        c = self.config
        sides = f"{c.height}×{c.width}×{c.channels}"
        model = (
            f"images {sides}, patch {c.patch_size}, width {c.dim}, depth {c.depth}, {c.num_heads} heads, FFN "
            f"{c.mlp_hidden}, {f'{c.num_classes} classes' if c.num_classes else 'no head'}, pooling {c.pool}"
        )
        variant = f"{c.activation}, LayerNorm eps {c.eps:g}, positions {c.position}, resampled {c.resampling}"
        parts = sum(map(len, self.mapped.values()))
        lines = [
            ("", f"{self.source}: {self.family}, {self.container} of {' and '.join(self.dtypes)}"),
            ("model", model),
            ("variant", variant),
            ("images", str(self.preprocessing)),
            ("mapped", f"{parts} arrays of the file to {len(self.mapped)} of the model"),
            *(("changed", f"{name}: {what}") for name, what in self.changed.items()),
            *(("ignored", f"{_shortened(names)}: {why}") for why, names in _grouped(self.ignored)),
            *(("missing", f"{_shortened(names)}: {what}") for what, names in _grouped(self.missing)),
            *(("guessed", f"{name} = {self._value(name)}: {why}") for name, why in self.guessed.items()),
            *(("asked", f"{name} = {self._value(name)}: {before}") for name, before in self.asked.items()),
        ]
        return "\n".join(f"{name:9}{text}" if name else text for name, text in lines)

    def _value(self, name: str) -> object:
        if name in ("preprocessing", "family"):
            return getattr(self, name)
        return getattr(self.config, name)


def _grouped(reasons: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return list(groups.items())


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
