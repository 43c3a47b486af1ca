"""The models that ship with the package, and which of them is used where none is named."""

from __future__ import annotations

import os

__all__ = ["BUNDLED_MODELS", "DEFAULT_MODEL", "SELF_CONTAINED", "chosen_model"]

DEFAULT_MODEL = "grace-small"
"""An adapter; the policy that it belongs to is fetched through pip when it is first used."""

SELF_CONTAINED = "grace-nano"
"""A toy that needs nothing to be fetched."""

BUNDLED_MODELS = (DEFAULT_MODEL, SELF_CONTAINED, "grace-nano-base")
"""Models that are known by name; the last is what grace-nano was trained from."""


def chosen_model(model: str | None) -> str:
    """The model of a command: the one that was given, GRACE_MODEL, or the default."""
    return model or os.environ.get("GRACE_MODEL") or DEFAULT_MODEL
