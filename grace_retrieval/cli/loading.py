"""Opening an embedder for a command, without the chatter of the libraries below."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.cli.console import is_interactive, status
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.cache import RationaleCache
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.indexing import GraceIndex
    from grace_retrieval.indexing.filters import Filter
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.options import OnTruncation

logger = logging.getLogger(__name__)

__all__ = [
    "load_again",
    "load_embedder",
    "open_command_cache",
    "open_index",
    "parse_engine_options",
    "quiet_libraries",
]


def open_command_cache(spec: str) -> RationaleCache:
    """The cache that `--cache` names; with "none", one that ends with the command, so that nothing is written twice.

    Args:
        spec: "default", "none", "memory", a folder or a file.

    Raises:
        InputError: If it is none of these.
        CacheError: If the file cannot be used.
    """
    from grace_retrieval.cache import MemoryCache, open_cache

    return MemoryCache() if (cache := open_cache(None if spec.lower() == "none" else spec)) is None else cache


def load_embedder(
    model: str,
    *,
    cache: RationaleCache | None,
    device: str | None = None,
    max_new_tokens: int | None = None,
    max_sentences: int | None = None,
    truncate_dim: int | None = None,
    on_truncation: OnTruncation = "warn",
    engine: str = "transformers",
    engine_options: Sequence[str] | None = None,
    quiet: bool = False,
) -> GraceEmbedder:
    """Load a model, with a spinner on a terminal.

    Args:
        model: Bundled model, folder or hub name.
        cache: Where rationales are kept.
        device: Such as "cpu"; None takes the best there is.
        max_new_tokens: Most tokens of a rationale; None keeps the model's setting.
        max_sentences: Most sentences of a rationale; None keeps the model's setting.
        truncate_dim: Dimensions to keep; None keeps all.
        on_truncation: What to do about texts that are too long.
        engine: What runs the model, by name.
        engine_options: Its options, as `--engine-option` takes them.
        quiet: Whether to show nothing.

    Raises:
        ModelLoadError: If the model cannot be loaded.
        InputError: If an option is out of range.
    """
    with status(f"Loading {model} ...", show=not quiet):
        quiet_libraries(show_downloads=not quiet and is_interactive())
        from grace_retrieval.arguments import check_device
        from grace_retrieval.embedder import GraceEmbedder

        check_device(device)
        started = time.monotonic()
        embedder = GraceEmbedder(
            model,
            cache=cache,
            device=device,
            max_new_tokens=max_new_tokens,
            max_sentences=max_sentences,
            on_truncation=on_truncation,
            engine=engine,
            engine_options=parse_engine_options(engine_options or []),
        )
    _say_loaded(embedder, time.monotonic() - started)
    width = embedder.get_embedding_dimension() or 0
    if truncate_dim is not None:
        if truncate_dim > width:
            raise InputError(f"--truncate-dim {truncate_dim}: the model's vectors have {width}. Give 1 to {width}.")
        embedder.truncate_dim = truncate_dim
    return embedder


def load_again(
    folder: str | Path,
    manifest: IndexManifest,
    *,
    model: str | None = None,
    engine: str | None = None,
    cache: RationaleCache | None,
    device: str | None = None,
    on_truncation: OnTruncation = "warn",
    quiet: bool = False,
) -> GraceEmbedder:
    """Load the model of an index, with a spinner on a terminal.

    Args:
        folder: Folder of the index.
        manifest: The index.
        model: Where its model is now; None is where it was.
        engine: What runs it, in place of the engine that made the vectors; None is that one.
        cache: Where rationales are kept.
        device: Such as "cpu"; None takes the best there is.
        on_truncation: What to do about texts that are too long.
        quiet: Whether to show nothing.

    Raises:
        InputError: If the index was built from given vectors, and no model is named.
        ModelLoadError: If the model is not there, or damaged.
    """
    with status("Loading the model of the index ...", show=not quiet):
        quiet_libraries(show_downloads=False)
        from grace_retrieval.arguments import check_device
        from grace_retrieval.indexing.loading import load_for_index

        check_device(device)
        return load_for_index(
            folder,
            manifest,
            model=model,
            engine=engine,
            cache=cache,
            device=device,
            on_truncation=on_truncation,
        )


def parse_engine_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read pairs NAME=VALUE; values as JSON has them, or else as they are written.

    Raises:
        InputError: If one is no pair, or a name comes twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name or name in options:
            raise InputError(f"--engine-option {pair!r}: give each option once, as NAME=VALUE: max_model_len=2048.")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def open_index(
    folder: str | Path,
    *,
    model: str | None = None,
    engine: str | None = None,
    cache: RationaleCache,
    device: str | None = None,
    on_truncation: OnTruncation = "warn",
    filter: Filter | None = None,
) -> GraceIndex:
    """Open an index with the model it was built with, with a spinner on a terminal.

    Args:
        folder: Folder of the index.
        model: Where its model is now; None is where it was.
        engine: What runs the model for queries, if it is to be another engine; None is the one that made the vectors.
        cache: Where rationales of queries are kept.
        device: Such as "cpu"; None takes the best there is.
        on_truncation: What to do about texts that are too long.
        filter: What will be searched with; it is tried before the model is loaded.

    Raises:
        InputError: If there is no index, it was built from given vectors and no model is named, or the filter names
            metadata that no document has.
        ModelMismatchError: If the model makes other vectors now.
        MissingExtraError: If FAISS is not installed.
    """
    with status(f"Opening {folder} ..."):
        import numpy as np

        from grace_retrieval.indexing.index import GraceIndex

        index = GraceIndex.open(folder, engine=engine)
        if filter is not None:
            index.rank(np.zeros((0, index.dimension), dtype=np.float32), 1, filter=filter)
    index.use(
        load_again(
            folder,
            index.manifest,
            model=model,
            engine=engine,
            cache=cache,
            device=device,
            on_truncation=on_truncation,
        )
    )
    return index


def _say_loaded(embedder: GraceEmbedder, seconds: float) -> None:
    """Log what was loaded, for --verbose."""
    pipeline = embedder.pipeline
    logger.info(
        "loaded %s (%s, %s) on %s by %s in %.1f s; %d dimensions, rationales of up to %d tokens, cache %s",
        pipeline.name,
        pipeline.policy.family,
        pipeline.policy.dtype,
        embedder.device,
        pipeline.engine_name,
        seconds,
        embedder.get_embedding_dimension() or 0,
        pipeline.options.max_new_tokens,
        getattr(pipeline.cache, "path", None) or type(pipeline.cache).__name__,
    )


def quiet_libraries(*, show_downloads: bool) -> None:
    """Let transformers and sentence-transformers speak of errors only; downloads may show their progress."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    downloads = show_downloads and not are_progress_bars_disabled()
    if logging.getLogger("grace_retrieval").isEnabledFor(logging.INFO):
        return  # --verbose
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    for name in ("sentence_transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
