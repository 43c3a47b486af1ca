"""RationalePipeline: the one line that every embedding goes down.

    text → prompt → cache → generate → pool → vector
           render   '---------- write ---------'

`rows` is the whole of it. Whoever has tokens already (`RationaleTransformer.forward`) starts at `write`; whoever needs
no vectors (`explain`) stops behind `render`.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from grace_retrieval.cache import CachedRationale, Fingerprint, RationaleCache, open_cache, row_key
from grace_retrieval.engine import Policy, RationaleEngine, RationaleRequest, SamplingOptions, TrainablePolicy
from grace_retrieval.engines.by_name import DEFAULT_ENGINE, PolicySource, check_engine, make_policy
from grace_retrieval.errors import EngineError, InputError
from grace_retrieval.forking import ForkSafeLock
from grace_retrieval.identity import TokenizerIdentity
from grace_retrieval.markup import unwritten_tokens
from grace_retrieval.options import WritingOptions
from grace_retrieval.prompt import RationalePrompt, RenderedText, TruncationWarning, check_texts
from grace_retrieval.rationale import Rationale, RationaleMode, check_mode
from grace_retrieval.rows import RationaleRow, Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RationalePipeline"]

STORE_ROWS = 64
STORE_SECONDS = 2.0
"""Finished rows are stored this often, so that an interrupted call loses no more than that."""


@dataclass(kw_only=True)
class _Work:
    """A prompt to run, and the places of the texts that wait for it."""

    request: RationaleRequest
    given: bool = False
    places: list[int] = field(default_factory=list)


_Found = tuple[_Work, CachedRationale, int | None, bool]
"""A row of some work, the token that ended its rationale, and whether it came from the cache."""


class RationalePipeline:
    """Turns texts into rationales and pooled vectors, through the cache.

    Args:
        source: Where the policy is.
        engine: Name of what runs it.
        engine_options: Options of the engine; JSON values.
        cache: A RationaleCache, a path, "default", "memory" or None; see `open_cache`.
        name: Name of the model, for messages; None is the source's path.
        **options: Of WritingOptions.

    Attributes:
        options: How texts are shown and rationales written, a WritingOptions.
        tokenizer_lock: Held while the tokenizer works; a fast one cannot be used by two threads at once.
        counts: Rows since it was made: "generated" and "found" (in the cache).

    Raises:
        InputError: If an option is out of range.
        ModelLoadError: If the policy cannot be loaded.
    """

    def __init__(
        self,
        source: PolicySource,
        *,
        engine: str = DEFAULT_ENGINE,
        engine_options: Mapping[str, Any] | None = None,
        cache: Any = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self.source = source
        self.engine_name = engine
        self.engine_options: Mapping[str, Any] = check_engine(engine, engine_options)
        self._policy: Policy | None = None
        self._engine: RationaleEngine | None = None
        self.name = source.path if name is None else name
        self.tokenizer: PreTrainedTokenizerBase = self.policy.tokenizer
        self._unwritten = unwritten_tokens(self.tokenizer)
        self.options = WritingOptions(self.policy.context_length, **options)
        self.cache: RationaleCache | None = open_cache(cache)
        self.counts = Counter(generated=0, found=0)
        self._prompts: dict[tuple[str, str], RationalePrompt] = {}
        self._tokenizer_identity = TokenizerIdentity()
        self.tokenizer_lock = ForkSafeLock()

    # ------------------------------------------------------------------ the line

    def rows(
        self,
        texts: Sequence[str],
        *,
        role: Role | None = None,
        prompt: str | None = None,
        given: Sequence[Any] | None = None,
        **options: Any,
    ) -> list[RationaleRow]:
        """Texts in, rationales and vectors out.

        Args:
            texts: Texts.
            role: What they are in retrieval, part of the cache's key.
            prompt: System prompt; None is the pipeline's own, "" none.
            given: As in `render`.
            **options: As in `write`.

        Returns:
            One row a text.

        Raises:
            InputError: If a text is not a str, or too long and `on_truncation` is "error".
            EngineError: If the policy cannot run them.
        """
        return self.write(self.render(texts, prompt=prompt, given=given), role=role, prompt=prompt, **options)

    def render(
        self, texts: Sequence[str], *, prompt: str | None = None, given: Sequence[Any] | None = None
    ) -> list[RenderedText]:
        """Texts as the policy is shown them.

        Args:
            texts: Texts.
            prompt: System prompt; None is the pipeline's own, "" none.
            given: Rationales to be pooled instead of written: strings, Rationales or token ids; None for a text whose
                rationale is not given.

        Returns:
            One RenderedText a text; a blank text has a text_length of 0.

        Raises:
            InputError: If a text is not a str, or too long and `on_truncation` is "error".
        """
        check_texts(texts)
        template = self.prompt(prompt)
        with self.tokenizer_lock:
            # A blank text is never shown to the policy; only its length of 0 matters.
            rendered = template.render(
                [text if text.strip() else "" for text in texts], max_length=self.options.max_seq_length
            )
            if given is not None:
                rendered = [
                    text if own is None else replace(text, rationale_ids=self._given_ids(template, own))
                    for text, own in zip(rendered, given, strict=True)
                ]
        self._report_truncation(rendered)
        return rendered

    def write(
        self,
        rendered: Sequence[RenderedText],
        *,
        role: Role | None = None,
        prompt: str | None = None,
        rationale: RationaleMode | None = None,
        sampling: SamplingOptions | None = None,
        max_new_tokens: int | None = None,
        samples: Sequence[int] | None = None,
        cached: bool = True,
        whole: bool = False,
        on_row: Callable[[], object] | None = None,
    ) -> list[RationaleRow]:
        """Find or generate the rationales of rendered texts, and pool.

        Args:
            rendered: Texts of one system prompt, from `render`.
            role: What they are in retrieval.
            prompt: The system prompt that they were rendered with.
            rationale: True writes rationales, False none, "echo" takes each text as its own; None is the pipeline's
                setting. Given rationales stay as they are.
            sampling: How tokens are chosen; None is the pipeline's setting.
            max_new_tokens: Most tokens of a rationale; None is the pipeline's setting.
            samples: Number of the sample of each text, for several rationales of one text; these are not cached.
            cached: Whether to look into the cache, and store in it.
            whole: Whether to store all new rows or, if interrupted, none. So the same call made again forms the same
                batches, and gives the same bits.
            on_row: Called for each text as soon as its row is there.

        Returns:
            One row a text. What a text asks for twice is run once; blank texts are not run at all.

        Raises:
            EngineError: If the engine fails, or gives fewer rows than it was asked for.
        """
        sampling = self.options.sampling if sampling is None else sampling
        mode = self.options.rationale if rationale is None else check_mode(rationale)
        budget = self.options.max_new_tokens if max_new_tokens is None else max_new_tokens
        budget = budget if mode is True else 0
        notify = on_row or (lambda: None)
        rows: dict[int, RationaleRow] = {}
        wanted: dict[tuple[tuple[int, ...], tuple[int, ...] | None, int], _Work] = {}
        for place, text in enumerate(rendered):
            if not text.text_length:
                rows[place] = RationaleRow.blank(text, self.policy.hidden_size)
                notify()
                continue
            sample = 0 if samples is None else samples[place]
            key = (text.input_ids, text.rationale_ids, sample)
            if key not in wanted:
                given = text.rationale_ids is not None
                shown = replace(text, rationale_ids=self._echo(text)) if mode == "echo" and not given else text
                wanted[key] = _Work(request=shown.request(budget, sample), given=given)
            wanted[key].places.append(place)
        if self.cache is None or not cached or samples is not None:
            found = self._generate(list(wanted.values()), sampling)
        else:
            fingerprint = self._fingerprint(role, prompt, _generation(mode, budget or None, sampling))
            found = self._through_cache(list(wanted.values()), fingerprint, sampling, whole=whole)
        with closing(found):  # what is ready is stored, also when `on_row` or the engine raises
            for work, row, end_token, cached in found:
                for place in work.places:
                    rows[place] = RationaleRow.of(row, rendered[place], end_token, cached=cached)
                    notify()
        if lost := len(rendered) - len(rows):
            raise EngineError(
                f"The engine gave no output for {lost} of {len(rendered)} texts; every request needs one."
            )
        return [rows[place] for place in range(len(rendered))]

    def keys(
        self,
        rendered: Sequence[RenderedText],
        *,
        role: Role | None = None,
        prompt: str | None = None,
        rationale: RationaleMode = True,
    ) -> list[bytes]:
        """Keys of the cache's rows, 16 bytes each; arguments as in `find`."""
        budget = self.options.max_new_tokens if rationale is True else 0
        generation = _generation(rationale, budget or None, self.options.sampling)
        digest = self._fingerprint(role, prompt, generation).digest()
        return [row_key(digest, text.input_ids) for text in rendered]

    def find(
        self, rendered: Sequence[RenderedText], *, role: Role | None = None, prompt: str | None = None
    ) -> list[RationaleRow | None]:
        """Look rows up, generating nothing.

        Args:
            rendered: Texts of one system prompt, from `render`.
            role: What they are in retrieval.
            prompt: The system prompt that they were rendered with.

        Returns:
            One row a text; None where the cache has none.
        """
        rows = [None if text.text_length else RationaleRow.blank(text, self.policy.hidden_size) for text in rendered]
        shown = [place for place, text in enumerate(rendered) if text.text_length]
        if self.cache is not None and shown:
            keys = self.keys([rendered[place] for place in shown], role=role, prompt=prompt)
            stored = self.cache.get_many(keys)
            for place, key in zip(shown, keys, strict=True):
                rows[place] = RationaleRow.of(stored[key], rendered[place], cached=True) if key in stored else None
        return rows

    def _through_cache(
        self,
        wanted: Sequence[_Work],
        fingerprint: Fingerprint,
        sampling: SamplingOptions,
        *,
        whole: bool,
    ) -> Generator[_Found]:
        """Rows from the cache, then new ones, which are stored; given rationales go past it."""
        cache = self.cache
        looked_up = [work for work in wanted if not work.given]
        if cache is None or not looked_up:
            yield from self._generate(wanted, sampling)
            return
        digest = fingerprint.digest()
        keys = {id(work): row_key(digest, work.request.input_ids) for work in looked_up}
        stored = cache.get_many(list(keys.values()))
        self.counts["found"] += len(stored)
        for work in looked_up:
            if (row := stored.get(keys[id(work)])) is not None:
                yield work, row, None, True
        missing = [work for work in wanted if keys.get(id(work)) not in stored]
        if not missing:
            return
        cache.register(fingerprint)
        fresh: dict[bytes, CachedRationale] = {}
        since = time.monotonic()
        done = False
        try:
            for work, row, end_token, cached in self._generate(missing, sampling):
                if (key := keys.get(id(work))) is not None:
                    fresh[key] = row
                yield work, row, end_token, cached
                if not whole and (len(fresh) >= STORE_ROWS or time.monotonic() - since > STORE_SECONDS):
                    cache.put_many(fresh, fingerprint=digest)
                    fresh, since = {}, time.monotonic()
            done = True
        finally:
            if fresh and (done or not whole):
                cache.put_many(fresh, fingerprint=digest)

    def _generate(self, wanted: Sequence[_Work], sampling: SamplingOptions) -> Generator[_Found]:
        if not wanted:
            return
        for place, output in self.engine.run([work.request for work in wanted], sampling):
            self.counts["generated"] += not wanted[place].given
            row = CachedRationale(
                token_ids=output.token_ids,
                text=self.decode(output.token_ids),
                finish_reason="stop" if output.finish_reason == "given" else output.finish_reason,
                vector=output.vector,
            )
            yield wanted[place], row, output.end_token, False

    def _echo(self, text: RenderedText) -> tuple[int, ...]:
        """The tokens of a text as it is shown, as many as fit behind it."""
        start, room = text.prefix_length, self.options.context_length - len(text.input_ids)
        return text.input_ids[start : start + min(text.text_length, max(room, 0))]

    def _given_ids(self, template: RationalePrompt, rationale: Any) -> tuple[int, ...]:
        if isinstance(rationale, Rationale):
            ids = rationale.token_ids
        elif isinstance(rationale, str):
            ids = template.rationale_ids([rationale])[0]
        else:
            ids = tuple(map(int, rationale))
        if len(ids) > (most := self.options.context_length - self.options.max_seq_length):
            raise InputError(f"A given rationale has {len(ids)} tokens; at most {most} fit beside the text.")
        return ids

    def _report_truncation(self, rendered: Sequence[RenderedText]) -> None:
        cut = [index for index, text in enumerate(rendered) if text.truncated]
        if not cut or self.options.on_truncation == "ignore":
            return
        limit = f"max_seq_length={self.options.max_seq_length} tokens with their prompt"
        message = f"{len(cut)} of {len(rendered)} texts are longer than {limit}"
        if self.options.on_truncation == "error":
            raise InputError(
                f"{message} (the first is number {cut[0]} of its batch). Split them or raise max_seq_length."
            )
        warnings.warn(f"{message} and were shortened at the end.", TruncationWarning, stacklevel=2)

    def prompt(self, system_prompt: str | None) -> RationalePrompt:
        """The rendered form of a system prompt; None is the pipeline's own.

        Raises:
            InputError: If it is no string, or leaves no room for a text.
        """
        system_prompt = self.options.system_prompt if system_prompt is None else system_prompt
        if not isinstance(system_prompt, str):
            raise InputError(f"system_prompt is {type(system_prompt).__name__}: give a string.")
        key = (system_prompt, str(self.tokenizer.chat_template))
        if key not in self._prompts:
            self._prompts[key] = RationalePrompt(self.tokenizer, system_prompt)
        prompt = self._prompts[key]
        context = self.options.context_length
        length, room = len(prompt.prefix_ids) + len(prompt.suffix_ids), context - self.options.max_new_tokens
        if length >= room:
            raise InputError(
                f"System prompt and chat template come to {length} tokens, which leaves no room for a text: the model "
                f"has {context} positions, max_new_tokens={self.options.max_new_tokens} of them for the rationale."
            )
        return prompt

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a rationale; <think> tags stay, end tokens do not."""
        return str(self.tokenizer.decode([token for token in token_ids if token not in self._unwritten]))

    # ------------------------------------------------------------------ what runs

    @property
    def policy(self) -> Policy:
        """The policy, loaded when it is first needed."""
        if self._policy is None:
            self._policy = make_policy(self.engine_name, self.engine_options, self.source)
        return self._policy

    @property
    def module(self) -> PreTrainedModel:
        """The policy's weights as a torch module, for whoever trains it.

        Raises:
            InputError: If they are none.
        """
        if not isinstance(self.policy, TrainablePolicy):
            raise InputError(
                f"engine={self.policy.family!r} holds no torch module that could be trained or measured here. Load the "
                "model with engine='transformers'."
            )
        return self.policy.module

    @property
    def engine(self) -> RationaleEngine:
        """What runs the policy: the policy itself, or an engine that was put before it by hand.

        One that is put in place by hand is described by its `family` and, if it has them, its `engine_options`: copies,
        and indexes that are opened again, load it by these. One that is a whole Policy takes the place of the policy.
        """
        return self.policy if self._engine is None else self._engine

    @engine.setter
    def engine(self, engine: RationaleEngine) -> None:
        if isinstance(engine, Policy):
            self._policy, self._engine = engine, None
        else:
            self._engine = engine
        self.engine_name = engine.family
        self.engine_options = dict(getattr(engine, "engine_options", None) or {})

    # ------------------------------------------------------------------ identity

    def fingerprint(
        self, role: str | None = None, prompt: str | None = None, rationale: RationaleMode | None = None
    ) -> Fingerprint:
        """Identity of everything that may change a rationale or a vector.

        Args:
            role: "query" or "document"; anything else counts as none.
            prompt: System prompt; None is the pipeline's own.
            rationale: As in `write`; None is the pipeline's setting.
        """
        mode = self.options.rationale if rationale is None else check_mode(rationale)
        budget = self.options.max_new_tokens if mode is True else None
        return self._fingerprint(role, prompt, _generation(mode, budget, self.options.sampling))

    def _fingerprint(self, role: str | None, prompt: str | None, generation: Mapping[str, Any]) -> Fingerprint:
        return Fingerprint(
            model=self.name,
            weights=self.policy.weights_id(),
            tokenizer=self._tokenizer_identity.of(self.tokenizer),
            prompt=self.options.system_prompt if prompt is None else prompt,
            role=role if role in ("query", "document") else "",
            generation=generation,
            budget={"max_seq_length": self.options.max_seq_length},
            dtype=self.engine.dtype,
            engine=self.engine.family,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a process: the running policy and locks."""
        left_out = ("_policy", "_engine", "_tokenizer_identity", "tokenizer_lock")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make them anew, the policy when it is first needed."""
        self.__dict__.update(state)
        self._policy = self._engine = None
        self._tokenizer_identity = TokenizerIdentity()
        self.tokenizer_lock = ForkSafeLock()


def _generation(mode: RationaleMode, budget: int | None, sampling: SamplingOptions) -> dict[str, Any]:
    """What a fingerprint says about how rationales come to be."""
    if mode == "echo":
        return {"rationale": "echo"}
    return {} if budget is None else {"max_new_tokens": budget, **sampling.identity()}
