"""A bar that counts texts, not batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

__all__ = ["count_texts"]


@contextmanager
def count_texts(
    texts: int, show: bool | None, on_row: Callable[[], object] | None = None
) -> Iterator[Callable[[], object] | None]:
    """Count texts while a block embeds them.

    Args:
        texts: How many there are.
        show: Whether to show a bar; None shows it on a terminal for 100 texts or more.
        on_row: Called for each text too.

    Yields:
        What is to be called for each text; None if nothing is.
    """
    if show is None:
        show = texts >= 100 and os.isatty(2)
    if not show:
        yield on_row
        return
    with tqdm(total=texts, desc="Embedding", unit="text") as bar:

        def advance() -> None:
            bar.update()
            if on_row is not None:
                on_row()

        yield advance
