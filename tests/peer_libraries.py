"""Other libraries as oracles; a test that needs one is skipped where it is missing."""

import warnings
from functools import cache

import pytest


@cache
def torchvision_module():
    """Import torchvision, also where its wheel was built for another PyTorch and its compiled ops do not load."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torchvision = pytest.importorskip("torchvision")
        except RuntimeError:  # it registers shapes for ops that are not there; so let them be there
            library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torchvision_module.library = library  # ops live as long as their library
            torchvision = pytest.importorskip("torchvision")
    return torchvision


def timm_module():
    """Import timm, which imports torchvision."""
    torchvision_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm")


def transformers_module():
    """Import transformers, parts of which import torchvision where there is one."""
    torchvision_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers")
