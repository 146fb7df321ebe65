"""The tutorial's table: every part of a ViT, what goes in and comes out, what it learns, computes and keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvit.vit import ViTConfig

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Row:
    """One part of the model; the counts are for one image, and for all layers where there are several.

    Attributes:
        layer, input, output, details: what it is, and the shapes (without the batch) that go in and come out.
        formula, parameters: the numbers it learns.
        multiply_adds: of its matrix products in the forward pass, one multiplication and one addition together
            counted as one: the linear layers, Q · Kᵀ and A · V. What is done number by number is not counted:
            biases, LayerNorm, softmax, activations, residuals, dropout, pooling.
        skipped: how many of these a call of the model leaves out: with pool "cls", after the last layer's attention
            only those tokens go on that the head reads. `features`, and the figures of the literature, have them.
        activation_numbers: how many numbers the tape keeps of it from the forward pass to the backward sweep in
            training: what the backward rules asked for, each array once. A view keeps the whole array that it looks
            at. Parameters are not counted; the patches of the image are, in the Patch Embedding.
    """

    layer: str
    input: str
    output: str
    details: str
    formula: str
    parameters: int
    multiply_adds: int = 0
    activation_numbers: int = 0
    skipped: int = 0


def summary(config: ViTConfig, kernels: bool = True) -> list[Row]:
    """Return the table for a config, by formula: no weight is made, so that the largest model costs nothing.

    Args:
        config: of the model.
        kernels: count what is kept where the CPU's kernels compute, as in training on a CPU with Numba. Without them,
            on a GPU for instance, the backward rules compute anew each token's mean and scale (LayerNorm) and A.

    Source: the tutorial's table of layers. Its formulas leave out biases, LayerNorm, the class token and its
    position; they are counted here. What is computed and kept follows from the layers, and from what their backward
    rules name (`tinyvit.engine.ops`) and their kernels keep: with T tokens, hidden width M and h heads, an encoder
    layer takes 4·T·D² + 2·T²·D + 2·T·D·M multiply-adds and keeps (8·D + 4)·T + h·T² + 2·T·M numbers, without kernels
    8·D·T + 2·T·M (ReLU: T·M instead of 2·T·M). With pool "cls" the last layer keeps less. Dropout, attention dropout,
    DropPath and LayerScale, where the config has them, keep more, which is counted too. With `checkpoint` all layers
    but the last keep their input alone, T·D, and are computed again when the sweep comes to them. The loss is no part
    of the model: cross-entropy keeps 2·K numbers an image beside these.

    >>> rows = summary(ViTConfig.named("vit_base_patch16_224"))
    >>> sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)
    (86567656, 17563828224)
    >>> rows[4].layer, rows[4].activation_numbers
    ('Transformer Blocks × 12: MHSA', 14515728)
    """
    return [*_embedding_rows(config), *_encoder_rows(config, kernels), *_head_rows(config, kernels)]


def _embedding_rows(c: ViTConfig) -> list[Row]:
    N, P, C, D = c.num_patches, c.patch_size, c.channels, c.dim
    image, patched, tokens = f"{c.height} × {c.width} × {C}", f"{N} × {D}", f"{_num_tokens(c)} × {D}"
    weights, kept = P * P * C * D, N * P * P * C
    cut = f"{P} × {P}, flatten"
    rows = [
        Row("Input Image", image, "", "", "", 0),
        Row("Patch Embedding", image, patched, cut, "(P²·C)·D + D", weights + D, N * weights, kept),
    ]
    before, after = _token_rows(c)
    rows += [*before, _position_row(c), *after]
    if c.dropout:
        mask = _num_tokens(c) * D
        rows.append(Row("Embedding Dropout", tokens, tokens, f"p = {c.dropout:g}", "0", 0, 0, mask))
    return rows


def _token_rows(c: ViTConfig) -> tuple[list[Row], list[Row]]:
    """The tokens that are put before the patches: those that have a position, and those that have none."""
    rows, N, D = [], c.num_patches, c.dim
    for name, formula, n in (
        ("Class Token", "D", int(c.class_token)),
        ("Distillation Token", "D", int(c.distillation_token)),
        ("Register Tokens", "R·D", c.register_tokens),
    ):
        if n:
            rows.append(Row(name, f"{N} × {D}", f"{N + n} × {D}", "learned", formula, n * D))
        N += n
    placed = c.num_class_tokens if c.class_position else 0
    return rows[:placed], rows[placed:]


def _position_row(c: ViTConfig) -> Row:
    prefix = c.num_class_tokens if c.class_position else 0
    N = c.num_patches + prefix
    layer, details, placed = "Positional Encoding", "add to embedding", f"{N} × {c.dim}"
    if c.position != "learned":
        return Row(layer, placed, placed, f"{details}, fixed sin-cos", "0", 0)
    return Row(layer, placed, placed, details, f"(N+{prefix})·D" if prefix else "N·D", N * c.dim)


def _encoder_rows(c: ViTConfig, kernels: bool) -> list[Row]:
    T, D, L, M = _num_tokens(c), c.dim, c.depth, c.mlp_hidden
    full = 0 if c.checkpoint else max(L - 1, 0)  # the layers, beside the last, of which everything is kept
    last = min(L, 1)
    unread = last * (T - _num_read(c))
    tokens, name = f"{T} × {D}", f"Transformer Blocks × {L}"
    scale, scale_text = (2 * D, " + 2D LayerScale") if c.layer_scale else (0, "")
    attention = (
        f"{c.num_heads} heads of {D // c.num_heads}",
        "L·(4D² + 4D)" if c.qkv_bias else "L·(4D² + D)",
        L * (4 * D * D + (4 * D if c.qkv_bias else D)),
        L * (4 * T * D * D + 2 * T * T * D),
        full * _kept_by_attention(c, kernels, T) + last * _kept_by_attention(c, kernels, _num_read(c)),
        unread * D * D,
    )
    columns = 2 if c.activation == "swiglu" else 1  # of W₁, in units of M
    feed_forward = (
        f"{D} → {M} → {D}, {c.activation}",
        f"L·({1 + columns}·D·M + {columns if columns > 1 else ''}M + D)",
        L * ((1 + columns) * D * M + columns * M + D),
        L * (1 + columns) * T * D * M,
        full * _kept_by_feed_forward(c, T) + last * _kept_by_feed_forward(c, _num_read(c)),
        unread * (1 + columns) * D * M,
    )
    kept = full * _kept_by_norms(c, kernels, T) + last * _kept_by_norms(c, kernels, _num_read(c))
    if c.drop_path:
        kept += 2 * min(full + last, max(L - 1, 0))  # whether an image takes a branch; the very first layer has none
    norms = ("2 LayerNorms, residuals", f"L·(4D{scale_text})", L * (4 * D + scale), 0, kept)
    rows = [
        Row(f"{name}: MHSA", tokens, tokens, *attention),
        Row(f"{name}: FFN", tokens, tokens, *feed_forward),
        Row(f"{name}: norms", tokens, tokens, *norms),
    ]
    if full + last < L:
        details = "checkpoint: of all layers but the last"
        rows.append(Row(f"{name}: inputs", tokens, tokens, details, "0", 0, 0, (L - full - last) * T * D))
    return rows


def _head_rows(c: ViTConfig, kernels: bool) -> list[Row]:
    T, D, K, W = _num_tokens(c), c.dim, c.num_classes, c.pre_logits
    pooled = {"cls": "the class token", "mean": "the mean of the patches", "cls_mean": "class token and mean"}[c.pool]
    norms = 1 if c.pool_norm else _num_read(c) if c.depth else T
    rows = [
        Row(
            "Final LayerNorm",
            f"{T} × {D}",
            f"{D}" if c.pool_norm else f"{T} × {D}",
            f"of {pooled}" if c.pool_norm else "",
            "2D",
            2 * D,
            0,
            norms * (D + (2 if kernels else 0)),
        )
    ]
    width, name = c.pooled_dim, "2D" if c.pool == "cls_mean" else "D"
    if W:
        kept = width + (0 if K else W)  # tanh's result is the head's input
        rows.append(
            Row(
                "Pre-Logits",
                f"{width}",
                f"{W}",
                f"tanh, on {pooled}",
                f"{name}·W + W",
                (width + 1) * W,
                width * W,
                kept,
            )
        )
        width, name = W, "W"
    if K:
        details = "linear" if W else f"linear, on {pooled}"
        rows.append(
            Row("Classifier Head", f"{width}", f"{K}", details, f"{name}·K + K", (width + 1) * K, width * K, width)
        )
    if K and c.distillation_token:
        details = "linear, on the distillation token"
        rows.append(Row("Distillation Head", f"{D}", f"{K}", details, "D·K + K", (D + 1) * K, D * K, D))
    return rows


def _num_tokens(c: ViTConfig) -> int:
    """T, of the encoder: patches, and the tokens before them."""
    return c.num_patches + c.num_prefix_tokens


def _num_read(c: ViTConfig) -> int:
    """How many of them go on after the last layer's attention."""
    return c.num_class_tokens if c.pool == "cls" else _num_tokens(c)


