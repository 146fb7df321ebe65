"""How many threads a matrix product gets.

In a small product a second thread gains next to nothing, and BLAS threads that wait for one another spin: beside any
other busy process they cost many times what they could save. So runs of small models compute on one thread.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits

from tinyvit.vit import ViTConfig

SMALL_PRODUCT = 1e8  # multiply-adds; below it two threads gain a few per cent at best, and on a busy machine lose


def blas_threads(count: int | None) -> AbstractContextManager[None]:
    """Let matrix products use so many threads inside the block; None: as many as the library likes.

    >>> with blas_threads(1):
    ...     pass
    """
    limits: AbstractContextManager[None] = threadpool_limits(count, user_api="blas")
    return limits


def threads_for(config: ViTConfig, batch_size: int) -> int | None:
    """Return 1 where even the largest product of a step is small, else None, for `blas_threads`.

    >>> threads_for(ViTConfig(image_size=8, patch_size=4, channels=1, dim=64, num_heads=4), batch_size=128)
    1
    """
    tokens = batch_size * (config.num_patches + config.num_prefix_tokens)
    return 1 if tokens * config.dim * config.mlp_hidden < SMALL_PRODUCT else None
