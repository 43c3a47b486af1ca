"""Journal: one line a finished shard, appended and brought to the disk before the next shard is begun."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from grace_retrieval.indexing.manifest import ShardFile

__all__ = ["Journal"]


class Journal:
    """A file of finished shards.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, ShardFile]:
        """Finished shards by name. A last line that was cut short by a kill counts as not written."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                shard = ShardFile(**{**entry, "blank": tuple(entry["blank"])})
            except (ValueError, TypeError, KeyError):
                continue
            found[shard.name] = shard
        return found

    def append(self, shard: ShardFile) -> None:
        """Note that a shard is finished.

        Args:
            shard: The shard; its file is on the disk.

        Raises:
            OSError: If the line cannot be written.
        """
        # The leading line end closes a line that a kill cut short.
        line = b"\n" + json.dumps(asdict(shard)).encode() + b"\n"
        with open(self.path, "ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
