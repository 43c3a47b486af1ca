"""EmbeddingService: what routes ask of the model. Requests that wait together are one call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from grace_retrieval.batching import MicroBatcher
from grace_retrieval.errors import InputError
from grace_retrieval.rationale import Rationale, RationaleMode
from grace_retrieval.rows import Role
from grace_retrieval.serve.admission import Admission
from grace_retrieval.serve.errors import TOO_LARGE, TOO_LONG, RequestError
from grace_retrieval.serve.facets import describe_index
from grace_retrieval.serve.metrics import Metrics
from grace_retrieval.serve.options import ServeOptions
from grace_retrieval.serve.roles import ROLES

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.explain import Explanation
    from grace_retrieval.indexing import GraceIndex

__all__ = ["EmbeddedText", "EmbeddingService", "TooLong", "model_name"]

T = TypeVar("T")

Float32 = npt.NDArray[np.float32]

LINGER = 0.05
"""Share of a call's seconds that the next one waits for the clients of the last: see MicroBatcher."""

SIDE_THREADS = 2
"""Searches and explanations at a time, beside the thread that embeds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedText:
    """What came of a text.

    Attributes:
        vector: Shape: (dim,), float32, of length 1; zeros for a blank text.
        pooled: The mean of the states behind it. Shape: (hidden_size,), float32.
        tokens: Tokens of the text.
        rationale: What was written about it; empty if nothing was to be.
        cached: Whether it came from the cache.
    """

    vector: Float32
    pooled: Float32
    tokens: int
    rationale: Rationale
    cached: bool


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """A text that is longer than the model takes, and was not to be shortened."""


@dataclass(frozen=True)
class _Encode:
    """Texts in, results out; calls that are equal are made together."""

    service: EmbeddingService
    role: Role
    rationale: RationaleMode
    truncate: bool

    def __call__(self, texts: list[str]) -> list[EmbeddedText | TooLong]:
        return self.service.encode_batch(texts, self.role, rationale=self.rationale, truncate=self.truncate)


class EmbeddingService:
    """An embedder, and an index if there is one, for many clients at a time.

    Texts go through one thread, `MicroBatcher`'s. Searches and explanations have threads of their own.

    Args:
        embedder: The embedder. Texts that are too long must be its `on_truncation="ignore"`: requests decide.
        options: Limits.
        index: An index that was opened with this embedder.

    Attributes:
        name: Name of the model in requests.
        admission: Places for requests.
        metrics: Counters.
        dimension: Dimensions of a vector.
        max_text_tokens: Most tokens of a text, whatever its role.
        identity: Digest of what the vectors are made with.

    Raises:
        InputError: If the embedder warns of long texts, or refuses them itself.
    """

    def __init__(self, embedder: GraceEmbedder, options: ServeOptions, index: GraceIndex | None = None) -> None:
        if embedder.pipeline.options.on_truncation != "ignore":
            raise InputError(
                "A server decides about long texts by request: load the embedder with on_truncation='ignore'."
            )
        self.embedder = embedder
        self.options = options
        self.index = index
        self.index_facts: dict[str, Any] = {} if index is None else describe_index(index)
        self.name = options.name or model_name(embedder)
        self.admission = Admission(max_requests=options.max_queue, max_bytes=options.max_queue_bytes)
        self.metrics = Metrics(self.admission, embedder.pipeline)
        self.dimension: int = embedder.truncate_dim or embedder.pipeline.policy.hidden_size
        self._batcher = MicroBatcher(options.max_batch, linger=LINGER)
        self._limiter = anyio.CapacityLimiter(SIDE_THREADS)
        tokens = embedder.pipeline.tokenizer.get_vocab()
        self._longest_token = max(map(len, tokens))
        # Now, as both use the tokenizer, which no two threads may do at once.
        prompts = [embedder.pipeline.prompt(embedder.prompts.get(role)) for role in ROLES]
        taken = max(len(prompt.prefix_ids) + len(prompt.suffix_ids) for prompt in prompts)
        self.max_text_tokens = max(1, embedder.pipeline.options.max_seq_length - taken)
        self.identity = embedder.vector_identity(self.rationale).digest()

    @property
    def rationale(self) -> RationaleMode:
        """What is embedded behind a text unless a request says otherwise."""
        return self.embedder.pipeline.options.rationale if self.index is None else self.index.manifest.rationale

    # ------------------------------------------------------------------ embedding

    async def embed(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        param: str,
        rationale: RationaleMode | None = None,
        truncate: bool | None = None,
    ) -> list[EmbeddedText]:
        """Embed texts, together with those of other requests.

        Args:
            texts: Texts.
            role: What they are.
            param: Field that they came in, for messages.
            rationale: What is embedded behind them; None is the server's setting.
            truncate: Whether texts that are too long are shortened; None is the server's setting.

        Returns:
            One result a text.

        Raises:
            RequestError: If a text is too long, or all of them have too many tokens.
        """
        truncate = self.options.truncate if truncate is None else truncate
        texts = self._fitting(texts, param, truncate)
        await self._check_tokens(texts, param)
        call = _Encode(self, role, self.rationale if rationale is None else rationale, truncate)
        found = await self._batcher.run(call, texts)
        embedded = [one for one in found if isinstance(one, EmbeddedText)]
        if len(embedded) < len(found):
            raise self._too_long(param, [place for place, one in enumerate(found) if isinstance(one, TooLong)])
        return embedded

    def encode_batch(
        self, texts: list[str], role: Role, *, rationale: RationaleMode, truncate: bool
    ) -> list[EmbeddedText | TooLong]:
        """Embed the texts of a batch: a call of the model for those that are not in the cache."""
        started = time.monotonic()
        embedder, pipeline = self.embedder, self.embedder.pipeline
        prompt = embedder.prompts.get(role)
        rendered = pipeline.render(texts, prompt=prompt)
        taken = [place for place, text in enumerate(rendered) if truncate or not text.truncated]
        results: list[EmbeddedText | TooLong] = [TooLong()] * len(texts)
        rows = pipeline.write([rendered[place] for place in taken], role=role, prompt=prompt, rationale=rationale)
        vectors: Iterable[Float32] = embedder.finish([row.vector for row in rows], role) if rows else ()
        for place, row, vector in zip(taken, rows, vectors, strict=True):
            results[place] = EmbeddedText(
                vector=vector,
                pooled=row.vector,
                tokens=rendered[place].text_length,
                rationale=row.rationale,
                cached=row.cached,
            )
        seconds = time.monotonic() - started
        self.metrics.batch_texts.observe(len(texts))
        self.metrics.batch_seconds.observe(seconds)
        self.metrics.texts.labels(role=role).inc(len(rows))
        self.metrics.tokens.labels(of="text").inc(sum(rendered[place].text_length for place in taken))
        self.metrics.tokens.labels(of="rationale").inc(sum(len(row.token_ids) for row in rows if not row.cached))
        self.admission.answered(seconds / len(texts))
        return results

    def _fitting(self, texts: Sequence[str], param: str, truncate: bool) -> list[str]:
        """Refuse, or cut, texts that cannot fit, before they wait or are tokenised.

        No token has more characters than the longest. What is cut here is far behind the last token that the model is
        shown.
        """
        most = self.embedder.pipeline.options.max_seq_length * self._longest_token
        if truncate:
            return [text[: 2 * most] for text in texts]
        if long := [place for place, text in enumerate(texts) if len(text) > most]:
            raise self._too_long(param, long)
        return list(texts)

    async def _check_tokens(self, texts: Sequence[str], param: str) -> None:
        """Refuse a request of too many tokens. Few bytes are few tokens; others are counted, off the event loop."""
        most = self.options.max_tokens
        if sum(len(text.encode()) for text in texts) <= most:
            return
        count = sum(map(len, texts)) // self._longest_token
        if count <= most:
            count = await self.beside(self._count_tokens, texts)
        if count > most:
            raise RequestError(
                f"{param} has {count} tokens or more, and this server takes {most} in a request (--max-tokens): send "
                "fewer texts in a request.",
                TOO_LARGE,
                param=param,
            )

    def _count_tokens(self, texts: Sequence[str]) -> int:
        return sum(text.text_length for text in self.embedder.pipeline.render(texts, prompt=""))

    def _too_long(self, param: str, places: Sequence[int]) -> RequestError:
        which = f"{param}[{places[0]}]" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        return RequestError(
            f"{which}: longer than the {self.max_text_tokens} tokens that the model takes. Split it, or send "
            "truncate=true to have its end cut off.",
            TOO_LONG,
            param=param,
        )

    def decode_tokens(self, token_ids: Sequence[int]) -> str:
        """Text of tokens of the model's own tokenizer.

        Raises:
            RequestError: If one is not of its vocabulary.
        """
        pipeline = self.embedder.pipeline
        known = len(pipeline.tokenizer)
        if wrong := [token for token in token_ids if not 0 <= token < known]:
            raise RequestError(f"input holds token id {wrong[0]}: the tokenizer has 0 to {known - 1}.", param="input")
        with pipeline.tokenizer_lock:
            return str(pipeline.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    # ------------------------------------------------------------------ beside

    async def beside(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run something on a thread beside the one that embeds."""
        return await anyio.to_thread.run_sync(
            partial(work, *arguments, **options), limiter=self._limiter, abandon_on_cancel=True
        )

    async def explain(self, query: str, documents: Sequence[Any]) -> list[Explanation]:
        """Explain scores; see `GraceEmbedder.explain`."""
        return await self.beside(self.embedder.explain, query, list(documents), rationale=self.rationale)


def model_name(embedder: GraceEmbedder) -> str:
    """Name of a model in requests: that of a bundled one, a hub name, or a folder's without the folders around it."""
    name = embedder.pipeline.name.rstrip("/")
    return os.path.basename(name) if os.path.isabs(name) or os.path.exists(name) else name
