"""tinyvit: a Vision Transformer and the autograd engine beneath it, from arrays alone."""

from typing import TYPE_CHECKING

from tinyvit import engine
from tinyvit.engine import *  # noqa: F403 -- the engine's public names are tinyvit's
from tinyvit.vit import ViT, ViTConfig

__version__ = "0.1.0"
__all__ = ["ViT", "ViTConfig", "__version__"]
__all__ += engine.__all__

if TYPE_CHECKING:
    from tinyvit import study as study
    from tinyvit.pretrained import from_pretrained as from_pretrained
else:

    def __getattr__(name):
        """`tv.study` and `tv.from_pretrained`, loaded when they are first asked for: nobody else needs them."""
        if name == "study":
            import tinyvit.study

            return tinyvit.study
        if name == "from_pretrained":
            import tinyvit.pretrained

            return tinyvit.pretrained.from_pretrained
        raise AttributeError(f"module 'tinyvit' has no attribute {name!r}")
