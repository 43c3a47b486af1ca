"""The default engine: any causal LM of transformers, on CPU or GPU, in one pass.

Texts are sorted by length and batched under a token budget; each batch starts from the keys and values of the
shared system prefix, is prefilled with the texts, and decoded until every rationale has ended.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from grace_retrieval.engine import RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.decoding import Row, decode, prefill
from grace_retrieval.engines.plain import pool_tokens, run_plain
from grace_retrieval.engines.ragged import RaggedBatch, RaggedCache, ragged_forward, ragged_implementation
from grace_retrieval.engines.reading import READ_TOKENS, read
from grace_retrieval.engines.sampling import choose_tokens, uniform_numbers
from grace_retrieval.errors import EngineError, InputError, NonFiniteEmbeddingError
from grace_retrieval.features import pad_rows
from grace_retrieval.forking import ForkSafeLock
from grace_retrieval.identity import WeightsIdentity, WeightsOrigin, weights_version
from grace_retrieval.loading import end_tokens as find_end_tokens
from grace_retrieval.sentences import sentence_watch
from grace_retrieval.threads import share_cores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TransformersEngine", "longest_batched"]

logger = logging.getLogger(__name__)

PREFILL_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""Aim for the tokens of a prefill pass. On a GPU a pass costs what it costs to start, so there are to be few of them:
with 16,384 an H200 embedded 3.9 times as many texts a second through a policy of 135M as with 1,024."""

DRAFT_TOKENS = 32
"""Tokens up to which a decode pass costs a CPU about the same, so that drafting is free."""

DRAFT_ROWS = {"cpu": 128, "cuda": 8}
"""Most texts of a batch that are drafted for. A GPU waits while drafts are looked for: without them an H200 embedded
1.2 times as many texts a second in large batches. For a few texts a draft that comes true saves a whole pass."""

STATES_TOKENS = 2048
"""Most tokens of a pass that gives the states of whole sequences, or `max_batch_tokens` if that is less."""

SHARED_PREFIXES = 8
"""System prompts whose keys and values are kept."""