# ------------------------------------------------------------- what the tape keeps, in numbers, for one image and layer


def _kept_by_attention(c: ViTConfig, kernels: bool, read: int) -> int:
    """Of a layer in which so many tokens go on after attention."""
    tokens = _num_tokens(c) * c.dim
    scores = c.num_heads * _num_tokens(c) ** 2
    kept = 4 * tokens + read * c.dim  # the input; Q, K and V, in one array; the heads' results side by side
    if c.attention_dropout:
        kept += tokens + 3 * scores  # not fused then: the scaled Q; A, the mask and what it leaves of A
    elif kernels:
        kept += scores  # A
    if c.dropout:
        kept += read * c.dim  # the mask
    return kept


def _kept_by_feed_forward(c: ViTConfig, read: int) -> int:
    tokens, hidden = read * c.dim, read * c.mlp_hidden
    relu = c.activation == "relu"
    # The input; ReLU's result alone, gelu's x and x · Φ(x), or swiglu's [a, b], σ(a), a · σ(a) and a · σ(a) · b.
    kept = tokens + {"relu": 1, "swiglu": 5}.get(c.activation, 2) * hidden
    if c.dropout:
        kept += tokens + hidden  # the masks; W₂ needs what the first one leaves of the activation's result
        kept += hidden if relu else 0  # and ReLU needs its result as well, where gelu can do without
    return kept


