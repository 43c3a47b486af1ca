"""Parts: the finished pieces of an output, kept in OUT.parts beside it until they are merged into OUT.

Each piece is written beside its name and renamed, so a file that is there is whole. `manifest.json` says what the
pieces were made from; pieces of another model, input or options are never gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.atomic import locked, replacing
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Manifest", "Parts"]

_VERSION = 1
_DIGEST = b"grace.input-digest"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What parts were made from.

    Attributes:
        input_bytes: Size of the input; None for a pipe.
        options: Options that shape the output, under their names on the command line; JSON values.
        fingerprint: `Fingerprint.describe()` of the embedder.
    """

    input_bytes: int | None
    options: Mapping[str, Any]
    fingerprint: Mapping[str, Any]

    def differences(self, then: Manifest) -> list[str]:
        """Say how this run differs from the one that made the parts.

        Args:
            then: The manifest of the parts.

        Returns:
            One entry a difference; empty if the parts can be gone on from.
        """
        from grace_retrieval.cache import Fingerprint

        lines = []
        if self.input_bytes != then.input_bytes:
            lines.append(f"input: {_size(self.input_bytes)} here, {_size(then.input_bytes)} there")
        lines += [
            f"{name}: {self.options.get(name)!r} here, {then.options.get(name)!r} there"
            for name in sorted({*self.options, *then.options})
            if self.options.get(name) != then.options.get(name)
        ]
        ours, theirs = (Fingerprint.from_description(side.fingerprint) for side in (self, then))
        return lines + ours.differences(theirs)


class Parts:
    """The folder of finished parts of one output.

    Args:
        output: The output; the parts are kept in a folder of that name and `.parts`.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it while a block runs.

        Raises:
            InputError: If the folder cannot be made, or another process is at work in it.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file, and the folder of unfinished work goes there: move it away.")
        with self._writing():
            self.folder.mkdir(exist_ok=True)
            (self.folder / "lock").touch()  # here, where a folder that cannot be written is explained
        with locked(self.folder / "lock", str(self.output)):
            try:
                yield
            finally:
                if self.folder.is_dir() and not any(self.folder.glob("part-*.parquet")):
                    self.remove()  # nothing was finished: leave nothing behind

    def begin(self, manifest: Manifest, *, discard: bool) -> list[str]:
        """Find out which parts are finished, and note what the others will be made from.

        Args:
            manifest: What this run is made from.
            discard: Whether parts of another model, input or options are removed instead of refused.

        Returns:
            The input digests of the finished parts, in their order.

        Raises:
            InputError: If the parts there are of another run, or the folder cannot be written.
        """
        then = self._manifest()
        if then is not None and (differences := manifest.differences(then)):
            if not discard:
                raise InputError(
                    f"{self.folder} holds unfinished work of another run ({'; '.join(differences)}). Repeat that run's "
                    "command, or give --overwrite to discard its work and start anew."
                )
            self._remove_files()
        elif then is None and any(self.folder.glob("part-*.parquet")):
            if not discard:
                raise InputError(f"{self.folder} has parts but no manifest.json: remove it, or give --overwrite.")
            self._remove_files()
        with self._writing():
            text = json.dumps({"version": _VERSION, **asdict(manifest)}, indent=2, sort_keys=True)
            with replacing(self.folder / "manifest.json") as path:
                path.write_text(text + "\n", encoding="utf-8")
        return self._finished()

    def write(self, index: int, table: pa.Table, digest: str) -> None:
        """Store a finished part.

        Args:
            index: Its place.
            table: Its rows.
            digest: Digest of the input it was made from.

        Raises:
            InputError: If it cannot be written.
        """
        import pyarrow.parquet as pq

        metadata = {**(table.schema.metadata or {}), _DIGEST: digest.encode()}
        with self._writing(), replacing(self._part(index)) as path:
            pq.write_table(table.replace_schema_metadata(metadata), path, use_dictionary=False)

    def merge(self, count: int, schema: pa.Schema) -> int:
        """Write the output from the parts, a part at a time, and remove them.

        Args:
            count: Number of parts.
            schema: Columns of the output, with a fixed-size list `vector`.

        Returns:
            Number of rows.

        Raises:
            InputError: If the output cannot be written; the parts are kept.
        """
        import pyarrow.parquet as pq

        rows = sum(int(pq.read_metadata(self._part(index)).num_rows) for index in range(count))
        with self._writing(), replacing(self.output, temporary=self.folder / "merged.tmp") as path:
            if self.output.suffix.lower() == ".npy":
                self._merge_array(path, count, (rows, schema.field("vector").type.list_size))
            else:
                with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
                    for index in range(count):
                        with pq.ParquetFile(self._part(index)) as part:
                            writer.write_table(part.read().cast(schema))
        self.remove()
        return rows

    def remove(self) -> None:
        """Remove the folder, and in it our own files only."""
        self._remove_files()
        (self.folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps a file of theirs in it
            self.folder.rmdir()

    # ------------------------------------------------------------------ files

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"

    def _manifest(self) -> Manifest | None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != _VERSION:
                raise ValueError("another version")
            return Manifest(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} cannot be read ({error}). Remove the folder to start anew.") from error

    def _finished(self) -> list[str]:
        """Digests of the parts that are there and whole, up to the first gap."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        digests: list[str] = []
        while (path := self._part(len(digests))).exists():
            try:
                digests.append(pq.read_schema(path).metadata[_DIGEST].decode())
            except (pa.ArrowException, OSError, KeyError, TypeError):
                break  # cut short by a crash of the machine: made again
        return digests

    def _merge_array(self, path: Path, count: int, shape: tuple[int, int]) -> None:
        import numpy as np
        import pyarrow.parquet as pq

        with open(path, "wb") as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for index in range(count):
                with pq.ParquetFile(self._part(index)) as part:
                    column = part.read(columns=["vector"])["vector"].combine_chunks()
                    stream.write(column.flatten().to_numpy().astype("<f4", copy=False).tobytes())

    def _remove_files(self) -> None:
        for pattern in ("part-*.parquet", "*.tmp", "manifest.json"):
            for path in self.folder.glob(pattern):
                path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"Cannot write {self.output}: {reason}."
            if any(self.folder.glob("part-*.parquet")):
                message += f" The finished parts are kept in {self.folder}: the same command goes on from there."
            raise InputError(message) from error


def _size(count: int | None) -> str:
    return "a pipe" if count is None else f"{count:,} bytes"
