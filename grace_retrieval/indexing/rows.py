"""RowReader: rows of an index by their number, read from the shards a row group at a time and kept within a budget."""

from __future__ import annotations

import json
import sys
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.corpus.document import join_title
from grace_retrieval.indexing.hits import Hit
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.shards import as_matrix, readable
from grace_retrieval.rationale import Rationale

__all__ = ["RowReader"]

_OPEN_FILES = 128
"""Shards that are kept open: systems allow a process 1024 open files, or 256."""


_JSON = json.JSONDecoder()

_Part = TypeVar("_Part", "_Texts", "_Vectors")


class RowReader:
    """Looks rows up by number. Row groups that were read stay in memory, up to a budget; safe between threads.

    Args:
        folder: Folder of the shards.
        shards: The shards, in the order of the rows.
        max_bytes: Most bytes of row groups that are kept.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardFile], *, max_bytes: int = 512 << 20) -> None:
        self.folder = folder
        self.shards = tuple(shards)
        self.max_bytes = max_bytes
        self._starts = [0, *accumulate(shard.rows for shard in shards)]
        self._files: OrderedDict[int, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int, type[Any]], Any] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of rows."""
        return self._starts[-1]

    def hits(self, rows: Sequence[int], scores: Sequence[float]) -> list[Hit]:
        """Documents of rows.

        Args:
            rows: Row numbers.
            scores: Their scores.

        Returns:
            One Hit a row.

        Raises:
            IndexCorruptedError: If a shard is missing or damaged.
        """
        found: list[tuple[int, Hit]] = []
        with self._lock:
            span = range(0)
            # In the order of the shards, so that a row group is looked up, and at worst read, once for all its rows.
            for place in sorted(range(len(rows)), key=rows.__getitem__):
                if rows[place] not in span:
                    group, span = self._find(rows[place], _Texts)
                found.append((place, group.hit(rows[place] - span.start, scores[place])))
        found.sort(key=itemgetter(0))
        return [hit for _, hit in found]

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Stored vectors of rows. Shape: (rows, dim), float32.

        Args:
            rows: Row numbers. Shape: (rows,), int64.

        Raises:
            IndexCorruptedError: If a shard is missing or damaged.
        """
        with self._lock:
            order = np.argsort(rows, kind="stable")
            ordered = rows[order]
            found = np.zeros((len(rows), 0), dtype=np.float32)
            start = 0
            while start < len(rows):
                group, span = self._find(int(ordered[start]), _Vectors)
                if not start:
                    found = np.empty((len(rows), group.matrix.shape[1]), dtype=np.float32)
                end = start + int(np.searchsorted(ordered[start:], span.stop))
                found[order[start:end]] = group.matrix[ordered[start:end] - span.start]
                start = end
            return found

    def column(self, name: str) -> Iterator[list[Any]]:
        """Stream a column, shard by shard.

        Args:
            name: Name of the column.

        Yields:
            Its values in a shard.
        """
        for start, shard in zip(self._starts, self.shards, strict=False):
            yield [value for chunk in self._chunks(name, start, start + shard.rows) for value in chunk.to_pylist()]

    def part(self, name: str, start: int, stop: int) -> pa.Array:
        """A column of some rows that follow each other.

        Args:
            name: Name of the column.
            start: The first row.
            stop: The row behind the last.

        Raises:
            IndexCorruptedError: If a shard is missing or damaged.
            pa.ArrowException: If it is larger than an array may be.
        """
        chunks = self._chunks(name, start, stop)
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())

    def _chunks(self, name: str, start: int, stop: int) -> list[pa.Array]:
        chunks: list[pa.Array] = []
        with self._lock:
            while start < stop:
                shard = bisect_right(self._starts, start) - 1
                file, ends = self._file(shard)
                first, last = start - self._starts[shard], min(stop, self._starts[shard + 1]) - self._starts[shard]
                groups = range(bisect_right(ends, first), bisect_left(ends, last) + 1)
                with readable(self.folder / self.shards[shard].name):
                    table = file.read_row_groups(list(groups), columns=[name], use_threads=False)
                skipped = ends[groups[0] - 1] if groups[0] else 0
                chunks += table[name].slice(first - skipped, last - first).chunks
                start = self._starts[shard] + last
        return chunks

    def embedded_texts(self) -> Iterator[str]:
        """What the embedder was shown of every row, in their order."""
        for titles, texts in zip(self.column("title"), self.column("text"), strict=True):
            yield from map(join_title, titles, texts)

    def close(self) -> None:
        """Close the files and forget what was read."""
        with self._lock:
            for file, _ in self._files.values():
                file.close()
            self._files.clear()
            self._groups.clear()
            self._bytes = 0

    def _find(self, row: int, kind: type[_Part]) -> tuple[_Part, range]:
        """The part of the row group that holds a row, and the rows of the group."""
        shard = bisect_right(self._starts, row) - 1
        file, ends = self._file(shard)
        start = self._starts[shard]
        number = bisect_right(ends, row - start)
        key = (shard, number, kind)
        group = self._groups.get(key)
        if group is None:
            with readable(self.folder / self.shards[shard].name):
                group = kind(file.read_row_group(number, columns=list(kind.columns), use_threads=False))
            self._groups[key] = group
            self._bytes += group.bytes
            while self._bytes > self.max_bytes and len(self._groups) > 1:
                _, dropped = self._groups.popitem(last=False)
                self._bytes -= dropped.bytes
        else:
            self._groups.move_to_end(key)
        return group, range(start + (ends[number - 1] if number else 0), start + ends[number])

    def _file(self, shard: int) -> tuple[pq.ParquetFile, list[int]]:
        if shard not in self._files:
            path = self.folder / self.shards[shard].name
            with readable(path):
                file = pq.ParquetFile(path, memory_map=True)
                about = file.metadata
                sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
            self._files[shard] = (file, list(accumulate(sizes)))
            if len(self._files) > _OPEN_FILES:
                _, (oldest, _) = self._files.popitem(last=False)
                oldest.close()
        else:
            self._files.move_to_end(shard)
        return self._files[shard]


class _Vectors:
    """The vectors of a row group."""

    columns = ("vector",)

    def __init__(self, table: pa.Table) -> None:
        self.bytes = table.nbytes
        self.matrix = as_matrix(_one_chunk(table["vector"]))


class _Texts:
    """All else of a row group, as Python's own objects: Arrow's are slow to take one by one."""

    columns = ("id", "text", "title", "metadata", "rationale", "truncated", "text_truncated", "rationale_ids")

    def __init__(self, table: pa.Table) -> None:
        *columns, ids = (_one_chunk(table[name]) for name in self.columns)
        # Arrow's to_numpy imports pandas if it is installed, which takes longer than a search.
        self._tokens = np.from_dlpack(ids.values)
        self._bounds = ids.offsets.to_pylist()
        self._lists = [column.to_pylist() for column in columns]
        self.bytes = self._tokens.nbytes + sum(sys.getsizeof(value) for values in self._lists for value in values)

    def hit(self, place: int, score: float) -> Hit:
        """The document of a row."""
        id_, text, title, metadata, rationale, truncated, text_truncated = [values[place] for values in self._lists]
        start, end = self._bounds[place : place + 2]
        return Hit(
            id=id_,
            score=score,
            text=text,
            title=title,
            metadata=_JSON.raw_decode(metadata)[0] if metadata else {},
            rationale=Rationale(
                text=rationale or "",
                token_ids=tuple(self._tokens[start:end].tolist()),
                truncated=truncated,
                text_truncated=text_truncated,
            ),
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