def _kept_by_norms(c: ViTConfig, kernels: bool, read: int) -> int:
    kept = (_num_tokens(c) + read) * (c.dim + (2 if kernels else 0))  # the inputs, and a kernel's means and scales
    return kept + (2 * read * c.dim if c.layer_scale else 0)  # the branches, before they are scaled


# -------------------------------------------------------------------------------------------------------------- totals


def totals(rows: Sequence[Row], batch: int = 1) -> dict[str, int]:
    """Add the rows up, for one image and for a batch.

    Args:
        rows: of `summary`.
        batch: images a batch, at least 1.

    Returns:
        `parameters`, and `parameter_bytes` in float32; `multiply_adds`, how many of these a call of the model skips
        (`skipped_multiply_adds`) and `activation_numbers` for one image;
        `batch_multiply_adds` of a forward pass; `batch_activation_bytes`, what the tape keeps between forward and
        backward in float32 (the arrays that live for a moment, the gradients and the optimizer's state come on top).
        A train step, forward and backward, takes about three times the forward's multiply-adds: each product has two
        gradients, only the image's is not computed. Q · Kᵀ is computed once more without kernels, and all layers but
        the last with `checkpoint`: about four times in all.

    Raises:
        ValueError: the batch is below 1.

    >>> totals(summary(ViTConfig.named("vit_tiny_patch16_224")), batch=2)["batch_multiply_adds"]
    2507366400
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    parameters = sum(row.parameters for row in rows)
    multiply_adds = sum(row.multiply_adds for row in rows)
    numbers = sum(row.activation_numbers for row in rows)
    return {
        "parameters": parameters,
        "parameter_bytes": parameters * FLOAT32,
        "multiply_adds": multiply_adds,
        "skipped_multiply_adds": sum(row.skipped for row in rows),
        "batch_multiply_adds": multiply_adds * batch,
        "activation_numbers": numbers,
        "batch_activation_bytes": numbers * batch * FLOAT32,
    }


def _facts(rows: Sequence[Row], batch: int) -> list[tuple[str, str]]:
    """What stands below the table: (name, sentence)."""
    total = totals(rows, batch)
    of_batch = f"for a batch of {'1 image' if batch == 1 else f'{batch:,} images'}"
    parameters = f"{total['parameters']:,}, {_mebibytes(total['parameter_bytes'])} in float32"
    multiply_adds = (
        f"{_short(total['multiply_adds'])} an image, {_short(total['batch_multiply_adds'])} {of_batch}, forward; "
        "a train step takes about three times that, four with checkpoint"
    )
    activations = (
        f"{_short(total['activation_numbers'])} numbers an image, {_mebibytes(total['batch_activation_bytes'])} in "
        f"float32 {of_batch}: what the tape keeps from forward to backward"
    )
    facts = [("Parameters", parameters), ("Multiply-Adds", multiply_adds), ("Activations", activations)]
    if skipped := total["skipped_multiply_adds"]:
        left_out = (
            f"{_short(skipped)} of these an image: after the last attention, of tokens that the head does not read"
        )
        facts.insert(2, ("Skipped", left_out))
    return facts


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _short(number: float) -> str:
    """17563828224 → "17.56 G"."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 1000:
            return f"{number:.4g}{unit}"
        number /= 1000
    return f"{number:,.1f} P"


