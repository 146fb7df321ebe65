"""The tutorial's table: every part of a ViT, what goes in and comes out, and how many numbers it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvit.vit import ViTConfig


@dataclass(frozen=True)
class Row:
    """One part of the model; the counts are for one image, and for all layers where there are several."""

    layer: str
    input: str
    output: str
    details: str
    formula: str
    parameters: int


def summary(config: ViTConfig) -> list[Row]:
    """Return the table for a config, by formula: no weight is made, so that the largest model costs nothing.

    Source: the tutorial's table of layers. Its formulas leave out biases, LayerNorm, the class token and its
    position; they are counted here.

    >>> sum(row.parameters for row in summary(ViTConfig.named("vit_base_patch16_224")))
    86567656
    """
    c = config
    N, P, C, D, L, K, M = c.num_patches, c.patch_size, c.channels, c.dim, c.depth, c.num_classes, c.mlp_hidden
    T = N + c.num_prefix_tokens
    positions = N + int(c.class_token)
    image, patched, tokens = f"{c.height} × {c.width} × {C}", f"{N} × {D}", f"{T} × {D}"
    rows = [
        Row("Input Image", image, "", "", "", 0),
        Row("Patch Embedding", image, patched, f"{P} × {P}, flatten", "(P²·C)·D + D", P * P * C * D + D),
    ]
    if c.class_token:
        rows.append(Row("Class Token", patched, f"{N + 1} × {D}", "learned", "D", D))
    learned = c.position == "learned"
    rows.append(
        Row(
            "Positional Encoding",
            f"{positions} × {D}",
            f"{positions} × {D}",
            "add to embedding" + ("" if learned else ", fixed sin-cos"),
            ("(N+1)·D" if c.class_token else "N·D") if learned else "0",
            positions * D if learned else 0,
        )
    )
    if c.register_tokens:
        rows.append(Row("Register Tokens", f"{positions} × {D}", tokens, "learned", "R·D", c.register_tokens * D))
    qkv_bias = 3 * D if c.qkv_bias else 0
    attention = 3 * D * D + qkv_bias + D * D + D
    scale, scale_text = (2 * D, " + 2D LayerScale") if c.layer_scale else (0, "")
    rows += [
        Row(
            f"Transformer Blocks × {L}: MHSA",
            tokens,
            tokens,
            f"{c.num_heads} heads of {D // c.num_heads}",
            "L·(4D² + 4D)" if c.qkv_bias else "L·(4D² + D)",
            L * attention,
        ),
        Row(
            f"Transformer Blocks × {L}: FFN",
            tokens,
            tokens,
            f"{D} → {M} → {D}, {c.activation}",
            "L·(2·D·M + M + D)",
            L * (2 * D * M + M + D),
        ),
        Row(
            f"Transformer Blocks × {L}: norms",
            tokens,
            tokens,
            "2 LayerNorms, residuals",
            f"L·(4D{scale_text})",
            L * (4 * D + scale),
        ),
        Row("Final LayerNorm", tokens, tokens, "", "2D", 2 * D),
        Row("Classifier Head", f"{D}", f"{K}", f"linear, on {_pooled(c)}", "D·K + K", D * K + K),
    ]
    return rows


def _pooled(config: ViTConfig) -> str:
    return "the class token" if config.pool == "cls" else "the mean of the patches"


def to_text(rows: Sequence[Row]) -> str:
    """Lay the table out for a terminal, with the total below."""
    header = ("Layer", "Input", "Output", "Details", "Parameters formula", "Parameters")
    cells = [
        header,
        *((r.layer, r.input, r.output, r.details, r.formula, f"{r.parameters:,}") for r in rows),
        ("Total", "", "", "", "", f"{sum(r.parameters for r in rows):,}"),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(w) if i == 5 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "─" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
