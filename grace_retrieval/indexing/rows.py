"""RowReader: rows of an index by their number, read from the shards a row group at a time and kept within a budget."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.document import join_title
from grace_retrieval.indexing.hits import Hit
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.shards import as_matrix, readable
from grace_retrieval.rationale import Rationale

__all__ = ["RowReader"]

_TEXTS = ("id", "text", "title", "metadata", "rationale", "rationale_ids", "truncated", "text_truncated")
_VECTORS = ("vector",)


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
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        self._files: dict[int, tuple[pq.ParquetFile, npt.NDArray[np.int64]]] = {}
        self._groups: OrderedDict[tuple[int, int, tuple[str, ...]], _Group] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

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
        with self._lock:
            return [self._hit(*self._find(row, _TEXTS), score) for row, score in zip(rows, scores, strict=True)]

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Stored vectors of rows. Shape: (rows, dim), float32.

        Args:
            rows: Row numbers. Shape: (rows,), int64.

        Raises:
            IndexCorruptedError: If a shard is missing or damaged.
        """
        with self._lock:
            found = [self._find(int(row), _VECTORS) for row in rows]
            return np.stack([group.matrix[place] for group, place in found])

    def column(self, name: str) -> Iterator[list[Any]]:
        """Stream a column, shard by shard.

        Args:
            name: Name of the column.

        Yields:
            Its values in a shard.
        """
        for shard in self.shards:
            path = self.folder / shard.name
            with readable(path):
                yield pq.read_table(path, columns=[name], partitioning=None)[name].to_pylist()

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

    def _hit(self, group: _Group, place: int, score: float) -> Hit:
        value = [column[place] for column in group.columns]
        metadata = json.loads(value[3].as_py()) if value[3].is_valid else {}
        ids = value[5].values
        return Hit(
            id=value[0].as_py(),
            score=score,
            text=value[1].as_py(),
            title=value[2].as_py(),
            metadata=metadata,
            rationale=Rationale(
                text=value[4].as_py() or "",
                token_ids=() if ids is None else tuple(ids.to_numpy().tolist()),
                truncated=value[6].as_py(),
                text_truncated=value[7].as_py(),
            ),
        )

    def _find(self, row: int, columns: tuple[str, ...]) -> tuple[_Group, int]:
        """The row group that holds a row, and the row's place in it."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, ends = self._file(shard)
        local = row - int(self._starts[shard])
        number = int(np.searchsorted(ends, local, side="right"))
        place = local - (int(ends[number - 1]) if number else 0)
        key = (shard, number, columns)
        group = self._groups.get(key)
        if group is None:
            with readable(self.folder / self.shards[shard].name):
                group = _Group(file.read_row_group(number, columns=list(columns)))
            self._groups[key] = group
            self._bytes += group.bytes
            while self._bytes > self.max_bytes and len(self._groups) > 1:
                _, dropped = self._groups.popitem(last=False)
                self._bytes -= dropped.bytes
        else:
            self._groups.move_to_end(key)
        return group, place

    def _file(self, shard: int) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
        if shard not in self._files:
            path = self.folder / self.shards[shard].name
            with readable(path):
                file = pq.ParquetFile(path, memory_map=True)
                about = file.metadata
                sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
            self._files[shard] = (file, np.cumsum(sizes))
        return self._files[shard]


class _Group:
    """Columns of a row group."""

    def __init__(self, table: pa.Table) -> None:
        self.bytes = table.nbytes
        self.columns = [_one_chunk(column) for column in table.columns]

    @property
    def matrix(self) -> npt.NDArray[np.float32]:
        """The vectors, if they are what was read."""
        return as_matrix(self.columns[0])


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
