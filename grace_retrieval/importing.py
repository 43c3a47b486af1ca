"""Importing torch, transformers and sentence-transformers without what costs time and is not needed for it.

Two things are left out. Python's collector of circular garbage, which looks through all objects again and again while
a million of them are made and none becomes garbage. And scikit-learn, with which scipy's statistics and pandas come:
sentence-transformers imports it for one function, the Manhattan distance of sparse vectors.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["light_imports"]

_METRICS = "sklearn.metrics"


@contextmanager
def light_imports() -> Iterator[None]:
    """Import large libraries in a block; see the module."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with _metrics_when_called():
            yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _metrics_when_called() -> Iterator[None]:
    """Let `sklearn.metrics` be imported in the block without scikit-learn, which is loaded when it is used."""
    # find_spec of a name without a dot imports nothing.
    spec = None if "sklearn" in sys.modules else importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        yield
        return
    standing = _Metrics(_METRICS)
    # So that modules inside of it can be imported in the block, too.
    standing.__path__ = [str(Path(folder) / "metrics") for folder in spec.submodule_search_locations]
    sys.modules[_METRICS] = standing
    try:
        yield
    finally:
        if any(name.startswith(f"{_METRICS}.") for name in sys.modules):
            _real_metrics()
        elif isinstance(sys.modules.get(_METRICS), _Metrics):
            del sys.modules[_METRICS]


class _Metrics(ModuleType):
    """Stands for `sklearn.metrics`: has the one function that is asked for, and gets everything else from there."""

    @staticmethod
    def pairwise_distances(*args: Any, **kwargs: Any) -> Any:
        """As in scikit-learn, which is imported now."""
        return _real_metrics().pairwise_distances(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            raise AttributeError(f"module {_METRICS!r} has no attribute {name!r}")
        return getattr(_real_metrics(), name)


def _real_metrics() -> ModuleType:
    """Import `sklearn.metrics`, with the modules of it that are there already as its attributes."""
    if isinstance(sys.modules.get(_METRICS), _Metrics):
        del sys.modules[_METRICS]
    real = importlib.import_module(_METRICS)
    for name, module in list(sys.modules.items()):
        parent, _, own = name.rpartition(".")
        if parent == _METRICS:
            setattr(real, own, module)
    return real
