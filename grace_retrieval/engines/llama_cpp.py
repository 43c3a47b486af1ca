"""llama.cpp as a back end: a GGUF file runs as it is, without being converted, with one pass for rationale and vector.

It reads the weights in their few bits at every token, so a single text is written faster than by the default engine on
a CPU; for a corpus, the default engine's batches are faster.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from grace_retrieval.engine import FinishReason, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.llama_context import Fed, LlamaContext, import_llama_cpp
from grace_retrieval.engines.sampling import choose_tokens, uniform_numbers
from grace_retrieval.errors import InputError, ModelLoadError, NonFiniteEmbeddingError
from grace_retrieval.forking import ForkSafeLock
from grace_retrieval.gguf.header import GGUFHeader, hash_file
from grace_retrieval.gguf.tokenizers import build_tokenizer
from grace_retrieval.repetition import RepetitionWatch
from grace_retrieval.sentences import SentenceWatch, sentence_watch
from grace_retrieval.threads import fitted_threads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LlamaCppEngine"]

Float32 = npt.NDArray[np.float32]

BATCH_ROWS = 16
"""Texts written together; llama.cpp gains little by more on a CPU."""

BATCH_TOKENS = 4096
"""Most tokens of prompts and rationales held together, or those of one text if that is more."""


@dataclass(kw_only=True, eq=False)
class _Row:
    """A text that is being written about. `total` is the sum of the states behind the prefix.

    One that is watched for repetition keeps the states of its rationale, as some have to go if it goes in circles.
    """

    place: int
    request: RationaleRequest
    total: npt.NDArray[np.float64]
    sequence: int = 0
    length: int = 0
    written: list[int] = field(default_factory=list)
    pending: int | None = None
    reason: FinishReason | None = None
    end_token: int | None = None
    uniforms: npt.NDArray[np.float64] | None = None
    watch: RepetitionWatch | None = None
    sentences: SentenceWatch | None = None
    states: list[Float32] = field(default_factory=list)

    def add(self, state: Float32) -> None:
        """The state of the pending token, which has been fed."""
        self.length += 1
        if self.watch is None:
            self.total += state
        else:
            self.states.append(state.copy())

    def take(self, token: int, end_tokens: frozenset[int]) -> None:
        """The policy's choice of the next token. The last one that is kept has to be fed as well."""
        self.pending = None
        if self.reason is not None:
            return
        if token in end_tokens:
            self.reason, self.end_token = "stop", token
            return
        if self.sentences is not None and self.sentences.ends(token):
            self.reason = "stop"
            return
        self.written.append(token)
        start = None if self.watch is None else self.watch.add(token)
        if start is not None:
            self.reason, self.written = "repeat", self.written[:start]
            self.length -= len(self.states) - start
            del self.states[start:]
            return
        self.pending = token
        if len(self.written) == self.request.max_new_tokens:
            self.reason = "length"

    def pool(self) -> None:
        """Add what was kept to the sum."""
        for state in self.states:
            self.total += state
        self.states.clear()

    def output(self) -> RationaleOutput:
        pooled = self.length - self.request.prefix_length
        given = self.request.rationale_ids
        return RationaleOutput(
            token_ids=tuple(self.written) if given is None else given,
            finish_reason=self.reason or "given",
            vector=(self.total / pooled).astype(np.float32),
            end_token=self.end_token,
        )


