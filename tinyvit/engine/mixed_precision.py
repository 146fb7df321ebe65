"""In what numbers a GPU computes the products of a model, and keeps what lies between them.

    fp32   float32 throughout
    tf32   float32, rounded to 10 bits of mantissa on the way into a product
    bf16   products and activations in bfloat16
    fp16   products and activations in float16, whose small range needs a scaled loss (`training.LossScale`)

Parameters, their gradients, the sums inside a product, the statistics of LayerNorm and softmax, and the residual stream
stay in float32 in all four: a fused op's kernel converts what it reads and writes. On a CPU, and for float64, there is
nothing to choose, and the block changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PRECISIONS = {"fp32": None, "tf32": None, "bf16": "bfloat16", "fp16": "float16"}  # the dtype of activations, if 16-bit


_name = ContextVar("precision", default="fp32")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Compute fused ops on a GPU in "fp32", "tf32", "bf16" or "fp16" inside the block.

    The backward sweep computes as the forward did, inside the block or outside.

    Raises:
        ValueError: the name is unknown.

    Source: Micikevicius et al., *Mixed Precision Training*, ICLR 2018; Kalamkar et al. 2019 for bfloat16.

    >>> import tinyvit as tv
    >>> with tv.precision("bf16"):
    ...     loss = tv.ops.linear(tv.tensor([[1.0]]), tv.tensor([[2.0]])).sum()
    >>> loss
    Tensor(2., dtype=float32)
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}: use one of {', '.join(PRECISIONS)}")
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def current() -> str:
    """Return the name of the precision that holds here."""
    return _name.get()


def half() -> str | None:
    """Return the 16-bit dtype of activations, or None where they are float32."""
    return PRECISIONS[_name.get()]