class TransformersEngine:
    """Runs a causal LM of transformers, with its own decode loop. With a tokenizer, it is a TrainablePolicy.

    Rationales and vectors do not depend on the batch beyond rounding: within 1e-5 in float32, 2e-2 in bfloat16. Where
    two tokens are equally probable to within that, a greedy rationale may differ between batches.

    Args:
        model: The policy, with its language-model head.
        tokenizer: Its tokenizer.
        end_tokens: Tokens that end a rationale. None: those of tokenizer, model and generation config.
        max_batch_tokens: Most tokens (prompts and rationale budgets together) of a batch. None: a quarter of the free
            memory, 65,536 at most on a CPU and 524,288 on a GPU.
        max_batch_rows: Most texts of a batch. None: 128 on a CPU, 1,024 on a GPU.
        draft: Whether to draft tokens from the text's own words. Changes the speed, never a rationale.
        origin: The file that the weights were converted from, if any; they are called by it while they are unchanged.

    Raises:
        InputError: If a limit is not positive, or there are neither end tokens nor a tokenizer.
    """

    family = "transformers"
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        end_tokens: Sequence[int] | None = None,
        max_batch_tokens: int | None = None,
        max_batch_rows: int | None = None,
        draft: bool = True,
        origin: WeightsOrigin | None = None,
    ) -> None:
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_batch_rows", max_batch_rows)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: give a positive number.")
        if tokenizer is not None:
            self.tokenizer = tokenizer
        elif end_tokens is None:
            raise InputError("end_tokens=None without a tokenizer: give one of the two, or nothing ends a rationale.")
        self.model = model
        self._end_tokens = None if end_tokens is None else frozenset(end_tokens)
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_rows = max_batch_rows
        self.draft = draft
        self.lock = ForkSafeLock()
        self._prefixes: OrderedDict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = OrderedDict()
        self._prefixes_of: tuple[object, ...] = ()
        self._counts: Counter[str] = Counter(texts=0, prompt_tokens=0, new_tokens=0, forward_passes=0)
        self._ragged: bool | None = None
        self._identity = WeightsIdentity(origin)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a rationale: given ones, or those of tokenizer, model and generation config as they are."""
        if self._end_tokens is None:
            return frozenset(find_end_tokens(self.model, self.tokenizer))
        return self._end_tokens

    @property
    def module(self) -> PreTrainedModel:
        """The policy, with its language-model head."""
        return self.model

    @property
    def context_length(self) -> int:
        """Positions of the model; as good as unlimited for models that state none."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def dtype(self) -> str:
        """Number format of the weights, e.g. "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was made: texts, prompt_tokens, new_tokens, forward_passes."""
        return dict(self._counts)

    def weights_id(self) -> str:
        """Content hash of the weights as they are in memory, 32 hexadecimal digits, or the name of their origin."""
        return self._identity.of(self.model)

    def origin(self) -> WeightsOrigin | None:
        """The file that the weights were converted from, if they still are as it holds them."""
        return self._identity.origin(self.model)

    def close(self) -> None:
        """Drop the keys and values that are kept. The weights stay with whoever else holds the model."""
        self._prefixes.clear()

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states, differentiable. Shapes: (batch, tokens) each; result (batch, tokens, hidden_size)."""
        with self.lock:
            output = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def states(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Run whole sequences, generating nothing, longest first.

        Args:
            sequences: Token ids; none is empty.

        Yields:
            Place of a sequence, and its last hidden states. Shape: (tokens, hidden_size), float32.
        """
        budget = min(self.max_batch_tokens or STATES_TOKENS, STATES_TOKENS)
        most = longest_batched(self.model.config.get_text_config())
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        while order:
            longest = len(sequences[order[0]])
            rows = 1 if longest > most else max(1, budget // longest)
            batch, order = order[:rows], order[rows:]
            ids, mask = pad_rows([sequences[index] for index in batch], 0)
            training, device = self.model.training, self.model.device
            with self.lock, torch.inference_mode():
                self.model.eval()
                try:
                    output = self.model.base_model(
                        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
                    )
                finally:
                    self.model.train(training)
            for row, index in enumerate(batch):
                yield index, output.last_hidden_state[row, : len(sequences[index])].float().cpu().numpy()

    def run(
        self, requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None
    ) -> Iterator[tuple[int, RationaleOutput]]:
        """Yield `(index of the request, output)` for every request, longest texts first.

        Args:
            requests: Texts as token ids.
            sampling: How tokens are chosen; None is greedy.

        Yields:
            The place of a request in `requests` and its output.

        Raises:
            EngineError: If a text does not fit into memory alone.
            NonFiniteEmbeddingError: If the model gives NaN or infinity, in float32 too.
        """
        sampling = sampling or SamplingOptions()
        global _has_run
        _has_run = True
        training = self.model.training
        self.model.eval()
        try:
            for index, output in self._run(requests, sampling):
                if not np.isfinite(output.vector).all():
                    output = self._run_in_float32(requests[index], sampling)
                self._counts["texts"] += 1
                self._counts["prompt_tokens"] += len(requests[index].input_ids) - requests[index].prefix_length
                self._counts["new_tokens"] += len(output.token_ids) if output.finish_reason != "given" else 0
                yield index, output
        finally:
            self.model.train(training)

    def _run(
        self, requests: Sequence[RationaleRequest], sampling: SamplingOptions
    ) -> Iterator[tuple[int, RationaleOutput]]:
        if not requests:
            return
        most = longest_batched(self.model.config.get_text_config()) if self._supports_ragged() else -1
        fitting = [index for index, request in enumerate(requests) if _length(request) <= most]
        for index in sorted(set(range(len(requests))) - set(fitting)):
            try:
                with self.lock:
                    output = run_plain(
                        self.model, requests[index], sampling, self.end_tokens, getattr(self, "tokenizer", None)
                    )
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                raise _too_large(requests[index]) from error
            yield index, output
        for indices in self._batches(requests, fitting):
            waiting = [indices]
            while waiting:
                batch = waiting.pop(0)
                finished: set[int] = set()
                try:
                    for index, output in self._run_batch(batch, requests, sampling):
                        finished.add(index)
                        yield index, output
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    left = [index for index in batch if index not in finished]
                    if len(left) == 1:
                        raise _too_large(requests[left[0]]) from error
                    logger.warning("Out of memory with %d texts in a batch; going on with half.", len(left))
                    waiting[:0] = [left[: len(left) // 2], left[len(left) // 2 :]]
                    self._prefixes.clear()
                    if self.model.device.type == "cuda":
                        torch.cuda.empty_cache()

    def _run_batch(
        self, indices: Sequence[int], requests: Sequence[RationaleRequest], sampling: SamplingOptions
    ) -> Iterator[tuple[int, RationaleOutput]]:
        """Run one batch; the model is locked and in inference mode only while it works, not while it yields."""
        writes = any(_writes(requests[index]) for index in indices)
        work = self._work(indices, requests, sampling) if writes else self._read(indices, requests)
        while True:
            with self.lock, torch.inference_mode(), ragged_implementation(self.model) if writes else nullcontext():
                item = next(work, None)
            if item is None:
                return
            yield item

    def _work(
        self, indices: Sequence[int], requests: Sequence[RationaleRequest], sampling: SamplingOptions
    ) -> Iterator[tuple[int, RationaleOutput]]:
        model, dtype = self.model, self.model.dtype
        rows = [
            Row(
                index,
                requests[index],
                uniforms=uniform_numbers(sampling, requests[index]),
                draft=self.draft and len(indices) <= _on(model, DRAFT_ROWS),
                watched=sampling.stop_repeats,
                sentences=sentence_watch(getattr(self, "tokenizer", None), sampling.max_sentences),
            )
            for index in indices
        ]
        request = rows[0].request
        prefix = self._prefix(request.input_ids[: request.prefix_length])
        # Several samples of one text share its prompt until the first token is chosen.
        firsts: dict[tuple[int, ...], Row] = {}
        for row in rows:
            firsts.setdefault(row.prompt, row)
        cache = RaggedCache(model.config.get_text_config().num_hidden_layers, len(firsts), prefix)
        totals = torch.zeros(len(firsts), model.config.get_text_config().hidden_size, device=model.device)
        most_tokens = _on(model, PREFILL_TOKENS)
        prefill(list(firsts.values()), cache, totals, self._forward, dtype=dtype, most_tokens=most_tokens)
        if len(firsts) < len(rows):
            places = {prompt: place for place, prompt in enumerate(firsts)}
            source = [places[row.prompt] for row in rows]
            cache.keep(source)
            totals = totals[torch.tensor(source, device=totals.device)]
            for row in rows:
                row.start_like(firsts[row.prompt])
        for row, total in zip(rows, totals, strict=True):
            if row.done:
                yield row.index, row.output(total)

        def step(
            tokens: Tensor, batch: RaggedBatch, cache: RaggedCache, uniforms: npt.NDArray[np.float64] | None
        ) -> tuple[Tensor, list[int]]:
            self._counts["forward_passes"] += 1
            logits, hidden = self._logits_and_states(tokens, batch, cache)
            return hidden, choose_tokens(logits, sampling, uniforms)

        for row, total in decode(
            rows, cache, totals, step, dtype=dtype, end_tokens=self.end_tokens, most_tokens=DRAFT_TOKENS
        ):
            yield row.index, row.output(total)

    def _read(
        self, indices: Sequence[int], requests: Sequence[RationaleRequest]
    ) -> Iterator[tuple[int, RationaleOutput]]:
        order = sorted(indices, key=lambda index: -_length(requests[index]))
        first = requests[order[0]]
        with ragged_implementation(self.model):
            prefix = self._prefix(first.input_ids[: first.prefix_length])
        chosen = [requests[index] for index in order]
        most_tokens = _on(self.model, READ_TOKENS)
        for place, output in read(self.model, chosen, prefix, most_tokens=most_tokens, counts=self._counts):
            yield order[place], output

    def _forward(self, tokens: Tensor, batch: RaggedBatch, cache: RaggedCache) -> Tensor:
        """Last hidden states of a pass that needs no logits. Shape: (tokens, hidden)."""
        share_cores(self.model.device.type)
        self._counts["forward_passes"] += 1
        hidden: Tensor = ragged_forward(self.model.base_model, tokens, batch, cache).last_hidden_state
        return hidden[0]

    def _logits_and_states(self, tokens: Tensor, batch: RaggedBatch, cache: RaggedCache) -> tuple[Tensor, Tensor]:
        """Logits (tokens, vocabulary), as the model itself scales them, and last hidden states (tokens, hidden)."""
        share_cores(self.model.device.type)
        states: list[Tensor] = []
        hook = self.model.base_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
        try:
            logits: Tensor = ragged_forward(self.model, tokens, batch, cache).logits
        finally:
            hook.remove()
        return logits[0], states[0][0]

    def _prefix(self, tokens: tuple[int, ...]) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of a system prefix, computed once per model and prompt."""
        if not tokens:
            return None
        if (version := weights_version(self.model)) != self._prefixes_of:
            self._prefixes.clear()
            self._prefixes_of = version
        if tokens not in self._prefixes:
            cache = RaggedCache(self.model.config.get_text_config().num_hidden_layers, 1)
            batch = RaggedBatch([len(tokens)], [0], first_row=0, device=self.model.device, dtype=self.model.dtype)
            self._forward(torch.tensor(tokens, device=self.model.device), batch, cache)
            self._prefixes[tokens] = cache.row(0, len(tokens))
            while len(self._prefixes) > SHARED_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(tokens)
        return self._prefixes[tokens]

    def _batches(self, requests: Sequence[RationaleRequest], chosen: Sequence[int]) -> Iterator[list[int]]:
        """Group requests with the same prefix, longest first, so that a batch that is too large fails at once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index in chosen:
            groups.setdefault(requests[index].input_ids[: requests[index].prefix_length], []).append(index)
        if not groups:
            return
        lengths = [_length(request) for request in requests]
        budget = self.max_batch_tokens or self._token_budget()
        most_rows = self.max_batch_rows or (1024 if self.model.device.type == "cuda" else 128)
        for indices in groups.values():
            indices.sort(key=lambda index: -lengths[index])
            first = 0
            while first < len(indices):
                rows = max(1, min(most_rows, budget // lengths[indices[first]]))
                yield indices[first : first + rows]
                first += rows

    def _token_budget(self) -> int:
        """Tokens whose keys and values fill a quarter of the free memory."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * heads * head_dim * self.model.dtype.itemsize
        if self.model.device.type == "cuda":
            free, most = torch.cuda.mem_get_info(self.model.device)[0], 524_288
        else:
            free, most = _free_memory(), 65_536
        return int(max(2048, min(most, free // 4 // token_bytes)))

    def _supports_ragged(self) -> bool:
        """Try the one-pass loop once, on two rows, against a second pass; models it does not suit run the plain way."""
        if self._ragged is None:
            vocabulary = self.model.config.get_text_config().vocab_size
            tokens = tuple(7 * i % vocabulary for i in range(1, 21))
            rows = [RationaleRequest(input_ids=tokens[:n], prefix_length=5, max_new_tokens=4) for n in (20, 12)]
            finite, reason = True, "its hidden states differ"
            with self.lock, torch.inference_mode():
                try:
                    with ragged_implementation(self.model):
                        outputs = dict(self._work([0, 1], rows, SamplingOptions()))
                except Exception as error:
                    self._ragged, reason = False, f"{type(error).__name__}: {error}"
                else:
                    tolerance = 1e-3 if self.model.dtype == torch.float32 else 5e-2
                    self._ragged = True
                    for index, row in enumerate(rows):
                        plain = pool_tokens(self.model, row.input_ids + outputs[index].token_ids, 5).cpu().numpy()
                        off = np.abs(plain - outputs[index].vector).max()
                        self._ragged &= bool(off <= tolerance * max(1.0, np.abs(plain).max()))
                        finite &= bool(np.isfinite(plain).all())
            if not self._ragged and finite:
                logger.warning(
                    "%s cannot run in batches of ragged rows (%s); going on one text at a time, which is slower.",
                    type(self.model).__name__,
                    reason,
                )
        return self._ragged

    def _run_in_float32(self, request: RationaleRequest, sampling: SamplingOptions) -> RationaleOutput:
        """Run a request again with float32 weights, because half precision overflowed."""
        if self.model.dtype == torch.float32:
            raise NonFiniteEmbeddingError(
                f"The model gave NaN or infinity for a text of {len(request.input_ids)} tokens, in float32. Its "
                "weights are probably damaged; load them again."
            )
        logger.warning("NaN or infinity in %s; running this text again in float32.", self.dtype)
        with self.lock:
            full = TransformersEngine(
                copy.deepcopy(self.model).float(),
                tokenizer=getattr(self, "tokenizer", None),
                end_tokens=tuple(self.end_tokens),
            )
        return next(full.run([request], sampling))[1]


_has_run = False


def _after_fork() -> None:
    """OpenMP's threads do not come along into a forked child, which would wait for them for ever."""
    if _has_run:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def longest_batched(config: PreTrainedConfig) -> int:
    """Most tokens of a text that may share a batch with others.

    With some kinds of rotary embedding, one sequence longer than this changes the frequencies of all the others.

    Args:
        config: Configuration of the model's text part.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # some models have one set of parameters a layer type
        if isinstance(part, dict) and part.get("rope_type") in ("dynamic", "longrope"):
            return int(part.get("original_max_position_embeddings") or config.max_position_embeddings)
    return sys.maxsize


def _on(model: PreTrainedModel, limits: Mapping[str, int]) -> int:
    """A limit for the device of a model; that of CPUs where none is known."""
    return limits.get(model.device.type, limits["cpu"])


def _writes(request: RationaleRequest) -> bool:
    return request.rationale_ids is None and request.max_new_tokens > 0


def _length(request: RationaleRequest) -> int:
    """Most tokens that a request may come to."""
    return len(request.input_ids) + len(request.rationale_ids or ()) + request.max_new_tokens


def _too_large(request: RationaleRequest) -> EngineError:
    return EngineError(
        f"A text of {len(request.input_ids)} tokens with a rationale of up to {request.max_new_tokens} does not fit "
        "into memory, even alone. Lower max_seq_length or max_new_tokens, or use a device with more memory."
    )


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _free_memory() -> int:
    """Bytes of memory that can be had without swapping; 4 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
