"""Files that commands write: never over another by accident, and whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from grace_retrieval.atomic import replacing
from grace_retrieval.errors import InputError

__all__ = ["check_output", "text_file"]


def check_output(output: str, *, overwrite: bool) -> Path:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        InputError: If it is a folder, is in none or in one that cannot be written, or exists and `overwrite` is False.
    """
    path = Path(output)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file.")
    if not path.parent.is_dir():
        raise InputError(f"Cannot write {path}: No such file or directory. Make the folder {path.parent} first.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already. Give another name, or --overwrite to replace it.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


@contextmanager
def text_file(output: str, *, overwrite: bool) -> Iterator[TextIO]:
    """A UTF-8 stream that becomes the file when all is written.

    Raises:
        InputError: If the file cannot be written; see `check_output`.
    """
    path = check_output(output, overwrite=overwrite)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with replacing(path, temporary=temporary), open(temporary, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
