"""Every error that grace-retrieval raises on purpose.

    GraceError
    ├── InputError (ValueError)            a text, argument or file that cannot be used
    ├── ModelLoadError (OSError)           a model folder that is missing, damaged or of another kind
    ├── ModelMismatchError (ValueError)    vectors of another model, prompt or dimension; both are named
    ├── MissingExtraError (ImportError)    an optional dependency that is not installed
    ├── EngineError (RuntimeError)         generation or pooling failed
    │   └── NonFiniteEmbeddingError        the model produced NaN or infinity
    ├── IndexCorruptedError (RuntimeError) a file of an index is damaged or missing; nothing was changed
    └── CacheError (RuntimeError)          the rationale cache cannot be used
        └── CacheCorruptedError            a cache file is damaged; nothing was changed

Each also derives from the builtin that callers would expect, so existing `except` clauses keep working.
"""

from __future__ import annotations

__all__ = [
    "CacheCorruptedError",
    "CacheError",
    "EngineError",
    "GraceError",
    "IndexCorruptedError",
    "InputError",
    "MissingExtraError",
    "ModelLoadError",
    "ModelMismatchError",
    "NonFiniteEmbeddingError",
]


class GraceError(Exception):
    """Base class of all errors raised on purpose by grace-retrieval."""


class InputError(GraceError, ValueError):
    """A text, argument or file cannot be used; the message says what is allowed."""


class ModelLoadError(GraceError, OSError):
    """A model folder or name cannot be loaded; the message says why and how to mend it."""


class ModelMismatchError(GraceError, ValueError):
    """Stored vectors were made with another model, prompt, option or dimension; the message names both models."""


class MissingExtraError(GraceError, ImportError):
    """An optional dependency is not installed; the message holds the pip command.

    Args:
        package: Import name of the missing package.
        extra: Name of the grace-retrieval extra that installs it.
        purpose: What the caller wanted to do, for the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package!r}. Install it with: pip install 'grace-retrieval[{extra}]'",
            name=package,
        )
        self.extra = extra


class EngineError(GraceError, RuntimeError):
    """Generation or pooling failed."""


class NonFiniteEmbeddingError(EngineError):
    """The model produced NaN or infinity, also when the text was tried again in float32."""


class IndexCorruptedError(GraceError, RuntimeError):
    """A file of an index is damaged or missing. Nothing was changed; the message names the file and the mend."""


class CacheError(GraceError, RuntimeError):
    """The rationale cache cannot be used."""


class CacheCorruptedError(CacheError):
    """A cache file is damaged. Nothing was changed; the message names the mend."""
