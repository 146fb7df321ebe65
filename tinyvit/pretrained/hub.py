"""Weights by name from the Hugging Face Hub, through the library huggingface_hub (the extra `hub`)."""

from __future__ import annotations

from pathlib import Path

from tinyvit.pretrained.containers import PREFERRED, SETTINGS, WeightsError


def is_on_hub(path: str | Path) -> bool:
    """Whether a path is ``hf://owner/name``; made a `Path` it has lost a slash.

    >>> is_on_hub("hf://owner/name"), is_on_hub(Path("hf://owner/name")), is_on_hub("weights.npz")
    (True, True, False)
    """
    return str(path).startswith("hf:/")


def download(address: str | Path) -> Path:
    """Return the folder of ``hf://owner/name`` or ``hf://owner/name@revision``, downloaded once and kept.

    Only weights and their settings are fetched. ``HF_HOME`` and ``HF_HUB_OFFLINE`` are that library's own settings.

    Raises:
        WeightsError: the library is missing, or it cannot fetch them.
    """
    address = str(address).removeprefix("hf:").lstrip("/")
    name, _, revision = address.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(f"hf://{address} needs huggingface_hub: pip install 'tinyvit[hub]'") from error
    try:
        files = [*PREFERRED, "*.safetensors", *SETTINGS]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except Exception as error:  # many types: no such model, no network, a gated one
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"hf://{address} cannot be fetched: {reason}") from error