class LlamaCppEngine:
    """Runs a GGUF file with llama.cpp (llama-cpp-python's low-level calls). A Policy.

    Vectors differ from those of the default engine by what 8-bit activations give: with the same rationale, their
    cosine is above .999. Greedy rationales differ wherever two tokens are nearly tied, so the rows of the two are kept
    apart.

    Args:
        path: GGUF file.
        threads: Threads of a call; None takes as many as torch does.
        max_batch_rows: Most texts written together.
        max_batch_tokens: Most tokens held together; None is 4,096, or those of the longest text that will come.
        max_length: Most tokens of a prompt with its rationale that will be asked for; None is the model's context.

    Raises:
        MissingExtraError: If llama-cpp-python is not installed.
        InputError: If `path` is no GGUF file, or a number is not positive.
        ModelLoadError: If the file is damaged, or its tokenizer is not known.
    """

    family = "llama.cpp"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        max_batch_rows: int | None = None,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
    ) -> None:
        import_llama_cpp()
        limits: tuple[tuple[str, object], ...] = (("threads", threads), ("max_batch_rows", max_batch_rows))
        for name, value in limits:
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise InputError(f"{name}={value!r}: give a positive whole number.")
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"engine='llama-cpp' runs a GGUF file, and {str(path)!r} is none. Give a *.gguf file.")
        header = GGUFHeader(self.path)
        self.tokenizer: PreTrainedTokenizerBase = build_tokenizer(header)
        self.context_length = int(header.require("context_length"))
        self.hidden_size = int(header.require("embedding_length"))
        self.end_tokens = frozenset(header.end_tokens())
        kinds = Counter(tensor.tensor_type.name for tensor in header.tensors.values() if len(tensor.shape) > 1)
        self.dtype = kinds.most_common(1)[0][0].lower()
        self.threads = threads
        self.max_batch_rows = max_batch_rows or BATCH_ROWS
        longest = min(max_length or self.context_length, self.context_length)
        self.max_batch_tokens = max(max_batch_tokens or BATCH_TOKENS, longest)
        self.lock = ForkSafeLock()
        self._weights_id: str | None = None
        self._context: LlamaContext | None = None
        self._prefix: tuple[int, ...] = ()
        self._counts: Counter[str] = Counter(texts=0, prompt_tokens=0, new_tokens=0, forward_passes=0)

    @property
    def engine_options(self) -> dict[str, int | None]:
        """Options that make an engine like this one by name; none of them changes a vector beyond rounding."""
        return {"threads": self.threads, "max_batch_rows": self.max_batch_rows}

    def weights_id(self) -> str:
        """Identity of the file's content, the same as for the default engine, which converts it."""
        if self._weights_id is None:
            self._weights_id = f"gguf-{hash_file(self.path)}"
        return self._weights_id

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was made: texts, prompt_tokens, new_tokens, forward_passes."""
        return dict(self._counts)

    def close(self) -> None:
        """Free the weights. Whatever runs afterwards loads them again."""
        with self.lock:
            if self._context is not None:
                self._context.close()
            self._context, self._prefix = None, ()

    # ------------------------------------------------------------------ running

    def run(
        self, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
    ) -> Iterator[tuple[int, RationaleOutput]]:
        """Yield `(index of the request, output)` for every request, longest texts first.

        Raises:
            InputError: If a prompt with its rationale is longer than the model's context.
            EngineError: If llama.cpp fails.
            NonFiniteEmbeddingError: If the model gives NaN or infinity.
        """
        sampling = sampling or SamplingOptions()
        order = sorted(range(len(requests)), key=lambda place: -self._room(requests[place]))
        while order:
            prefix = requests[order[0]].input_ids[: requests[order[0]].prefix_length]
            batch: list[int] = []
            used = len(prefix)
            for place in order:
                request = requests[place]
                if request.input_ids[: request.prefix_length] != prefix or len(batch) == self.max_batch_rows:
                    continue
                if batch and used + self._room(request) - len(prefix) > self.max_batch_tokens:
                    continue
                used += self._room(request) - len(prefix)
                batch.append(place)
            chosen = set(batch)
            order = [place for place in order if place not in chosen]
            with self.lock:
                finished = self._run_batch([(place, requests[place]) for place in batch], prefix, sampling)
            yield from finished

    def states(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, Float32]]:
        """Run whole sequences, generating nothing. Shape of what is yielded: (tokens, hidden_size), float32."""
        for place, tokens in enumerate(sequences):
            self._check(len(tokens))
            with self.lock:
                context = self._loaded()
                context.forget(-1)
                self._prefix = ()
                found, _ = context.decode([Fed(0, 0, tokens)], logits=False)
                found = found.copy()
            self._counts["forward_passes"] += 1
            yield place, found

    def _run_batch(
        self, work: Sequence[tuple[int, RationaleRequest]], prefix: tuple[int, ...], sampling: SamplingOptions
    ) -> list[tuple[int, RationaleOutput]]:
        """Prompts first, then a token of every text at a time."""
        context = self._loaded()
        self._share(context, prefix)
        rows = []
        for number, (place, request) in enumerate(work, start=1):
            uniforms = uniform_numbers(sampling, request)
            row = _Row(
                place=place,
                request=request,
                total=np.zeros(self.hidden_size),
                sequence=number,
                uniforms=uniforms,
                watch=RepetitionWatch() if sampling.stop_repeats else None,
                sentences=sentence_watch(self.tokenizer, sampling.max_sentences),
            )
            context.copy(0, number, len(prefix))
            row.length = len(prefix)
            rows.append(row)
        self._counts["texts"] += len(rows)
        for row in rows:
            self._read(context, row, sampling)
        while live := [row for row in rows if row.pending is not None]:
            states, logits = context.decode(
                [Fed(row.sequence, row.length, [row.pending]) for row in live if row.pending is not None], logits=True
            )
            self._counts["forward_passes"] += 1
            self._counts["new_tokens"] += len(live)
            for place, row in enumerate(live):
                row.add(states[place])
            self._choose(live, logits, sampling)
        for row in rows:
            context.forget(row.sequence)
            row.pool()
            if not np.isfinite(row.total).all():
                raise NonFiniteEmbeddingError(
                    f"llama.cpp gave NaN or infinity for a text of {len(row.request.input_ids)} tokens. Run the model "
                    "with engine='transformers'."
                )
        return [(row.place, row.output()) for row in rows]

    def _read(self, context: LlamaContext, row: _Row, sampling: SamplingOptions) -> None:
        """Feed what is given of a text, and choose its first token if one is to be written."""
        tokens = [*row.request.input_ids[row.length :], *(row.request.rationale_ids or ())]
        self._counts["prompt_tokens"] += len(tokens)
        writes = row.request.rationale_ids is None and row.request.max_new_tokens > 0
        # Logits are wanted behind the last token alone, so that one is fed by itself.
        for part, logits in ((tokens[:-1], False), (tokens[-1:], True)) if writes else ((tokens, False),):
            if not part:
                continue
            states, found = context.decode([Fed(row.sequence, row.length, part)], logits=logits)
            self._counts["forward_passes"] += 1
            row.total += states.sum(axis=0, dtype=np.float64)
            row.length += len(part)
        if writes:
            self._choose([row], found, sampling)

    def _choose(self, rows: Sequence[_Row], logits: Float32 | None, sampling: SamplingOptions) -> None:
        uniforms = None
        if rows[0].uniforms is not None:
            uniforms = np.array(
                [row.uniforms[min(len(row.written), len(row.uniforms) - 1)] for row in rows if row.uniforms is not None]
            )
        tokens = choose_tokens(torch.from_numpy(logits), sampling, uniforms)
        for row, token in zip(rows, tokens, strict=True):
            row.take(token, self.end_tokens)

    def _share(self, context: LlamaContext, prefix: tuple[int, ...]) -> None:
        """Have the prefix's keys and values in sequence 0; they stay there for the next call."""
        if prefix == self._prefix:
            return
        context.forget(-1)
        self._prefix = ()
        if prefix:
            context.decode([Fed(0, 0, prefix)], logits=False)
            self._counts["forward_passes"] += 1
        self._prefix = prefix

    def _room(self, request: RationaleRequest) -> int:
        length = len(request.input_ids) + len(request.rationale_ids or ()) + request.max_new_tokens
        self._check(length)
        return length

    def _check(self, length: int) -> None:
        if length > self.context_length:
            raise InputError(
                f"A prompt of {length} tokens with its rationale: {self.path.name} has {self.context_length} "
                "positions. Give a smaller max_seq_length or max_new_tokens."
            )
        if length > self.max_batch_tokens:
            self.close()
            self.max_batch_tokens = length

    def _loaded(self) -> LlamaContext:
        if self._context is None:
            if not self.path.is_file():
                raise ModelLoadError(f"{self.path} is gone: the model cannot be loaded again.")
            self._context = LlamaContext(
                str(self.path),
                tokens=self.max_batch_tokens,
                sequences=self.max_batch_rows + 1,
                threads=self.threads or fitted_threads(),
                exact=self.dtype == "f32",
            )
        return self._context