# ------------------------------------------------------------------------------------------------------------- formats

HEADER = (
    "Layer Type", "Input Dimension", "Output Dimension", "Details", "Parameters Formula", "Number of Parameters",
    "Multiply-Adds", "Activations",
)  # fmt: skip
WORDS = 5  # the columns before those of numbers


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table without its header; the last line is the total."""
    total = totals(rows)
    sums = total["parameters"], total["multiply_adds"], total["activation_numbers"]
    lines = [
        (r.layer, r.input, r.output, r.details, r.formula, r.parameters, r.multiply_adds, r.activation_numbers)
        for r in (*rows, Row("Total", "", "", "", "", *sums))
    ]
    return [tuple(cell if isinstance(cell, str) else f"{cell:,}" for cell in line) for line in lines]


def to_text(rows: Sequence[Row], batch: int = 1) -> str:
    """Lay the table out for a terminal, counts for one image, with totals and what a batch takes below.

    Raises:
        ValueError: the batch is below 1.

    >>> print(to_text(summary(ViTConfig.named("vit_tiny_patch16_224"))).splitlines()[-4])
    Parameters     5,717,416, 21.8 MiB in float32
    """
    cells = [(*HEADER[:WORDS], "Parameters", *HEADER[WORDS + 1 :]), *_cells(rows)]  # short, to fit 160 columns
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < WORDS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    rule = "─" * len(lines[0])
    facts = [f"{name:15}{fact}" for name, fact in _facts(rows, batch)]
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", *facts])


def to_markdown(rows: Sequence[Row], batch: int = 1) -> str:
    """Write the table in GitHub's Markdown, with the tutorial's columns, and what a batch takes as a list below.

    Raises:
        ValueError: the batch is below 1.

    >>> config = ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=10, dim=32, depth=2, num_heads=2)
    >>> print(to_markdown(summary(config)).splitlines()[3])
    | Patch Embedding | 8 × 8 × 1 | 4 × 32 | 4 × 4, flatten | (P²·C)·D + D | 544 | 2,048 | 64 |
    """
    *body, total = _cells(rows)
    bold = tuple(f"**{cell}**" if cell else "" for cell in total)
    alignment = ("---",) * WORDS + ("---:",) * (len(HEADER) - WORDS)
    table = ["| " + " | ".join(line) + " |" for line in (HEADER, alignment, *body, bold)]
    return "\n".join([*table, "", *(f"- **{name}**: {fact}" for name, fact in _facts(rows, batch))])
