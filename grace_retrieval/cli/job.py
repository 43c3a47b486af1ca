"""EmbedJob: from a TextSource to vectors and rationales in a file, part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grace_retrieval.cli.console import Interrupted
from grace_retrieval.cli.parts import Manifest, Parts
from grace_retrieval.cli.progress import TextProgress
from grace_retrieval.cli.skips import Skips
from grace_retrieval.corpus.files import Record, TextSource
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from grace_retrieval.cache import Fingerprint
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["EmbedJob", "JobOptions", "JobSummary"]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What shapes the output of a job.

    Args:
        role: Role of the texts.
        rationale: Whether to write rationales.
        keep_text: Whether the texts are a column of the output.
        batch: Rows of a part.
        overwrite: Whether to replace the output, and to discard parts that were made differently.
    """

    role: Literal["query", "document"] = "document"
    rationale: bool = True
    keep_text: bool = True
    batch: int = 1024
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class JobSummary:
    """What a job did.

    Attributes:
        rows: Rows of the output.
        dim: Dimensions of a vector.
        resumed: Rows that an earlier run had finished.
        generated: Distinct texts that the model was run for.
        from_cache: Distinct texts whose rationale and vector were in the cache.
        shortened: Rows of this run whose text was longer than the model takes.
        cut: Rows of this run whose rationale was ended by the token budget.
        fingerprint: Digest of the embedder's fingerprint, in hexadecimal.
    """

    rows: int
    dim: int
    resumed: int = 0
    generated: int = 0
    from_cache: int = 0
    shortened: int = 0
    cut: int = 0
    fingerprint: str


class EmbedJob:
    """Embeds a source into a parquet or npy file. Killed and run again, it goes on behind the last finished part.

    Args:
        source: The texts.
        output: A .parquet or .npy file.
        options: What shapes the output.
        embedder: The model; its cache must be `cache`.
        total: Number of texts; None if it is not known.
        skips: Counts bad rows; None stops at the first.
        quiet: Whether to show no progress.
    """

    def __init__(
        self,
        *,
        source: TextSource,
        output: Path,
        options: JobOptions,
        embedder: GraceEmbedder,
        total: int | None = None,
        skips: Skips | None = None,
        quiet: bool = False,
    ) -> None:
        self.source = source
        self.options = options
        self.embedder = embedder
        self.total = total
        self.skips = skips
        self.quiet = quiet
        self.parts = Parts(output)
        self.dim = embedder.get_embedding_dimension() or 0
        prompt = embedder.prompts.get(options.role)
        self.fingerprint: Fingerprint = embedder.pipeline.fingerprint(options.role, prompt, options.rationale)
        self._summary = JobSummary(rows=0, dim=self.dim, fingerprint=self.fingerprint.digest().hex())

    def run(self) -> JobSummary:
        """Do the work.

        Returns:
            What was done.

        Raises:
            InputError: If a row is bad, unfinished work there is of another run, or the output cannot be written.
            Interrupted: On Ctrl-C.
        """
        with self.parts.opened():
            finished = self.parts.begin(self._manifest(), discard=self.options.overwrite)
            with TextProgress(total=self.total, quiet=self.quiet) as progress:
                self._on_row = progress.advance
                try:
                    count = self._embed_parts(finished, progress)
                except KeyboardInterrupt:
                    raise Interrupted(
                        f"Interrupted. The finished parts are kept in {self.parts.folder}: the same command goes on "
                        "from there."
                    ) from None
            if self.skips is not None:
                self.skips.check(count)
            rows = self.parts.merge(count, self._schema())
        counts = self.embedder.pipeline.counts
        return replace(self._summary, rows=rows, generated=counts["generated"], from_cache=counts["found"])

    def _embed_parts(self, finished: Sequence[str], progress: TextProgress) -> int:
        """Embed what is not finished; return the number of parts."""
        count = done = 0
        for records in _grouped(self.source.records(self.skips), self.options.batch):
            digest = _digest(records)
            before, done = done, done + len(records)
            if count < len(finished) and digest != finished[count]:
                self._refuse_other_input(before)
                finished = finished[:count]
            if count < len(finished):
                self._summary = replace(self._summary, resumed=done)
                progress.resume(done)
            else:
                self.parts.write(count, self._embed(records), digest)
                progress.reach(done)
            count += 1
        if count < len(finished):
            self._refuse_other_input(done)
        return count

    def _refuse_other_input(self, done: int) -> None:
        if not self.options.overwrite:
            raise InputError(
                f"{self.parts.folder} holds unfinished work of another input: {self.source.name} differs from it "
                f"behind text {done}. Give that input again, or --overwrite to discard what differs."
            )

    def _embed(self, records: Sequence[Record]) -> pa.Table:
        """Embed a part."""
        import pyarrow as pa

        texts = [record.text for record in records]
        with_rationales = self.options.rationale
        found = self.embedder.encode_with_rationales(
            texts, self.options.role, rationale=with_rationales, on_row=self._on_row
        )
        rows = found.rationales
        self._summary = replace(
            self._summary,
            shortened=self._summary.shortened + sum(row.text_truncated for row in rows),
            cut=self._summary.cut + sum(row.truncated for row in rows),
        )
        columns = {
            "id": pa.array([record.id for record in records], pa.string()),
            "text": pa.array(texts, pa.string()),
            "rationale": pa.array([row.text if with_rationales else None for row in rows], pa.string()),
            "truncated": pa.array([row.truncated for row in rows], pa.bool_()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(found.vectors.reshape(-1), pa.float32()), self.dim),
        }
        schema = self._schema()
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        described = json.dumps({"fingerprint": self.fingerprint.describe()}, sort_keys=True)
        fields = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("rationale", pa.string()),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), self.dim), nullable=False),
        ]
        kept = [field for field in fields if field.name != "text" or self.options.keep_text]
        return pa.schema(kept, metadata={"grace": described})

    def _manifest(self) -> Manifest:
        source = asdict(self.source)
        options: dict[str, Any] = {
            "format": source["format"],
            "text-column": source["text_column"],
            "id-column": source["id_column"],
            "title-column": source["title_column"],
            "role": self.options.role,
            "rationale": self.options.rationale,
            "text": self.options.keep_text,
            "batch": self.options.batch,
            "truncate-dim": self.embedder.truncate_dim,
        }
        return Manifest(input_bytes=self.source.size, options=options, fingerprint=self.fingerprint.describe())


def _grouped(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    while group := list(islice(records, size)):
        yield group


def _digest(records: Sequence[Record]) -> str:
    total = hashlib.sha256()
    for record in records:
        total.update(json.dumps([record.id, record.text]).encode() + b"\n")
    return total.hexdigest()
