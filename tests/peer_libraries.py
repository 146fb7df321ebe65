"""The libraries that others use: timm and transformers beside torchvision, where they are installed."""

import functools

import pytest

torch = pytest.importorskip("torch")


@functools.cache
def torchvision_module():
    """Torchvision, whatever build of PyTorch it was compiled for: two of its ops are declared if they are not there."""
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision = pytest.importorskip("torchvision")
    torchvision._declared = library  # as long as it lives, they stay declared
    return torchvision


def timm_module():
    """Timm, which imports torchvision."""
    torchvision_module()
    return pytest.importorskip("timm")


def transformers_module():
    """Transformers, some of which imports torchvision where there is one."""
    torchvision_module()
    return pytest.importorskip("transformers")
