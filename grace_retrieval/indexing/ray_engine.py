"""Deprecated: `RayEngine` is `grace_retrieval.indexing.runners.RayRunner`. This module goes with the next release."""

from __future__ import annotations

import warnings

from grace_retrieval.indexing.runners import RayRunner as RayEngine

__all__ = ["RayEngine"]

warnings.warn(
    "grace_retrieval.indexing.ray_engine.RayEngine is now grace_retrieval.indexing.runners.RayRunner.",
    DeprecationWarning,
    stacklevel=2,
)
