"""register(): plain `SentenceTransformer(path)` opens saved GRACE models, hence so does whatever loads a path."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from grace_retrieval.cache import RationaleCache, open_cache

if TYPE_CHECKING:
    from grace_retrieval.rationale_transformer import RationaleTransformer

__all__ = ["register"]


def register(cache: str | os.PathLike[str] | RationaleCache | None = "default") -> None:
    """Let `SentenceTransformer(path)` open a saved GRACE model without `trust_remote_code`.

    sentence-transformers loads module classes outside itself only with that flag, which would also let a model folder
    run code of its own. This names two classes, ours, as known; everything else is refused as before. Calling it again
    only changes the cache of models that are opened later.

    Args:
        cache: Where models opened this way keep their rationales: "default", a path, "memory", a RationaleCache, or
            None for none.

    Raises:
        InputError: If `cache` is none of these.
    """
    from sentence_transformers import SentenceTransformer

    from grace_retrieval.centring import Centring
    from grace_retrieval.rationale_transformer import RationaleTransformer

    opened = open_cache(cache)

    class KnownModule:
        """Stands for our class while a model is loaded, and gives it a cache."""

        @staticmethod
        def load(model_name_or_path: str, **kwargs: Any) -> RationaleTransformer:
            writer = RationaleTransformer.load(model_name_or_path, **kwargs)
            writer.cache = opened
            return writer

    known = {
        f"{module.__module__}.{module.__qualname__}": standing
        for module, standing in ((RationaleTransformer, KnownModule), (Centring, Centring))
    }
    # Private to sentence-transformers, which has no public way; tests/integrations pins it.
    SentenceTransformer._module_classes = {**SentenceTransformer._module_classes, **known}  # type: ignore[dict-item]
