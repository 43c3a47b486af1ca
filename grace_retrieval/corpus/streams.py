"""Bytes of files, unpacked where their names end in .gz or .zst, and lines of them that say where they stand."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from grace_retrieval.errors import InputError

__all__ = ["PACKED", "Lines", "not_utf8", "opened", "read_text", "unpacked_name"]

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Ends of names of packed files, and what Arrow calls their codec."""


def unpacked_name(path: str | Path) -> str:
    """Name of a file without its folder and without .gz or .zst.

    Example:
        >>> unpacked_name("data/corpus.jsonl.gz")
        'corpus.jsonl'
    """
    name = Path(path).name
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in PACKED else name


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file of bytes, "-" for the standard input. A packed file that was cut short is an error, not its end.

    Args:
        path: The file.

    Raises:
        InputError: If it cannot be read.
    """
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        with _stream(Path(path)) as stream:
            yield stream
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error


def _stream(path: Path) -> BinaryIO:
    codec = PACKED.get(path.suffix.lower())
    if codec is None:
        return open(path, "rb")
    import pyarrow as pa

    # Arrow reads several packed files behind each other as one, as gzip and zstd do.
    with open(path, "rb"):  # for its errors, which name the reason
        unpacked = pa.CompressedInputStream(pa.OSFile(str(path)), codec)
    return cast("BinaryIO", io.BufferedReader(unpacked, 1 << 16))


def read_text(path: Path) -> str:
    """A whole small file as text, unpacked; a byte order mark is left out.

    Raises:
        InputError: If it cannot be read, or is not UTF-8; file and line are named.
    """
    with opened(path) as stream:
        content = stream.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: {not_utf8(error)}") from error


class Lines:
    """Decoded lines with their ends. Goes on behind a line that is not UTF-8, which a generator could not.

    Args:
        stream: Bytes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.number = 0

    def __iter__(self) -> Lines:
        """The lines themselves."""
        return self

    def __next__(self) -> str:
        """The next line; UnicodeDecodeError if it is not UTF-8."""
        line = next(self._stream)
        self.number += 1
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")

    def decoded(self) -> Iterator[tuple[str, str | UnicodeDecodeError]]:
        """Where each line stands, and the line or why it is none."""
        while True:
            try:
                line: str | UnicodeDecodeError = next(self)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                line = error
            yield f"line {self.number}", line


def not_utf8(error: UnicodeDecodeError) -> str:
    """What to say of bytes that are no text."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert the file to UTF-8."
